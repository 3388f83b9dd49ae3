"""Paired comparisons, worked by hand and against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from preftune.prompting.paired import average, mcnemar, paired, weighted_average


def test_counts_and_means() -> None:
    found = paired([1, 0, 0, 1, 0], [1, 1, 1, 0, 0])
    assert (found.questions, found.won, found.lost, found.same) == (5, 2, 1, 2)
    assert (found.naive, found.optimised) == (0.4, 0.6)
    assert found.difference == pytest.approx(0.2)
    assert found.ci95 is not None
    assert found.ci95[0] < 0 < found.ci95[1], "five questions tell nothing"


@pytest.mark.parametrize(
    ("won", "lost", "p"), [(0, 5, 2 / 32), (1, 5, 2 * 7 / 64), (4, 4, 1.0), (0, 0, 1.0), (9, 1, 22 / 1024)]
)
def test_mcnemar(won: int, lost: int, p: float) -> None:
    assert mcnemar(won, lost) == pytest.approx(p)
    assert mcnemar(lost, won) == pytest.approx(p)


def test_the_interval_is_paired() -> None:
    random = np.random.default_rng(1)
    naive = random.integers(0, 2, 400)
    better = naive.copy()
    better[np.flatnonzero(naive == 0)[:20]] = 1
    found = paired(naive, better)
    assert found.ci95 is not None
    # the standard error of a mean of 20 ones among 400 is 0.0109; unpaired it would be 0.035
    assert found.ci95[0] == pytest.approx(0.05 - 1.96 * 0.0109, abs=0.008)
    assert found.ci95[1] == pytest.approx(0.05 + 1.96 * 0.0109, abs=0.008)


def test_it_covers() -> None:
    random, truth, inside = np.random.default_rng(5), 0.1, 0
    for seed in range(80):
        naive = random.random(120) < 0.4
        kept = np.where(random.random(120) < 0.1 / 0.6, True, naive)
        found = paired(naive, kept, seed=seed)
        assert found.ci95 is not None
        inside += found.ci95[0] <= truth <= found.ci95[1]
    assert inside >= 69  # 95% of 80 is 76, and fewer than 69 come less than once in a thousand times


def test_no_difference_is_not_certain() -> None:
    same = paired([0, 1, 1, 0], [0, 1, 1, 0])
    assert same.ci95 is not None
    assert same.ci95[0] < 0 < same.ci95[1]
    every = paired([0] * 8, [1] * 8)
    assert every.ci95 is not None
    assert 0.2 < every.ci95[0] < 1.0
    assert every.ci95[1] == 1.0


def test_what_stands_twice_is_drawn_together() -> None:
    naive, other = [0, 0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0]
    once, twice = paired(naive, other), paired(naive * 8, other * 8, [*range(6)] * 8)
    assert once.ci95 is not None
    assert twice.ci95 is not None
    assert twice.ci95 == pytest.approx(once.ci95)
    alone = paired(naive * 8, other * 8).ci95
    assert alone is not None
    assert alone[1] - alone[0] < 0.6 * (twice.ci95[1] - twice.ci95[0])


def test_one_question_has_no_interval() -> None:
    assert paired([0], [1]).ci95 is None
    assert average([([0], [1], ["a"])]).ci95 is None


def test_averages() -> None:
    assert weighted_average({"a": 50.0, "b": 80.0}, {"a": 3, "b": 1}) == 57.5
    columns = [([0, 0, 0], [1, 0, 0], "abc"), ([1], [0], "d")]
    weighted, simple = average(columns), average(columns, by_size=False)
    assert (weighted.naive, weighted.optimised) == (0.25, 0.25)
    assert (simple.naive, simple.optimised) == pytest.approx((0.5, 1 / 6))


def test_the_average_draws_within_benchmarks() -> None:
    random = np.random.default_rng(0)
    naive, other = random.integers(0, 2, 300), random.integers(0, 2, 300)
    alone, pooled = paired(naive, other), average([(naive, other, list(range(300)))])
    assert alone.ci95 is not None
    assert pooled.ci95 is not None
    assert pooled.ci95 == pytest.approx(alone.ci95, abs=0.02)
    # a second benchmark, whose scores all rise, adds next to nothing to what is uncertain
    more = average([(naive, other, list(range(300))), ([0] * 300, [1] * 300, list(range(300)))])
    assert more.ci95 is not None
    assert more.ci95[1] - more.ci95[0] == pytest.approx((pooled.ci95[1] - pooled.ci95[0]) / 2, rel=0.1)


def test_a_few_changes_among_thousands_are_no_proof() -> None:
    # three lost and none won come once in four times by chance
    naive, other = [1] * 3 + [0] * 2000, [0] * 2003
    found, pooled = paired(naive, other), average([(naive, other, list(range(2003)))])
    assert found.p == 0.25
    assert found.ci95 is not None
    assert pooled.ci95 is not None
    # one more won and one more lost: -3 of 2005, with the variance of 5 changes
    assert found.ci95 == pytest.approx((-(3 + 1.96 * 5**0.5) / 2005, (-3 + 1.96 * 5**0.5) / 2005), abs=2e-6)
    assert pooled.ci95[0] < 0 < pooled.ci95[1]


@pytest.mark.parametrize(("naive", "other"), [([], []), ([1], [1, 0]), ([[1]], [[1]])])
def test_columns_that_do_not_fit(naive: list[int], other: list[int]) -> None:
    with pytest.raises(ValueError, match="two columns of one length"):
        paired(naive, other)

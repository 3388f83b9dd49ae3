from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from preftune.evaluation import bootstrap
from preftune.evaluation.bootstrap import interval95, student_t


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weight_RN: weight_RN @ values / weight_RN.sum(1)


def test_groups_are_drawn_whole_and_by_the_seed():
    seen: list[np.ndarray] = []

    def statistic(weight_RN: np.ndarray) -> np.ndarray:
        seen.append(weight_RN)
        return weight_RN @ np.array([1.0, 2.0, 3.0, 4.0, 5.0])

    first = interval95(statistic, ["a", "b", "a", "c", "b"], seed=3, resamples=50)
    whole, drawn, without = seen
    assert (whole == 1).all()
    assert drawn.shape == (50, 5)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, 1] == drawn[:, 4]).all()
    assert (drawn[:, 0] + drawn[:, 1] + drawn[:, 3] == 3).all()  # as many as there are
    assert without.tolist() == [[0, 1, 0, 1, 1], [1, 0, 1, 1, 0], [1, 1, 1, 0, 1]]
    assert first == interval95(statistic, ["a", "b", "a", "c", "b"], seed=3, resamples=50)
    assert (drawn == seen[4]).all()
    interval95(statistic, ["a", "b", "a", "c", "b"], seed=4, resamples=50)
    assert (drawn != seen[7]).any()


def test_many_observations_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).normal(size=700)
    whole = interval95(mean_of(values), range(700), seed=1, resamples=100)
    monkeypatch.setattr(bootstrap, "LARGEST", 7 * 700)
    assert interval95(mean_of(values), range(700), seed=1, resamples=100) == pytest.approx(whole, abs=1e-12)


# scipy.stats.t.ppf(0.975, freedom)
@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.70620), (2, 4.30265), (3, 3.18245), (5, 2.57058), (9, 2.26216), (29, 2.04523), (99, 1.98422)],
)
def test_students_quantiles(freedom: int, quantile: float):
    assert student_t(freedom) == pytest.approx(quantile, rel=0.01 if freedom < 6 else 0.001)


@pytest.mark.parametrize(("groups", "each", "spread"), [(20, 5, 1.0), (60, 3, 1.0), (60, 1, 0.0)])
def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says(groups: int, each: int, spread: float):
    """Normal observations with an effect of the group, of which groups of several share one."""
    random, covered, trials = np.random.default_rng(7), 0, 400
    numbers = np.repeat(np.arange(groups), each)
    for trial in range(trials):
        values = 0.3 + random.normal(size=groups)[numbers] * spread + random.normal(size=groups * each)
        low, high = interval95(mean_of(values), numbers.tolist(), seed=trial, resamples=400)
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / trials <= 0.98


@pytest.mark.parametrize("groups", [15, 50])
def test_skewness_is_allowed_for(groups: int):
    """The mean of exponential values: plain percentiles miss it from one side more than from the other."""
    random, trials = np.random.default_rng(3), 400
    below = above = plain = 0
    for trial in range(trials):
        values = random.exponential(size=groups)
        low, high = interval95(mean_of(values), range(groups), seed=trial, resamples=400)
        below, above = below + (high < 1), above + (low > 1)
        drawn = np.random.default_rng(trial).multinomial(groups, np.full(groups, 1 / groups), size=400)
        ends = np.quantile(drawn @ values / groups, [0.025, 0.975])
        plain += ends[0] <= 1 <= ends[1]
    covered = 1 - (below + above) / trials
    assert covered > plain / trials
    assert 0.91 <= covered <= 0.98


def test_one_group_says_nothing():
    with pytest.raises(ValueError, match="at least two groups"):
        interval95(mean_of(np.array([0.2, 0.4])), ["a", "a"], seed=0)

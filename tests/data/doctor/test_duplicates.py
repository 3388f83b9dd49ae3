"""Rows that repeat others: planted ones are found at their rows, and different ones are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.doctor import duplicates
from preftune.data.doctor.checkup import Chart
from preftune.data.lines import Lines, Reading

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("al", "en", "ir", "ot", "un", "ask", "est", "ost")]


def text(random: np.random.Generator, count: int = 40) -> list[str]:
    return [WORDS[i] for i in random.integers(len(WORDS), size=count)]


def row(random: np.random.Generator) -> dict[str, list[str]]:
    return {"prompt": text(random, 20), "chosen": text(random), "rejected": text(random)}


def joined(rows: list[dict[str, list[str]]]) -> list[dict[str, str]]:
    return [{key: " ".join(words) for key, words in one.items()} for one in rows]


def looked_at(rows: list[Any]) -> tuple[Any, Any]:
    chart = Chart(Lines(rows, Reading()))
    exact, fresh = chart.repeats
    return exact, duplicates.near_duplicates(chart.lines, chart.index, fresh)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=30))
def test_repeated_rows_are_found_and_the_first_is_kept(which: list[int]) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in which]
    exact, _ = looked_at(rows)
    expected = [i for i, one in enumerate(which) if one in which[:i]]
    assert ([] if exact is None else exact.drop.tolist()) == expected
    if exact is not None:
        assert exact.against.tolist() == [which.index(which[i]) for i in expected]


def test_weight_blanks_and_form_do_not_make_a_row_new_but_the_order_of_responses_does() -> None:
    base = {"prompt": "q", "chosen": " a", "rejected": " b"}
    rows = [base, {**base, "weight": 2.0}, {**base, "prompt": " q\n"}, {**base, "chosen": " b", "rejected": " a"}]
    assert looked_at(rows)[0].drop.tolist() == [1, 2]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 19), min_size=1, max_size=6, unique=True))
def test_planted_near_duplicates_are_found_at_their_rows(seed: int, copied: list[int]) -> None:
    random = np.random.default_rng(seed)
    rows = [row(random) for _ in range(20)]
    planted = []
    for (
        number
    ) in copied:  # one word of a hundred changed: three of about 94 runs on either side, a Jaccard index of 0.94
        copy = {key: [*words] for key, words in rows[number].items()}
        copy["chosen"][int(random.integers(40))] = "changed"
        planted.append(copy)
    exact, near = looked_at(joined([*rows, *planted]))
    assert exact is None
    assert near.drop.tolist() == [20 + i for i in range(len(copied))]
    assert near.against.tolist() == copied


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_share_half_their_words_are_no_duplicates(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(30):
        one = row(random)
        rows += [one, {**row(random), "chosen": one["chosen"]}]  # 38 of 150 runs are shared
    assert looked_at(joined(rows)) == (None, None)


def test_exchanged_sides_are_no_duplicate() -> None:
    random = np.random.default_rng(0)
    one = row(random)
    assert looked_at(joined([one, {**one, "chosen": one["rejected"], "rejected": one["chosen"]}])) == (None, None)


def test_texts_without_words_are_compared_exactly_alone() -> None:
    rows = [{"prompt": "?" * i, "chosen": "!", "rejected": "..."} for i in range(1, 6)]
    assert looked_at([*rows, rows[0]])[0].drop.tolist() == [5]
    assert looked_at(rows)[1] is None


def test_signatures_estimate_the_jaccard_index() -> None:
    """What the threshold means: over many pairs of rows the estimate is right on average, off by 0.04."""
    from rensa import RMinHash

    random = np.random.default_rng(1)
    errors = []
    for _ in range(200):
        sets = random.integers(2**63, size=(2, 300)).astype(np.uint64)
        shared = int(random.integers(100, 290))
        sets[1, :shared] = sets[0, :shared]
        ends = np.array([0, 300, 600], dtype=np.uint64)
        found = RMinHash.digest_matrix_from_flat_token_hashes(
            sets.reshape(-1), ends, duplicates.PLACES, duplicates.SEED
        )
        one, other = np.array(found.to_rows())
        errors.append((one == other).mean() - shared / (600 - shared))
    assert abs(np.mean(errors)) < 0.01
    assert 0.02 < np.std(errors) < 0.06

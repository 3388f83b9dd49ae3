"""Contradictions and cycles: those that are planted are found at their rows, and none where there is none."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.doctor import conflicts
from preftune.data.doctor.checkup import Chart
from preftune.data.lines import Lines, Reading


def pair(prompt: int, chosen: int, rejected: int) -> dict[str, Any]:
    return {"prompt": f"question {prompt}", "chosen": f" answer {chosen}.", "rejected": f" answer {rejected}."}


def looked_at(rows: list[dict[str, Any]]) -> tuple[Any, Any, Chart]:
    chart = Chart(Lines(rows, Reading()))
    return conflicts.contradictions(chart.index, chart.votes), conflicts.cycles(chart.index, chart.votes), chart


COMPARISON = st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5)).filter(lambda one: one[1] != one[2])


@settings(max_examples=60, deadline=None)
@given(st.lists(COMPARISON, min_size=1, max_size=30))
def test_preferences_of_one_order_have_neither(comparisons: list[tuple[int, int, int]]) -> None:
    rows = [pair(prompt, max(a, b), min(a, b)) for prompt, a, b in comparisons]
    contradictions, cycles, _ = looked_at(rows)
    assert contradictions is None
    assert cycles is None


@settings(max_examples=60, deadline=None)
@given(st.lists(COMPARISON, min_size=1, max_size=40))
def test_what_is_found_is_what_a_plain_search_finds_and_without_it_nothing_is_left(
    comparisons: list[tuple[int, int, int]],
) -> None:
    rows = [pair(*one) for one in comparisons]
    contradictions, cycles, _ = looked_at(rows)
    seen = set(comparisons)
    at_odds = [i for i, (prompt, a, b) in enumerate(comparisons) if (prompt, b, a) in seen]
    assert (contradictions is not None) == bool(at_odds)
    if contradictions is not None:
        assert sorted(where.row for where, _, _ in contradictions.places) == at_odds
        for where, other, _ in contradictions.places:
            prompt, a, b = comparisons[where.row]
            assert other is not None
            assert comparisons[other.row] == (prompt, b, a)
    out = {int(i) for finding in (contradictions, cycles) if finding for i in finding.drop}
    left = [one for i, one in enumerate(comparisons) if i not in out]
    if left:
        assert looked_at([pair(*one) for one in left])[:2] == (None, None)
        assert not has_cycle(left)
    if cycles is not None:
        outvoted = set(contradictions.drop.tolist()) if contradictions else set()
        assert has_cycle([one for i, one in enumerate(comparisons) if i not in outvoted])


def has_cycle(comparisons: list[tuple[int, int, int]]) -> bool:
    """By removing what nothing is better than, until nothing is left to remove."""
    edges = {((prompt, a), (prompt, b)) for prompt, a, b in comparisons}
    while edges:
        worse = {b for _, b in edges}
        kept = {(a, b) for a, b in edges if a in worse}
        if kept == edges:
            return True
        edges = kept
    return False


@pytest.mark.parametrize("length", [3, 4, 9])
def test_a_planted_cycle_is_found_with_its_rows(length: int) -> None:
    order = [pair(i, 40, 41) for i in range(20)]
    circle = [pair(5, i, (i + 1) % length) for i in range(length)]
    rows = [*order[:11], *circle, *order[11:], pair(5, 20, 0), pair(5, length - 1, 30)]
    contradictions, cycles, chart = looked_at(rows)
    assert contradictions is None
    assert cycles.drop.tolist() == list(range(11, 11 + length))
    assert cycles.count == length
    (named,) = cycles.details["cycles"]
    assert sorted(named) == sorted(str(chart.index.places[i]) for i in range(11, 11 + length))


def test_the_majority_decides_a_contradiction_and_a_tie_leaves_none() -> None:
    contradictions, _, _ = looked_at([pair(0, 1, 2), pair(0, 2, 1), pair(0, 1, 2), pair(1, 1, 2), pair(1, 2, 1)])
    assert contradictions.drop.tolist() == [1, 3, 4]
    assert contradictions.against.tolist() == [0, 4, 3]
    assert contradictions.count == 5
    assert contradictions.text == "5 rows contradict each other (2 questions, 1 of them without a majority)"


def test_blanks_around_a_text_change_nothing_and_case_does() -> None:
    rows = [pair(0, 1, 2), {"prompt": "question 0 ", "chosen": "answer 2.\n", "rejected": "  answer 1."}]
    assert looked_at(rows)[0].count == 2
    assert looked_at([rows[0], {**rows[1], "chosen": "Answer 2."}])[0] is None


def test_conversations_contradict_plain_text() -> None:
    turns = {
        "prompt": [{"role": "user", "content": "question 0"}],
        "chosen": [{"role": "assistant", "content": "answer 2."}],
        "rejected": [{"role": "assistant", "content": "answer 1."}],
    }
    records = [*Lines([pair(0, 1, 2)], Reading()).records(), *Lines([turns], Reading()).records()]
    chart = Chart(Lines(records, Reading()))
    assert conflicts.contradictions(chart.index, chart.votes) is not None


def test_verdicts_contradict_each_other() -> None:
    rows = [{"prompt": "q", "completion": " a", "label": label} for label in (True, False, True)]
    contradictions, cycles, _ = looked_at([*rows, {"prompt": "q", "completion": " b", "label": False}])
    assert contradictions.count == 3
    assert contradictions.drop.tolist() == [1]
    assert cycles is None


def test_rankings_contradict_each_other_and_run_in_circles() -> None:
    def ranking(*names: str) -> dict[str, Any]:
        return {"prompt": "q", "responses": [f" {name}" for name in names], "ranks": [*range(len(names))]}

    contradictions, _, _ = looked_at([ranking("a", "b", "c"), ranking("c", "d"), ranking("b", "a")])
    assert contradictions.drop.tolist() == [0, 2]
    contradictions, cycles, _ = looked_at([ranking("a", "b"), ranking("b", "x", "c"), ranking("c", "a")])
    assert contradictions is None
    assert cycles.drop.tolist() == [0, 1, 2]


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_label_noise_is_estimated_from_repeats(error: float) -> None:
    random = np.random.default_rng(0)
    rows = []
    for prompt in range(1000):
        for _ in range(2):
            flipped = random.random() < error
            rows.append(pair(prompt, 1 + flipped, 2 - flipped))
    chart = Chart(Lines(rows, Reading()))
    found = conflicts.noise(chart.index, chart.votes)
    low, high = found["from_repeats_ci95"]
    assert low < error < high
    assert high - low < 0.08
    assert found["questions_answered_twice"] == 1000
    differ = sum(a["chosen"] != b["chosen"] for a, b in zip(rows[::2], rows[1::2], strict=True)) / 1000
    assert found["from_repeats"] == pytest.approx((1 - math.sqrt(1 - 2 * differ)) / 2)


def test_label_noise_is_unknown_without_repeats_and_read_off_confidences() -> None:
    rows = [{**pair(i, 1, 2), "confidence": c} for i, c in enumerate((0.9, 0.6))] + [pair(9, 1, 2)]
    chart = Chart(Lines(rows, Reading()))
    found = conflicts.noise(chart.index, chart.votes)
    assert found["from_repeats"] is found["from_repeats_ci95"] is None
    assert found["from_confidences"] == pytest.approx(0.25)


def test_a_long_chain_is_no_cycle_and_takes_no_search() -> None:
    rows = [pair(0, i, i + 1) for i in range(300)]
    assert looked_at(rows)[1] is None
    assert looked_at([*rows, pair(0, 300, 0)])[1].count == 301
    tournament = [pair(1, i, j) for i, j in combinations(range(12), 2)]
    assert looked_at(tournament)[1] is None

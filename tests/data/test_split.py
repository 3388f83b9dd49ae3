from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.records import Demonstration, Judged, Message, Text, Where
from preftune.data.split import held_out, prompt_key
from preftune.errors import PreftuneError


def demonstrations(prompts: list[Text]) -> list[Demonstration]:
    return [Demonstration(prompt, "answer", Where("data", row)) for row, prompt in enumerate(prompts)]


def prompts_of(records: list[Demonstration]) -> set[str]:
    return {prompt_key(record.prompt) for record in records}


@given(
    sizes=st.lists(st.integers(1, 6), min_size=4, max_size=40), fraction=st.floats(0.05, 0.95), seed=st.integers(0, 9)
)
def test_no_prompt_is_on_both_sides_and_the_order_does_not_matter(sizes: list[int], fraction: float, seed: int) -> None:
    records = demonstrations([f"prompt {i}" for i, size in enumerate(sizes) for _ in range(size)])
    try:
        train, held = held_out(records, fraction, seed)
    except PreftuneError:
        # Only where every prompt is too large to be held out, or one is too large to be left.
        target = max(1, round(fraction * len(records)))
        assert 2 * target <= min(sizes) or 2 * (len(records) - target) < max(sizes)
        return
    assert not prompts_of(train) & prompts_of(held)
    assert sorted(train + held, key=lambda record: record.where.row) == records
    assert [record.where.row for record in held] == sorted(record.where.row for record in held)
    random.Random(seed).shuffle(records)
    assert prompts_of(held_out(records, fraction, seed)[1]) == prompts_of(held)


@pytest.mark.parametrize(("size", "expected"), [(0.1, 100), (0.5, 500), (7, 7), (999, 999), (0.0001, 1)])
def test_size_is_exact_where_every_prompt_stands_once(size: float, expected: int) -> None:
    train, held = held_out(demonstrations([f"prompt {i}" for i in range(1000)]), size, 0)
    assert (len(train), len(held)) == (1000 - expected, expected)


def test_size_misses_by_half_a_prompt_at_most() -> None:
    records = demonstrations([f"prompt {i // 8}" for i in range(1000)])
    for count in range(5, 900, 61):
        assert abs(len(held_out(records, count, 1)[1]) - count) <= 4


def test_seeds_differ_and_later_records_move_no_settled_prompt() -> None:
    prompts: list[Text] = [f"prompt {i}" for i in range(400)]
    first = prompts_of(held_out(demonstrations(prompts), 0.25, 0)[1])
    other = prompts_of(held_out(demonstrations(prompts), 0.25, 1)[1])
    assert 10 < len(first & other) < 45  # about a quarter of a hundred, as chance has it
    grown = prompts_of(held_out(demonstrations([*prompts, *(f"new {i}" for i in range(40))]), 0.25, 0)[1])
    assert len(first - grown) <= 15


def test_prompts_that_differ_in_blanks_or_form_are_one() -> None:
    assert prompt_key("Why? ") == prompt_key((Message("user", "\nWhy?"),))
    assert prompt_key("Why?") != prompt_key("why?")
    assert prompt_key((Message("system", "a"), Message("user", "b"))) != prompt_key((Message("user", "a b"),))
    records = [Judged(f"prompt {i % 20}" + " " * (i % 3), "x", True, Where("data", i)) for i in range(60)]
    train, held = held_out(records, 15, 0)
    assert len(held) == 15
    assert not {record.prompt.strip() for record in train} & {record.prompt.strip() for record in held}


@pytest.mark.parametrize("size", [0, 0.0, 1.0, -1, 1.5, float("nan"), 10, 11, True, "0.1"])
def test_sizes_out_of_range_are_refused(size: float) -> None:
    with pytest.raises(PreftuneError, match=r"cannot hold out .* of 10 records, expected a fraction between 0 and 1"):
        held_out(demonstrations([f"prompt {i}" for i in range(10)]), size, 0)


@pytest.mark.parametrize("prompts", [["only one"] * 10, ["a"] * 5 + ["b"] * 5])
def test_no_side_may_be_empty(prompts: list[Text]) -> None:
    with pytest.raises(
        PreftuneError, match=r"cannot hold out 1 of 10 records by prompt: they have \d different prompts"
    ):
        held_out(demonstrations(prompts), 0.1, 0)

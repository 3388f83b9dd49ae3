from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import Any

import miniatures
import numpy as np
import pytest
import torch

from preftune.data.examples import Example
from preftune.policy.policy import PolicyModule
from preftune.training.batches import BatchConfig, lengths
from preftune.training.feed import Feed, prefetched


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("preftune-feed")]


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_what_is_made_ahead_comes_in_order_and_leaves_no_thread(ahead):
    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number**2

    with closing(prefetched(slow, range(20), ahead)) as found:
        assert list(found) == [number**2 for number in range(20)]
    assert not workers()


def test_no_more_is_made_than_is_asked_for():
    made: list[int] = []
    with closing(prefetched(made.append, iter(range(100)), 3)) as found:
        for _ in range(5):
            next(found)
        time.sleep(0.05)
        assert made == list(range(len(made)))
        assert 5 <= len(made) <= 5 + 3
    assert not workers()


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_comes_where_it_would_have_come(ahead):
    def make(number: int) -> int:
        if number == 3:
            raise ValueError("the fourth")
        return number

    with closing(prefetched(make, range(9), ahead)) as numbers:
        assert [next(numbers) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="the fourth"):
            next(numbers)
    assert not workers()


def test_no_thread_outlives_a_caller_that_fails():
    def stops() -> None:
        with closing(prefetched(lambda number: number, range(1000), 2)) as numbers:
            for number in numbers:
                if number == 4:
                    raise RuntimeError("training stopped")

    with pytest.raises(RuntimeError, match="training stopped"):
        stops()
    assert not workers()


def feed(layout: Any, **limits: Any) -> Feed:
    lm = miniatures.build("llama")
    return Feed(PolicyModule(lm, layout), BatchConfig(**limits), None, torch.device("cpu"), 0)


EXAMPLES = [miniatures.pair(3 + 5 * i % 17, 2 + 3 * i % 11, 1 + 7 * i % 9, i) for i in range(20)]


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_hold_their_examples_within_the_limits_of_a_forward(monkeypatch, layout, ahead):
    from preftune.training import feed as module

    monkeypatch.setitem(module.AHEAD, "cpu", ahead)
    schedule = [np.array([4, 2, 9, 11]), np.array([0, 1, 3, 5, 6, 7, 8])]
    fed = feed(layout, micro_tokens=90)
    with closing(fed.batches(EXAMPLES, lengths(EXAMPLES), schedule)) as batches:
        found = list(batches)
    for indices, micros in zip(schedule, found, strict=True):
        assert sorted(e.row for micro in micros for e in micro.examples) == sorted(indices.tolist())
        for micro in micros:
            assert micro.batch.row_E.tolist() == [e.row for e in micro.examples]
            assert micro.batch.tokens <= 90
            assert (micro.batch.tree is None) == (layout == "padded")
    assert not workers()


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_costs_are_the_tokens_that_a_forward_computes(layout):
    fed = feed(layout)
    costs = fed.costs(lengths(EXAMPLES))
    assert costs.tolist() == [fed.prepare([example]).batch.tokens for example in EXAMPLES]


def test_a_side_is_cut_whole():
    micros = feed("tree", micro_tokens=64).side(EXAMPLES)
    assert len(micros) > 3
    assert sorted(e.row for micro in micros for e in micro.examples) == list(range(20))
    assert list(feed("tree").side(list[Example]())) == []

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from preftune.training.batches import (
    DROPOUT,
    ORDER,
    SAMPLING,
    BatchConfig,
    group,
    micro_batches,
    plan_epoch,
    random_stream,
    torch_seed,
)

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(lengths, st.integers(1, 6), st.integers(1, 4))
def test_a_batch_of_too_few_joins_another(tokens, size, least):
    batches = plan_epoch(tokens, BatchConfig(size=size), 0, 0, least)
    assert sorted(i for batch in batches for i in batch) == list(range(len(tokens)))
    assert min(map(len, batches)) >= min(least, len(tokens))
    free = plan_epoch(tokens, BatchConfig(size=size), 0, 0)
    assert [i for batch in batches for i in batch] == [i for batch in free for i in batch]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.integers(1, 6), st.integers(0, 9))
def test_promise_14_a_batch_holds_at_least_two_prompts(prompts, size, seed):
    batches = plan_epoch([1] * len(prompts), BatchConfig(size=size), seed, 0, 2, prompts)
    assert sorted(i for batch in batches for i in batch) == list(range(len(prompts)))
    if len(set(prompts)) > 1:
        assert min(len({prompts[i] for i in batch}) for batch in batches) >= 2


@settings(max_examples=50, deadline=None)
@given(lengths, st.one_of(st.none(), st.integers(1, 8)), st.one_of(st.none(), st.integers(1, 60)))
def test_groups_keep_the_order_and_the_limits_and_are_as_full_as_they_can_be(tokens, size, budget):
    order = list(range(len(tokens)))[::-1]
    groups = group(order, tokens, size, budget)
    assert [i for one in groups for i in one] == order
    for one in groups:
        assert size is None or len(one) <= size
        assert budget is None or len(one) == 1 or sum(tokens[i] for i in one) <= budget
    for one, following in itertools.pairwise(groups):
        full = size is not None and len(one) == size
        over = budget is not None and sum(tokens[i] for i in one) + tokens[following[0]] > budget
        assert full or over


@settings(max_examples=30, deadline=None)
@given(lengths, st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_holds_every_example_once(tokens, size, seed, epoch):
    batches = plan_epoch(tokens, BatchConfig(size=size), seed, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(tokens)))
    assert all(len(batch) == size for batch in batches[:-1])
    assert batches == plan_epoch(tokens, BatchConfig(size=size), seed, epoch)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(i for batch in plan_epoch([1] * 50, BatchConfig(), seed, epoch) for i in batch)
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_the_order_does_not_depend_on_the_size_of_batches():
    small, large = (plan_epoch([1] * 20, BatchConfig(size=size), 0, 0) for size in (3, 7))
    assert [i for batch in small for i in batch] == [i for batch in large for i in batch]


def test_a_token_budget_replaces_the_number_of_examples():
    tokens = [5] * 20
    batches = plan_epoch(tokens, BatchConfig(tokens=17), 0, 0)
    assert {len(batch) for batch in batches[:-1]} == {3}


@settings(max_examples=50, deadline=None)
@given(lengths, st.one_of(st.none(), st.integers(1, 30)))
def test_forwards_hold_each_example_once_and_long_ones_alone(tokens, alone_above):
    config = BatchConfig(micro_size=4, micro_tokens=50)
    micros = micro_batches(range(len(tokens)), tokens, config, alone_above)
    assert sorted(i for micro in micros for i in micro) == list(range(len(tokens)))
    for micro in micros:
        assert 1 <= len(micro) <= 4
        assert len(micro) == 1 or sum(tokens[i] for i in micro) <= 50
        if alone_above is not None and any(tokens[i] > alone_above for i in micro):
            assert len(micro) == 1


def test_an_example_over_the_budget_runs_alone():
    assert group([0, 1, 2], [10, 99, 10], None, 20) == [[0], [1], [2]]


def test_streams_of_random_numbers_do_not_meet():
    keys = [(seed, stream, step) for seed in (0, 1) for stream in (ORDER, DROPOUT, SAMPLING) for step in (0, 1)]
    draws = {tuple(random_stream(*key).integers(0, 2**60, 3).tolist()) for key in keys}
    seeds = {torch_seed(*key) for key in keys}
    assert len(draws) == len(seeds) == len(keys)
    for seed in seeds:
        torch.manual_seed(seed)
        assert 0 <= seed < 2**63
    assert np.array_equal(random_stream(1, 2).permutation(9), random_stream(1, 2).permutation(9))


@pytest.mark.parametrize("fields", [{"size": 0}, {"tokens": 0}, {"micro_size": 0}, {"micro_tokens": -1}, {"sizes": 8}])
def test_sizes_that_cannot_be_are_refused(fields):
    with pytest.raises(ValidationError):
        BatchConfig(**fields)


def test_two_sizes_of_a_batch_are_refused():
    with pytest.raises(ValidationError, match="size and tokens both say how large a batch is"):
        BatchConfig(size=8, tokens=100)

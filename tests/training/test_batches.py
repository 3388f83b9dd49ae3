from __future__ import annotations

import time

import miniatures
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
    Schedule,
    lengths,
    micro_batches,
    padded_micro_batches,
    plan_epoch,
    random_stream,
    share_out,
    torch_seed,
)

costs = st.lists(st.integers(1, 40), min_size=1, max_size=30)
budgets = st.one_of(st.none(), st.integers(1, 60))


def flat(batches) -> list[int]:
    return [int(i) for batch in batches for i in batch]


def spread(batches, tokens) -> tuple[float, float]:
    """The dearest and the cheapest batch, as shares of the mean."""
    found = np.array([np.asarray(tokens)[batch].sum() for batch in batches])
    return found.max() / found.mean(), found.min() / found.mean()


@settings(max_examples=50, deadline=None)
@given(costs, st.integers(1, 6), st.integers(1, 4))
def test_a_batch_of_too_few_joins_another(tokens, size, least):
    batches = plan_epoch(tokens, BatchConfig(size=size), 0, 0, least)
    assert sorted(flat(batches)) == list(range(len(tokens)))
    assert min(map(len, batches)) >= min(least, len(tokens))
    assert flat(batches) == flat(plan_epoch(tokens, BatchConfig(size=size), 0, 0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.integers(1, 6), st.integers(0, 9), st.booleans())
def test_promise_14_a_batch_holds_at_least_two_prompts(prompts, size, seed, by_tokens):
    config = BatchConfig(tokens=size) if by_tokens else BatchConfig(size=size)
    batches = plan_epoch([1] * len(prompts), config, seed, 0, 2, prompts)
    assert sorted(flat(batches)) == list(range(len(prompts)))
    if len(set(prompts)) > 1:
        assert min(len({prompts[i] for i in batch}) for batch in batches) >= 2


@settings(max_examples=80, deadline=None)
@given(costs, st.one_of(st.none(), st.integers(1, 8)), budgets, st.integers(0, 5))
def test_shared_out_examples_stand_once_each_in_order_and_within_the_limits(tokens, size, budget, least):
    order = np.arange(len(tokens))[::-1]
    groups = share_out(order, np.array(tokens), size, budget, least)
    assert sorted(flat(groups)) == list(range(len(tokens)))
    assert [one[0] for one in groups] == sorted((one[0] for one in groups), reverse=True)
    for one in groups:
        assert one == sorted(one, reverse=True)
        assert size is None or len(one) <= size
        assert budget is None or len(one) == 1 or sum(tokens[i] for i in one) <= budget


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=8, max_size=60), st.integers(2, 6))
def test_shared_out_groups_differ_by_one_example_at_most(tokens, groups):
    """Longest first to the least: no group can be dearer than another by more than its last example costs."""
    found = share_out(np.arange(len(tokens)), np.array(tokens), None, None, groups)
    cost = [sum(tokens[i] for i in one) for one in found]
    assert len(found) == groups
    dearest = int(np.argmax(cost))
    assert max(cost) - min(cost) <= min(tokens[i] for i in found[dearest])


@settings(max_examples=40, deadline=None)
@given(costs, st.one_of(st.integers(1, 8).map(lambda n: {"size": n}), st.integers(1, 99).map(lambda n: {"tokens": n})))
def test_every_epoch_holds_every_example_once(tokens, how):
    config = BatchConfig(**how)
    batches = plan_epoch(tokens, config, 3, 1)
    assert sorted(flat(batches)) == list(range(len(tokens)))
    if config.size is not None:
        assert all(len(batch) == config.size for batch in batches[:-1])
    else:
        assert all(len(batch) == 1 or sum(tokens[i] for i in batch) <= config.tokens for batch in batches)
    again = plan_epoch(tokens, config, 3, 1)
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]


@pytest.mark.parametrize("how", [{"size": 4}, {"tokens": 4}])
def test_epochs_and_seeds_have_orders_of_their_own(how):
    orders = {
        tuple(flat(plan_epoch([1] * 50, BatchConfig(**how), seed, epoch))) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_the_order_does_not_depend_on_the_size_of_batches():
    small, large = (plan_epoch([1] * 20, BatchConfig(size=size), 0, 0) for size in (3, 7))
    assert flat(small) == flat(large)


def log_normal(count: int) -> np.ndarray:
    """Lengths like those of pairs: a prompt and two responses."""
    random = np.random.default_rng(0)
    return sum(np.round(median * np.exp(random.normal(0, 0.5, count))).astype(int) for median in (96, 27, 36))


@pytest.mark.parametrize(("budget", "dearest", "cheapest"), [(2048, 1.04, 0.93), (8192, 1.02, 0.98)])
def test_batches_of_a_token_budget_cost_nearly_the_same(budget, dearest, cheapest):
    tokens = log_normal(20_000)
    batches = plan_epoch(tokens, BatchConfig(tokens=budget), 0, 0)
    most, least = spread(batches, tokens)
    assert most <= dearest
    assert least >= cheapest
    assert len(batches) <= 1.05 * tokens.sum() / budget


def test_who_meets_whom_changes_from_epoch_to_epoch_and_each_place_holds_all_lengths():
    tokens = log_normal(4_000)
    first, second = (plan_epoch(tokens, BatchConfig(tokens=1024), 0, epoch) for epoch in (0, 1))

    def couples(batches) -> set[tuple[int, int]]:
        return {(int(a), int(b)) for batch in batches for a in batch for b in batch if a < b}

    assert len(couples(first) & couples(second)) <= 0.02 * len(couples(first))
    halves = np.array_split(np.array(flat(first)), 8)
    assert np.std([tokens[half].mean() for half in halves]) <= 0.05 * tokens.mean()


def test_a_million_examples_are_planned_in_seconds():
    tokens = log_normal(1_000_000)
    start = time.process_time()
    batches = plan_epoch(tokens, BatchConfig(tokens=8192), 0, 0)
    assert time.process_time() - start <= 8  # about 1 on a free core
    assert sum(map(len, batches)) == 1_000_000


def test_a_token_budget_replaces_the_number_of_examples():
    batches = plan_epoch([5] * 20, BatchConfig(tokens=17), 0, 0)
    assert {len(batch) for batch in batches} == {2, 3}


@settings(max_examples=50, deadline=None)
@given(costs, st.one_of(st.none(), st.integers(1, 30)))
def test_forwards_hold_each_example_once_and_long_ones_alone(tokens, alone_above):
    config = BatchConfig(micro_size=4, micro_tokens=50)
    micros = micro_batches(range(len(tokens)), tokens, config, alone_above)
    assert sorted(flat(micros)) == list(range(len(tokens)))
    for micro in micros:
        assert 1 <= len(micro) <= 4
        assert len(micro) == 1 or sum(tokens[i] for i in micro) <= 50
        if alone_above is not None and any(tokens[i] > alone_above for i in micro):
            assert len(micro) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=30),
    st.one_of(st.none(), st.integers(1, 5)),
    st.one_of(st.none(), st.integers(1, 200)),
    st.one_of(st.none(), st.integers(1, 30)),
)
def test_padded_forwards_count_their_padding(sizes, micro_size, micro_tokens, alone_above):
    rows, longest = (np.array(column) for column in zip(*sizes, strict=True))
    config = BatchConfig(micro_size=micro_size, micro_tokens=micro_tokens)
    micros = padded_micro_batches(range(len(sizes)), rows, longest, config, alone_above)
    assert sorted(flat(micros)) == list(range(len(sizes)))
    for micro in micros:
        assert micro_size is None or len(micro) <= micro_size
        assert len(micro) == 1 or micro_tokens is None or rows[micro].sum() * longest[micro].max() <= micro_tokens
        if alone_above is not None and any(longest[micro] > alone_above):
            assert len(micro) == 1


def test_padded_forwards_hold_examples_of_like_length():
    longest = [10, 100, 11, 99, 12, 98]
    micros = padded_micro_batches(range(6), [2] * 6, longest, BatchConfig(micro_tokens=600))
    assert sorted(map(sorted, micros)) == [[0, 2, 4], [1, 3, 5]]


def test_forwards_of_a_batch_cost_nearly_the_same():
    tokens = log_normal(64)
    micros = micro_batches(range(64), tokens, BatchConfig(micro_tokens=2048))
    most, least = spread(micros, tokens)
    assert most - least <= 0.1


def test_an_example_over_the_budget_runs_alone():
    assert micro_batches([0, 1, 2], [10, 99, 10], BatchConfig(micro_tokens=20)) == [[0, 2], [1]]
    assert sorted(map(len, plan_epoch([10, 99, 10], BatchConfig(tokens=20), 0, 0))) == [1, 2]


def test_a_schedule_is_its_epochs_one_after_the_other_up_to_the_last_step():
    tokens = list(range(1, 30))
    planned = [flat([batch]) for epoch in range(3) for batch in plan_epoch(tokens, BatchConfig(size=8), 5, epoch)]
    schedule = Schedule(tokens, BatchConfig(size=8), 5, epochs=2.5, max_steps=None)
    assert (schedule.per_epoch, schedule.steps) == (4, 10)
    assert [flat([batch]) for batch in schedule] == planned[:10]
    assert [flat([batch]) for batch in schedule] == planned[:10], "it can be read again"
    assert flat([schedule.first]) == planned[0]
    assert len(list(Schedule(tokens, BatchConfig(size=8), 5, epochs=1, max_steps=3))) == 3


def test_lengths_of_examples_are_read_once_or_taken_as_known():
    examples = [miniatures.pair(11, 7, 5, 0), *miniatures.forest()[1:3]]

    class Once(list):
        reads = 0

        def __iter__(self):
            Once.reads += 1
            return super().__iter__()

    assert lengths(Once(examples)).tolist() == [[23, 18, 2], [13, 13, 1], [27, 18, 4]]
    assert Once.reads == 1
    assert lengths([]).shape == (0, 3)

    class Known(list):
        lengths = np.array([[3, 2, 1]], dtype=np.int32)

    assert lengths(Known(examples)).tolist() == [[3, 2, 1]]


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

"""How several processes share an optimiser batch out, each finding the same without a word to the others."""

from __future__ import annotations

from itertools import chain

import miniatures
import numpy as np
import pytest
import torch

from preftune.policy.policy import PolicyModule
from preftune.policy.reference import blank_copy
from preftune.training.batches import BatchConfig, equalised
from preftune.training.blueprint import Blueprint, units
from preftune.training.feed import Feed, Share
from preftune.training.optim import OptimConfig
from preftune.training.processes import Group

RANDOM = np.random.default_rng(0)
# of 60 examples, the tokens of the tree, of its longest path, and two responses
LENGTHS_N3 = np.stack([RANDOM.integers(40, 400, 60), RANDOM.integers(30, 200, 60), np.full(60, 2)], axis=1)
POLICY = PolicyModule(miniatures.build("llama"), "tree")


def shares(size: int, batch: np.ndarray, index: int = 0, **limits: int) -> list[Share]:
    group = Group()
    group.size, group.index = size, index
    feed = Feed(POLICY, BatchConfig(**limits), None, torch.device("cpu"), 0, group)
    return feed.shares(batch, LENGTHS_N3)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_every_example_has_one_process_and_all_do_as_many_forwards(size: int, count: int) -> None:
    batch = RANDOM.permutation(60)[:count]
    found = shares(size, batch, micro_size=3, micro_tokens=700)
    assert len(found) == size
    assert len({len(share.forwards) for share in found}) == 1
    real = [i for share in found for forward in share.real for i in forward]
    assert sorted(real) == sorted(batch.tolist())
    for forward in chain.from_iterable(share.forwards for share in found):
        assert 1 <= len(forward) <= 3
        assert sum(LENGTHS_N3[i, 0] for i in forward) <= 700
    assert sum(share.stand_ins for share in found) >= max(0, size - count)
    assert shares(size, batch, index=size - 1, micro_size=3, micro_tokens=700) == found


def test_processes_compute_about_as_much() -> None:
    found = shares(4, np.arange(60))
    costs = [sum(LENGTHS_N3[i, 0] for forward in share.forwards for i in forward) for share in found]
    assert max(costs) <= 1.05 * min(costs)
    assert not any(share.stand_ins for share in found)


def test_a_stand_in_is_the_cheapest_example_and_comes_last() -> None:
    batch = np.array([4, 9])
    found = shares(3, batch)
    (idle,) = [share for share in found if share.stand_ins]
    assert idle.forwards == [[int(batch[LENGTHS_N3[batch, 0].argmin()])]]
    assert idle.real == []
    assert idle.stands_in(0)


def test_forwards_are_cut_before_any_is_computed_in_vain() -> None:
    assert equalised([[1, 2, 3], [4]], 3, 9) == ([[1, 2], [3], [4]], 0)
    assert equalised([[1], [4]], 4, 9) == ([[1], [4], [9], [9]], 2)
    assert equalised([], 1, 9) == ([[9]], 1)


def test_a_blueprint_has_no_contents_and_keeps_tied_weights_tied() -> None:
    policy = PolicyModule(miniatures.build("llama", tie_word_embeddings=True), "tree")
    drawn = blank_copy(policy, "meta")
    assert all(tensor.is_meta for tensor in (*drawn.parameters(), *drawn.buffers()))
    assert [name for name, _ in drawn.named_parameters()] == [name for name, _ in policy.named_parameters()]
    assert drawn.base.lm_head.weight is drawn.base.model.embed_tokens.weight
    assert not any(tensor.is_meta for tensor in policy.parameters())
    rest, layer = units(policy)
    assert {id(p) for p in rest} == {id(p) for name, p in policy.named_parameters() if ".layers." not in name}
    assert len(layer) == len(list(policy.base.model.layers[0].parameters()))


def test_shared_memory_falls_with_the_number_of_processes_and_what_is_whole_stays() -> None:
    feed, drawn = Feed(POLICY, BatchConfig(), None, torch.device("cpu"), 0), Blueprint.of(POLICY, None, False, None)
    two, eight = (
        drawn.estimate(frozenset(), OptimConfig(), [feed.prepare(miniatures.pairs())], [], True, size)
        for size in (2, 8)
    )
    weights = sum(p.numel() for p in POLICY.parameters()) * 4
    assert two.gradients == pytest.approx(weights / 2, rel=1e-3)
    assert two.optimizer == pytest.approx(weights, rel=1e-3)
    assert eight.optimizer == pytest.approx(weights / 4, rel=1e-3)
    assert two.activations == eight.activations > 2 * weights / 2  # gathered weights, and their gradients

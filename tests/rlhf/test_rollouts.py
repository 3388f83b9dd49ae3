"""What examples carry, and how a round is kept."""

from __future__ import annotations

import math

import miniatures
import numpy as np
import pytest
import torch

from preftune.data.examples import Example, Response
from preftune.errors import PreftuneError
from preftune.objectives.batch import Role
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference
from preftune.rlhf.rollouts import CarriedReference, carrying, read_round, write_round
from preftune.training.batches import BatchConfig
from preftune.training.feed import Feed
from preftune.training.processes import Group


def feed_of(policy, **limits):
    return Feed(policy, BatchConfig(**limits), None, torch.device("cpu"), 0)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_examples_carry_what_a_forward_of_each_response_alone_gives(layout):
    policy, other = (PolicyModule(miniatures.build("qwen3", seed=seed), layout) for seed in (0, 1))
    examples = miniatures.pairs()
    models = {"old_logps": policy, "reference_logps": FrozenReference(other)}
    found = carrying(examples, models, feed_of(policy, micro_size=1), Group())

    for name, module in (("old_logps", policy), ("reference_logps", other)):
        module.use_layout("padded")
        expected = miniatures.separate(module.lm, examples)
        values = np.concatenate([r.token[name] for one in found for r in one.responses])
        assert values == pytest.approx(expected.detach().numpy(), abs=1e-5)
    assert [one.prompt.tobytes() for one in found] == [one.prompt.tobytes() for one in examples]
    for one in found:
        assert all(len(r.token["old_logps"]) == r.length for r in one.responses)


def test_a_carried_reference_gives_back_what_was_carried():
    policy = PolicyModule(miniatures.build("qwen3"), "tree")
    feed = feed_of(policy)
    examples = carrying(miniatures.pairs(), {"reference_logps": policy}, feed, Group())
    micro = feed.prepare(examples)
    with torch.no_grad():
        expected = FrozenReference(policy).logps(micro.batch, examples).logps_K
    torch.testing.assert_close(CarriedReference().logps(micro.batch, examples).logps_K, expected, atol=2e-6, rtol=0)


def test_a_round_reads_back_bit_by_bit(tmp_path):
    token = {
        "old_logps": np.array([-0.1, -1e-30, -3.3333333], np.float32),
        "advantages": np.array([1, 0, 2], np.float32),
    }
    responses = (
        Response(np.array([4, 5, 6], np.int32), Role.RANKED, 0.1 + 0.2, token=token),
        Response(np.array([7], np.int32), Role.BASELINE, token={}),
    )
    examples = [
        Example(np.array([1, 2], np.int32), responses, 9, 0.5, 0.7),
        Example(np.array([3], np.int32), responses),
    ]
    path = tmp_path / "rollouts" / "round-000000.jsonl"
    write_round(path, examples)
    found = read_round(path)
    for one, other in zip(found, examples, strict=True):
        assert (one.row, one.weight, one.confidence) == (other.row, other.weight, other.confidence)
        assert math.isnan(one.gap)
        assert math.isnan(one.responses[1].score)
        assert one.responses[0].score == 0.1 + 0.2
        for name, values in token.items():
            assert one.responses[0].token[name].tobytes() == values.tobytes()


def test_a_damaged_round_is_named(tmp_path):
    path = tmp_path / "round-000000.jsonl"
    path.write_text('{"row": 1}\n')
    with pytest.raises(PreftuneError, match=r"round-000000.jsonl cannot be read"):
        read_round(path)

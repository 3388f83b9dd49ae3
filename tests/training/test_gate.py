from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import miniatures
import numpy as np
import pytest
import torch

from preftune.data.packing import pack
from preftune.errors import PreftuneError
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import AdapterOffReference, FrozenReference
from preftune.training.gate import ExplosionGate, SpikeWatch, check_start
from preftune.training.step import Micro


def micro() -> Micro:
    return Micro(miniatures.pairs(), pack(miniatures.pairs()))


def disturbed(policy: PolicyModule, by: float) -> FrozenReference:
    """A copy of the policy that is not quite one."""
    reference = FrozenReference.copy_of(policy)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in reference.module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=by)
    return reference


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_promise_09_a_copy_of_the_start_passes(precision):
    policy = PolicyModule(miniatures.build("llama"), "tree")
    assert check_start(policy, FrozenReference.copy_of(policy), micro(), precision) == 0


@pytest.mark.parametrize("by", [1e-4, 0.1])
def test_promise_09_a_reference_that_is_not_the_start_stops_the_run(by):
    policy = PolicyModule(miniatures.build("llama"), "tree")
    with pytest.raises(PreftuneError) as stopped:
        check_start(policy, disturbed(policy, by), micro(), "no")
    message = str(stopped.value)
    assert message.startswith("the reference is not the policy's start: on a response of row ")
    assert "nats per token" in message
    assert "at most 1e-05 in this precision" in message
    assert "\n" not in message


def test_promise_09_the_row_that_differs_most_is_named():
    policy = PolicyModule(miniatures.build("llama"), "tree")
    examples = [replace(miniatures.pair(4, 3, 5, seed), row=70 + seed) for seed in range(3)]
    reference = FrozenReference.copy_of(policy)
    read = [{*e.prompt.tolist(), *(t for r in e.responses for t in r.ids.tolist())} for e in examples]
    token = max(set(examples[1].prompt.tolist()) - read[0] - read[2])
    with torch.no_grad():
        reference.module.lm.model.embed_tokens.weight[token] += 1.0
    with pytest.raises(PreftuneError, match="row 71"):
        check_start(policy, reference, Micro(examples, pack(examples)), "no")


@pytest.mark.parametrize("adapter", [False, True])
def test_promise_10_dropout_does_not_trip_the_gate(adapter):
    lm: Any = miniatures.build("llama", attention_dropout=0.5)
    if adapter:
        lm = adapt(lm, ModelConfig(lora=LoraConfig(r=2, dropout=0.5)), seed=0)
    policy = PolicyModule(lm, "tree").train()
    reference = AdapterOffReference(policy, policy) if adapter else FrozenReference.copy_of(policy)
    assert check_start(policy, reference, micro(), "no") <= 1e-6
    assert policy.training
    assert lm.training


def test_promise_09_an_adapter_that_is_trained_already_is_not_the_start():
    lm: Any = adapt(miniatures.build("qwen2"), ModelConfig(lora=LoraConfig(r=2)), seed=0)
    policy = PolicyModule(lm, "tree")
    reference = AdapterOffReference(policy, policy)
    assert check_start(policy, reference, micro(), "no") <= 1e-6
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    with pytest.raises(PreftuneError, match="the reference is not the policy's start"):
        check_start(policy, reference, micro(), "no")


def test_what_is_no_number_does_not_pass():
    policy = PolicyModule(miniatures.build("llama"), "tree")
    with pytest.raises(PreftuneError, match="nan nats"):
        check_start(policy, disturbed(policy, float("nan")), micro(), "no")


def test_a_policy_that_gives_no_numbers_is_told_from_a_reference_that_is_another():
    policy = PolicyModule(miniatures.build("llama"), "tree")
    reference = FrozenReference.copy_of(policy)
    examples = [replace(miniatures.pair(4, 3, 5, seed), row=70 + seed) for seed in range(3)]
    read = [{*e.prompt.tolist(), *(t for r in e.responses for t in r.ids.tolist())} for e in examples]
    token = min(read[1] - read[0] - read[2])
    lm: Any = policy.lm
    with torch.no_grad():
        lm.model.embed_tokens.weight[token] = torch.nan
    with pytest.raises(PreftuneError, match="the policy gives a response of row 71 a log-prob that is not finite"):
        check_start(policy, reference, Micro(examples, pack(examples)), "no")


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_first_loss_that_is_not_finite_is_no_matter_of_the_learning_rate(loss):
    with pytest.raises(PreftuneError) as stopped:
        ExplosionGate(64).check({}, loss, 1, rows=[4, 7])
    message = str(stopped.value)
    assert message.startswith(f"the first loss is {loss} (rows [4, 7]), before anything was trained")
    assert "the objective's settings" in message
    assert "learning_rate" not in message
    assert "\n" not in message


def test_a_later_loss_that_leaves_all_bounds_may_be():
    gate = ExplosionGate(64)
    gate.check({}, 1e6, 1)  # large, but it may be so: the first is the measure
    gate.check({}, 9e7, 2)
    with pytest.raises(
        PreftuneError, match=r"exploded before step 3: .* lower optim\.learning_rate, or look at the obj"
    ):
        gate.check({}, 2e8, 3)


def losses(watch: SpikeWatch, values: Sequence[float], first: int = 1) -> list[int]:
    """The steps of which the watch says something."""
    return [step for step, loss in enumerate(values, first) if watch.check(loss, step, [step]) is not None]


def test_a_spike_is_pointed_out_with_its_rows():
    watch = SpikeWatch()
    ordinary = [0.6 + 0.02 * math.sin(i) for i in range(40)]
    assert losses(watch, ordinary) == []
    said = watch.check(3.0, 41, [9, 7, 7])
    assert said is not None
    assert said.startswith("the loss of step 41 is 3, far above the 0.6")
    assert "(rows [7, 9])" in said
    assert "lower optim.learning_rate" in said
    assert losses(watch, [3.0] * 20, 42) == [], "once is enough for a while"


@pytest.mark.parametrize("seed", range(5))
def test_what_scatters_widely_is_no_spike(seed):
    """Losses of small batches, which are skewed, and fall."""
    random = np.random.default_rng(seed)
    falling = np.linspace(0.7, 0.2, 400) * random.gamma(6.0, 1 / 6.0, 400)
    assert losses(SpikeWatch(), falling.tolist()) == []


def test_a_constant_loss_may_rise_by_half():
    assert losses(SpikeWatch(), [0.5] * 30 + [0.74]) == []
    assert losses(SpikeWatch(), [0.5] * 30 + [0.76]) == [31]


def test_the_first_steps_are_only_looked_at():
    assert losses(SpikeWatch(), [0.5] * 10 + [50.0]) == []

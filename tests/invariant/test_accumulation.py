"""However a batch is cut into forwards, and whichever layout they have: the same training and the same metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import miniatures
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.data.examples import Example
from preftune.objectives import terms
from preftune.objectives.base import Objective, Outcome, State
from preftune.objectives.batch import Batch, LogProbs, pair_indices
from preftune.objectives.registry import Term
from preftune.policy.policy import Layout, PolicyModule
from preftune.policy.reference import FrozenReference
from preftune.training import metrics
from preftune.training.held_out import HeldOut
from preftune.training.optim import OptimConfig, optimizer
from preftune.training.scored import Scored
from preftune.training.step import Micro, Step

BATCH, STEPS, RATE = 16, 3, 3e-4
MIX = [{"name": "dpo", "beta": 0.2, "weight": 0.7}, {"name": "sft", "weight": 0.3}]


@dataclass(frozen=True)
class Centred(Objective):
    """A loss in which each pair is compared with the mean of the batch and of the batches before."""

    couples: ClassVar[bool] = True

    def init(self) -> State:
        return {"mean": torch.zeros(())}

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        assert reference is not None
        ratio_R = policy.sums_R(batch) - reference.sums_R(batch)
        chosen_E, rejected_E = pair_indices(batch)
        delta_E = ratio_R[chosen_E] - ratio_R[rejected_E]
        centre = (delta_E.mean() + state["mean"]) / 2
        after = {"mean": 0.9 * state["mean"] + 0.1 * delta_E.mean().detach()}
        return Outcome(-logsigmoid(0.2 * (delta_E - centre) + 0.1 * delta_E), ratio_R.detach(), after)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def batch_of_pairs(step: int) -> list[Example]:
    """Pairs of quite different lengths and weights."""
    return [
        miniatures.pair(2 + i % 9, 1 + (5 * i + step) % 11, 1 + (3 * i) % 8, 100 * step + i, weight=0.2 + i % 5)
        for i in range(BATCH)
    ]


def cut(examples: Sequence[Example], size: int, layout: Layout) -> list[Micro]:
    pieces = [examples[at : at + size] for at in range(0, len(examples), size)]
    return [Micro(piece, miniatures.batch_of(piece, layout)) for piece in pieces]


@dataclass
class Trained:
    weights: dict[str, Tensor]
    scored: list[Scored]
    evaluated: Mapping[str, Any]


def train(
    accelerator: Accelerator, objective: tuple[Term, ...], size: int, layout: Layout = "tree", **overrides: Any
) -> Trained:
    """Three optimiser steps over batches of 16, in forwards of `size` examples, then an evaluation."""
    lm = miniatures.build("llama", **overrides)
    policy = PolicyModule(lm, layout)
    reference = FrozenReference.copy_of(policy)
    with torch.no_grad():  # policy and reference differ from the start, so that no gradient is alike by symmetry
        for parameter in lm.parameters():
            parameter.mul_(1.02)
    # an epsilon above rounding, or Adam would make whole steps of what is left where a gradient is zero
    optim = optimizer(policy, OptimConfig(eps=1e-5), RATE)
    step = Step(policy, reference, objective, accelerator, seed=0)
    held_out = HeldOut(step, cut(batch_of_pairs(9), size, layout), batch_of_pairs(9))
    states = tuple(term.objective.init() for term in objective)
    held_out.evaluate(states)
    scored = []
    for number in range(STEPS):
        scored.append(step.train(cut(batch_of_pairs(number), size, layout), states, optim, number, 1.0))
        states = scored[-1].states
    return Trained({n: p.detach().clone() for n, p in lm.named_parameters()}, scored, held_out.evaluate(states))


def furthest(first: Trained, second: Trained) -> float:
    return max(float((first.weights[name] - second.weights[name]).abs().max()) for name in first.weights)


OBJECTIVES = {
    "dpo": terms([{"name": "dpo", "beta": 0.2}]),
    "ipo of means": terms([{"name": "ipo", "tau": 0.5, "average": "mean"}]),
    "sft": terms("sft"),
    "dpo and sft": terms(MIX),
    "coupled": (Term("centred", Centred()),),
    "coupled and sft": (Term("centred", Centred(), 0.6), *terms([{"name": "sft", "weight": 0.4}])),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_promise_12_sixteen_forwards_of_one_equal_one_of_sixteen(accelerator, name):
    whole = train(accelerator, OBJECTIVES[name], BATCH)
    start = miniatures.build("llama")
    moved = max(float((whole.weights[n] - 1.02 * p.detach()).abs().max()) for n, p in start.named_parameters())
    assert moved > RATE, "nothing was learnt"
    for size in (1, 5):
        parts = train(accelerator, OBJECTIVES[name], size)
        assert furthest(whole, parts) <= 1e-5
        for one, other in zip(whole.scored, parts.scored, strict=True):
            assert other.loss == pytest.approx(one.loss, rel=1e-5)
            assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
        for one, other in zip(whole.scored[-1].states, parts.scored[-1].states, strict=True):
            assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)


@pytest.mark.parametrize("name", ["dpo and sft", "coupled"])
@pytest.mark.parametrize("size", [BATCH, 3])
def test_promise_13_training_on_trees_equals_training_on_padded_rows(accelerator, name, size):
    trees = train(accelerator, OBJECTIVES[name], size, "tree")
    rows = train(accelerator, OBJECTIVES[name], size, "padded")
    assert furthest(trees, rows) <= 1e-5
    assert trees.evaluated["loss"] == pytest.approx(rows.evaluated["loss"], rel=1e-5)


def test_a_mean_of_means_would_be_seen(accelerator):
    """The mistake that promise 12 is about: each forward's loss as a mean of its own."""
    policy = PolicyModule(miniatures.build("llama"), "tree")
    reference = FrozenReference(PolicyModule(miniatures.build("llama", seed=1), "tree"))
    step = Step(policy, reference, OBJECTIVES["dpo"], accelerator, seed=0)
    micros = cut(batch_of_pairs(0), 3, "tree")
    right = step.evaluate(micros, ({},)).loss
    naive = sum(step.evaluate([micro], ({},)).loss for micro in micros) / len(micros)
    assert abs(right - naive) > 0.05 * right


@pytest.mark.parametrize("name", ["dpo", "ipo of means", "dpo and sft", "coupled"])
def test_promise_11_evaluation_does_not_depend_on_how_it_is_cut(accelerator, name):
    objective = OBJECTIVES[name]
    lm = miniatures.build("llama").double()
    policy = PolicyModule(lm, "tree")
    reference = FrozenReference.copy_of(policy)
    step = Step(policy, reference, objective, accelerator, seed=0)
    examples = [e for number in range(2) for e in batch_of_pairs(number)]
    states = tuple(term.objective.init() for term in objective)
    found = []
    for size, layout in ((32, "tree"), (1, "tree"), (7, "padded"), (1, "padded")):
        policy.use_layout(layout)
        reference.module.use_layout(layout)
        held_out = HeldOut(step, cut(examples, size, layout), examples)
        with torch.no_grad():
            held_out.evaluate(states)
            for parameter in lm.parameters():
                parameter.mul_(1.02)
            found.append(held_out.evaluate(states))
            for parameter in lm.parameters():
                parameter.div_(1.02)
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, value in found[0].items():
            if isinstance(value, dict):
                assert other[key]["counts"] == value["counts"]
                assert other[key]["edges"] == pytest.approx(value["edges"], rel=1e-6, abs=1e-9)
            else:
                assert other[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


def test_promise_11_in_float32_the_cut_shows_in_the_last_digits_alone(accelerator):
    whole, parts = (train(accelerator, OBJECTIVES["dpo"], size) for size in (BATCH, 1))
    for key in ("preference_accuracy", "policy_accuracy", "chosen_length", "rejected_length"):
        assert whole.evaluated[key] == parts.evaluated[key]
    for key in ("loss", "delta", "margin", "chosen_logp_per_token", "chosen_reward"):
        assert parts.evaluated[key] == pytest.approx(whole.evaluated[key], rel=1e-4), key


def test_evaluation_changes_neither_weights_nor_state_nor_mode(accelerator):
    objective = OBJECTIVES["coupled"]
    lm = miniatures.build("llama", attention_dropout=0.5)
    policy = PolicyModule(lm, "tree").train()
    step = Step(policy, FrozenReference.copy_of(policy), objective, accelerator, seed=0)
    micros = cut(batch_of_pairs(0), 4, "tree")
    states = (objective[0].objective.init(),)
    before = [p.detach().clone() for p in lm.parameters()]
    first, second = step.evaluate(micros, states), step.evaluate(micros, states)
    assert first.loss == second.loss, "dropout is on"
    assert first.states is states
    assert policy.training
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(lm.parameters(), before, strict=True))


def test_training_metrics_are_those_of_evaluation(accelerator):
    """What a step reports is what an evaluation of the same pairs would have reported before it."""
    lm = miniatures.build("llama")
    policy = PolicyModule(lm, "tree")
    reference = FrozenReference.copy_of(policy)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(1.02)
    step = Step(policy, reference, OBJECTIVES["dpo"], accelerator, seed=0)
    micros = cut(batch_of_pairs(0), 5, "tree")
    evaluated = step.evaluate(micros, ({},))
    trained = step.train(micros, ({},), optimizer(policy, OptimConfig(), RATE), 0, None)
    assert trained.loss == pytest.approx(evaluated.loss, rel=1e-6)
    one, other = (metrics.summarise(metrics.table(scored.columns)) for scored in (evaluated, trained))
    assert one == pytest.approx(other, rel=1e-6)

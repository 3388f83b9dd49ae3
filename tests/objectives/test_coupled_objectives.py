"""Objectives whose examples depend on each other or on a state, found by discovery: they see the whole optimiser batch,
in any order and however it is cut, and their state changes once per step. Formulas: test_kto.py, test_bco.py,
test_aot.py, test_batch_dpo.py.
"""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from miniatures import build, ids
from torch import Tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import pack
from preftune.objectives import registry
from preftune.objectives.batch import LogProbs, Role
from preftune.objectives.registry import Term
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference
from preftune.training.scored import Scored
from preftune.training.step import Micro, Step

NAMES = [name for name in registry.names() if registry.resolve(name).couples]
KINDS = [(name, kind) for name in NAMES for kind in dict.fromkeys((registry.resolve(name).data, "pairs"))]
# where an example of weight 2 is not two examples in all: a deviation of n - 1, and draws of whole pairs
COUNTING = {"beta_dpo": {"filter_share": 0.0}}


def mean_loss(outcome, objective, batch):
    weight_E = objective.weight_E(batch)
    return (weight_E * outcome.loss_E).sum() / weight_E.sum()


def score(objective, kind, examples, seeds, log_probs):
    """The mean loss, its gradient summed over each response's tokens, by the example's seed, and the state. Examples
    have the log-probs that belong to their seeds, wherever they stand."""
    ones = [pack([example]) for example in examples]
    sides = []
    for side in (1, 2):
        parts = [log_probs(objective, one, 10 * seed + side) for one, seed in zip(ones, seeds, strict=True)]
        sides.append(LogProbs.join(parts))
    batch = pack(examples)
    policy = dataclasses.replace(sides[0], logps_K=sides[0].logps_K.clone().requires_grad_())
    outcome = objective(policy, sides[1], batch, objective.init())
    loss = mean_loss(outcome, objective, batch)
    (gradient_K,) = torch.autograd.grad(loss, policy.logps_K)
    gradient_R = torch.zeros(len(batch.role_R), dtype=torch.float64).index_add(0, batch.response_K, gradient_K)
    by_seed: dict[int, Tensor] = {}
    for index, seed in enumerate(seeds):
        found = gradient_R[batch.example_R == index]
        by_seed[seed] = by_seed.get(seed, torch.zeros_like(found)) + found
    return loss.detach(), by_seed, outcome.state


def assert_same(one, other):
    (loss, gradients, state), (other_loss, other_gradients, other_state) = one, other
    torch.testing.assert_close(other_loss, loss, rtol=1e-9, atol=1e-12)
    for seed, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[seed], gradient, rtol=1e-7, atol=1e-12)
    for name, value in state.items():
        torch.testing.assert_close(other_state[name], value, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1, 3, 0, 2]])
def test_the_order_of_examples_does_not_matter(name, kind, order, examples_for, log_probs):
    objective = registry.build(name)
    examples = examples_for(objective, kind)
    one = score(objective, kind, examples, range(4), log_probs)
    assert any(gradient.any() for gradient in one[1].values())
    assert_same(one, score(objective, kind, [examples[i] for i in order], order, log_probs))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_an_example_of_weight_2_is_two_examples_and_one_of_weight_0_is_none(name, kind, examples_for, log_probs):
    objective = registry.build(name, **COUNTING.get(name, {}))
    plain = [dataclasses.replace(example, weight=1.0) for example in examples_for(objective, kind)]
    doubled = [dataclasses.replace(plain[2], weight=2.0), dataclasses.replace(plain[3], weight=0.0)]
    loss, gradients, state = score(objective, kind, [*plain[:2], *doubled], range(4), log_probs)
    assert not gradients.pop(3).any()
    copies = score(objective, kind, [*plain[:3], plain[2]], [0, 1, 2, 2], log_probs)
    skipped = ("weight", "sd") if name in COUNTING else ()
    state = {key: value for key, value in state.items() if key not in skipped}
    assert_same((loss, gradients, state), copies)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_batch_without_weight_has_a_finite_loss_and_no_gradient(name, kind, examples_for, log_probs):
    objective = registry.build(name)
    examples = [dataclasses.replace(example, weight=0.0) for example in examples_for(objective, kind)]
    batch = pack(examples)
    policy, reference = (log_probs(objective, batch, seed) for seed in (1, 2))
    leaf = policy.logps_K.requires_grad_()
    outcome = objective(policy, reference, batch, objective.init())
    (gradient_K,) = torch.autograd.grad((objective.weight_E(batch) * outcome.loss_E).sum(), leaf)
    assert outcome.loss_E.isfinite().all()
    assert not gradient_K.any()
    assert all(value.isfinite() for value in outcome.state.values())


@pytest.mark.parametrize("name", NAMES)
def test_state_is_a_mapping_of_tensors_that_a_call_leaves_as_it_was(name, batch_for, log_probs):
    objective = registry.build(name)
    batch = batch_for(objective)
    both = [log_probs(objective, batch, seed) for seed in (1, 2)]
    state = objective.init()
    before = {key: value.clone() for key, value in state.items()}
    first, again = (objective(*both, batch, state) for _ in range(2))
    assert all(isinstance(value, Tensor) for value in state.values())
    assert all(torch.equal(state[key], value) for key, value in before.items())
    assert torch.equal(first.loss_E, again.loss_E)  # a pure function of inputs and state
    assert all(torch.equal(first.state[key], again.state[key]) for key in state)
    assert not state or any(not torch.equal(first.state[key], state[key]) for key in state)


@pytest.mark.parametrize("name", [name for name in NAMES if registry.resolve(name).least_examples > 1])
def test_a_batch_of_one_is_refused_in_one_sentence(name, examples_for, log_probs):
    objective = registry.build(name)
    batch = pack(examples_for(objective, "pairs")[:1])
    with pytest.raises(
        ValueError, match=r"needs 2 examples for that, but the batch holds 1: raise batch\.size$"
    ) as raised:
        objective(*(log_probs(objective, batch, seed) for seed in (1, 2)), batch, objective.init())
    assert "\n" not in str(raised.value)


# --- through the training step ----------------------------------------------------------------------------------------


def sixteen(objective, kind) -> list[Example]:
    """Examples of ordinary lengths and various weights."""
    found = []
    for row in range(16):
        roles = (Role.CHOSEN, Role.REJECTED) if kind == "pairs" else (Role.LABELLED,)
        roles += (Role.BASELINE,) if objective.baselines else ()
        answers = tuple(
            Response(ids(2 + (5 * row + 3 * i) % 6, 100 * row + i), role, float(row % 3 > 0))
            for i, role in enumerate(roles)
        )
        found.append(Example(ids(2 + row % 5, 100 * row + 50), answers, row=row, weight=(1.0, 0.5, 2.0)[row % 3]))
    return found


class Trial:
    """A policy of a few thousand weights, a reference near it, and a step over both."""

    def __init__(self, objective):
        lm, other = build("llama"), build("llama", noise=0.245)
        accelerator = Accelerator(cpu=True)
        self.policy = accelerator.prepare(PolicyModule(lm, "tree"))
        self.objective = objective
        reference = FrozenReference(PolicyModule(other, "tree"))
        self.step = Step(self.policy, reference, (Term("coupled", objective, 1.0),), accelerator, seed=3)

    def micros(self, kind, cut):
        examples, starts = sixteen(self.objective, kind), np.cumsum([0, *cut])
        parts = [examples[start : start + size] for start, size in zip(starts, cut, strict=False)]
        return [Micro(part, pack(part)) for part in parts]

    def train(self, kind, cut, state=None) -> tuple[Scored, dict[str, Tensor]]:
        """Scores and gradients of one step, which leaves the weights as they are."""

        class Keep(torch.optim.SGD):
            gradients: ClassVar[dict[str, Tensor]] = {}

            def step(keep, closure=None):  # noqa: N805
                Keep.gradients = {n: p.grad.clone() for n, p in self.policy.named_parameters() if p.grad is not None}

        states = (self.objective.init() if state is None else state,)
        optimizer = Keep(self.policy.parameters(), lr=0.0)
        return self.step.train(self.micros(kind, cut), states, optimizer, 0, None), Keep.gradients


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_sixteen_micro_batches_of_one_are_one_of_sixteen(name, kind):
    trial = Trial(registry.build(name))
    whole, gradients = trial.train(kind, [16])
    parts, others = trial.train(kind, [1] * 16)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5, abs=1e-7)
    assert parts.states[0].keys() == whole.states[0].keys() == trial.objective.init().keys()
    for key, value in whole.states[0].items():
        torch.testing.assert_close(parts.states[0][key], value, rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert largest > 1e-4
    for key, gradient in gradients.items():
        assert float((gradient - others[key]).abs().max()) <= 1e-5 * largest, key


@pytest.mark.parametrize("name", [name for name in NAMES if registry.build(name).init()])
def test_state_changes_once_per_step_and_never_in_evaluation(name):
    trial = Trial(registry.build(name))
    kind = trial.objective.data
    first, _ = trial.train(kind, [4, 12])
    second, _ = trial.train(kind, [16], first.states[0])
    moved = [key for key, value in second.states[0].items() if not torch.equal(value, first.states[0][key])]
    assert moved
    if "step" in second.states[0]:
        assert [int(scored.states[0]["step"]) for scored in (first, second)] == [1, 2]
    before = {key: value.clone() for key, value in second.states[0].items()}
    scored = trial.step.evaluate(trial.micros(kind, [4, 12]), second.states)
    assert scored.states is second.states
    assert all(torch.equal(second.states[0][key], value) for key, value in before.items())

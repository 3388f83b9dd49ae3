"""Objectives whose examples depend on each other see the whole optimiser batch, however it is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator
from miniatures import build, pair
from torch import Tensor

from preftune.data.packing import pack
from preftune.objectives.base import Objective, Outcome
from preftune.objectives.batch import Batch, LogProbs, pair_indices
from preftune.objectives.registry import Term
from preftune.policy.policy import PolicyModule
from preftune.training.scored import Scored
from preftune.training.step import Micro, Step


@dataclass(frozen=True)
class AboveTheMean(Objective):
    """Each pair's difference against the mean difference of the batch, with a running mean as state."""

    reference: ClassVar[bool] = False
    couples: ClassVar[bool] = True

    def init(self) -> Mapping[str, Tensor]:
        return {"mean": torch.zeros(())}

    def __call__(
        self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: Mapping[str, Tensor]
    ) -> Outcome:
        chosen, rejected = pair_indices(batch)
        sums_R = policy.sums_R(batch)
        difference_E = sums_R[chosen] - sums_R[rejected]
        loss_E = torch.nn.functional.softplus(difference_E.mean() - difference_E) + difference_E.square() / 100
        return Outcome(loss_E, sums_R.detach(), {"mean": 0.9 * state["mean"] + 0.1 * difference_E.detach().mean()})


EXAMPLES = [pair(5, 4, 6, 0), pair(3, 7, 2, 1, weight=2.0), pair(8, 1, 5, 2), pair(2, 6, 6, 3), pair(9, 3, 4, 4)]


def one_step(cut: list[int], dropout: float = 0.0) -> tuple[Scored, dict[str, Tensor]]:
    """Scores and gradients of one step over micro-batches of these sizes."""
    lm = build("llama", attention_dropout=dropout)
    accelerator = Accelerator(cpu=True)
    policy = accelerator.prepare(PolicyModule(lm, "tree"))
    term = Term("above", AboveTheMean(), 1.0)
    step = Step(policy, None, (term,), accelerator, seed=3)
    micros, at = [], 0
    for size in cut:
        micros.append(Micro(EXAMPLES[at : at + size], pack(EXAMPLES[at : at + size])))
        at += size

    class Keep(torch.optim.SGD):
        gradients: ClassVar[dict[str, Tensor]] = {}

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            Keep.gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}

    scored = step.train(micros, (term.objective.init(),), Keep(policy.parameters(), lr=0.0), 0, None)
    return scored, Keep.gradients


@pytest.mark.parametrize("cut", [[1, 1, 1, 1, 1], [2, 3], [4, 1]])
def test_cutting_a_batch_changes_nothing(cut: list[int]) -> None:
    whole, whole_gradients = one_step([5])
    parts, gradients = one_step(cut)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    torch.testing.assert_close(parts.states[0]["mean"], whole.states[0]["mean"], rtol=1e-6, atol=1e-6)
    largest = max(float(g.abs().max()) for g in whole_gradients.values())
    assert largest > 1e-3
    for name, gradient in whole_gradients.items():
        assert float((gradient - gradients[name]).abs().max()) <= 1e-5 * largest, name


def test_gradients_are_those_of_the_whole_loss() -> None:
    scored, gradients = one_step([2, 3])
    lm = build("llama")
    policy = PolicyModule(lm, "tree")
    batch = pack(EXAMPLES)
    from preftune.policy.policy import logps

    outcome = AboveTheMean()(logps(policy, batch), None, batch, AboveTheMean().init())
    loss = (outcome.loss_E * batch.weight_E).sum() / batch.weight_E.sum()
    loss.backward()
    assert scored.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_both_passes_draw_the_same_dropout() -> None:
    """A forward that is repeated with another mask would send gradients to places that the loss never saw."""
    first, gradients = one_step([2, 3], dropout=0.3)
    again, repeated = one_step([2, 3], dropout=0.3)
    without, _ = one_step([2, 3])
    assert first.loss == again.loss
    assert first.loss != pytest.approx(without.loss, rel=1e-3)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, repeated[name], rtol=0, atol=0)

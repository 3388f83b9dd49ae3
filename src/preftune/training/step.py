"""One optimiser step: batches -> log-probs -> objective -> gradients. The only place that reduces.

Weights of examples depend on the batch alone, so their sums over micro-batches and processes are known before the first
backward: cutting a batch into micro-batches changes nothing but memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from preftune.data.examples import Example
from preftune.data.packing import PackedBatch
from preftune.errors import PreftuneError
from preftune.objectives.base import LogProbs, Outcome, State
from preftune.objectives.registry import Term
from preftune.policy.policy import logps
from preftune.policy.reference import Reference
from preftune.training.batches import DROPOUT, torch_seed
from preftune.training.metrics import columns

States = tuple[State, ...]


@dataclass(frozen=True)
class Micro:
    """One forward's worth of a batch: the examples, and the same as tensors on the policy's device."""

    examples: Sequence[Example]
    batch: PackedBatch


@dataclass(frozen=True)
class Scored:
    """An optimiser batch as the objective sees it.

    Attributes:
        loss: the weighted mean of each term over the whole batch, summed over terms.
        columns: values of each example, one entry for each micro-batch (see `metrics`).
        states: objective states after the batch.
        gradient_norm: before clipping; None in evaluation.
    """

    loss: float
    columns: list[dict[str, Tensor]]
    states: States
    gradient_norm: float | None = None


class Step:
    """Scores batches under a policy, a reference and an objective, and takes optimiser steps.

    Args:
        policy: what Accelerate prepared.
        reference: None if no term compares with one.
        terms: the objective.
        accelerator: wraps precision and processes.
        seed: of the run; dropout is a function of (seed, step, micro-batch, process).
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: Reference | None,
        terms: tuple[Term, ...],
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self.policy, self.reference, self.terms = policy, reference, terms
        self.accelerator, self.seed = accelerator, seed
        self.needs = frozenset[str]().union(*(term.objective.needs for term in terms))

    def train(
        self,
        micros: Sequence[Micro],
        states: States,
        optimizer: torch.optim.Optimizer,
        step: int,
        max_grad_norm: float | None,
    ) -> Scored:
        """One optimiser step.

        Raises:
            PreftuneError: if the loss or the gradient is not finite; the weights are as they were before the step.
        """
        totals = self._totals(micros)
        self.policy.train()
        pieces, loss, after = [], 0.0, states
        for number, micro in enumerate(micros):
            torch.manual_seed(torch_seed(self.seed, DROPOUT, step, number, self.accelerator.process_index))
            last = number == len(micros) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.policy):
                value, values, after = self._score(micro, totals, states)
                self.accelerator.backward(value * self.accelerator.num_processes)
            loss += float(value.detach())
            pieces.append(values)
        norm = self._gradient_norm(max_grad_norm)
        if not (torch.isfinite(norm) or self.accelerator.mixed_precision == "fp16"):
            rows = sorted({example.row for micro in micros for example in micro.examples})
            raise PreftuneError(
                f"the gradient of step {step + 1} is not finite (loss {loss:.4g}, rows {rows[:8]}): the step was not "
                "taken; lower optim.learning_rate, or look at these rows"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return Scored(loss, pieces, after, float(norm))

    @torch.no_grad()
    def evaluate(self, micros: Sequence[Micro], states: States) -> Scored:
        """The same without gradient, dropout or change of state, over any number of micro-batches."""
        totals = self._totals(micros)
        training = self.policy.training
        self.policy.eval()
        try:
            pieces, loss = [], 0.0
            for micro in micros:
                value, values, _ = self._score(micro, totals, states)
                loss += float(value)
                pieces.append(values)
        finally:
            self.policy.train(training)
        return Scored(loss, pieces, states)

    def _score(
        self, micro: Micro, totals: Sequence[Tensor], states: States
    ) -> tuple[Tensor, dict[str, Tensor], States]:
        """Share of the batch's loss that falls to one micro-batch."""
        batch = micro.batch
        reference = None if self.reference is None else self.reference.logps(batch, micro.examples)
        policy = logps(self.policy, batch, self.needs)
        outcomes = [
            self._outcome(term, policy, reference, batch, state) for term, state in zip(self.terms, states, strict=True)
        ]
        loss = policy.logps_K.new_zeros(())
        for term, outcome, total in zip(self.terms, outcomes, totals, strict=True):
            weight_E = term.objective.weight_E(batch)
            loss = loss + term.weight * (outcome.loss_E * weight_E).sum() / total
        return loss, columns(policy, reference, outcomes[0], batch), tuple(outcome.state for outcome in outcomes)

    @staticmethod
    def _outcome(term: Term, policy: LogProbs, reference: LogProbs | None, batch: PackedBatch, state: State) -> Outcome:
        compared = reference if term.objective.reference else None
        return term.objective(policy, compared, batch, state)

    def _totals(self, micros: Sequence[Micro]) -> list[Tensor]:
        """Sum of each term's example weights over micro-batches and processes."""
        totals = []
        for term in self.terms:
            total = torch.stack([term.objective.weight_E(micro.batch).sum() for micro in micros]).sum()
            totals.append(self.accelerator.reduce(total, "sum").clamp(min=1e-12))
        return totals

    def _gradient_norm(self, max_grad_norm: float | None) -> Tensor:
        limit = float("inf") if max_grad_norm is None else max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), limit)
        return torch.as_tensor(norm)


Prepare = Callable[[Sequence[Example]], Micro]

"""One optimiser step: batches -> log-probs -> objective -> gradients. The only place that reduces.

Weights of examples depend on the batch alone, so their sums over micro-batches and processes are known before the first
backward: cutting a batch into micro-batches changes nothing but memory.

No value of a step is read while it runs, since that would make a GPU wait: they stay on the device until somebody asks
for them, and the device itself sees to it that a step that is not finite is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from preftune.data.examples import Example
from preftune.data.packing import PackedBatch, join
from preftune.objectives.base import Outcome
from preftune.objectives.batch import Batch, LogProbs
from preftune.objectives.registry import Term
from preftune.policy.policy import logps, rewards
from preftune.policy.reference import Reference
from preftune.training.batches import DROPOUT, torch_seed
from preftune.training.engine import whole
from preftune.training.exchange import exchanged
from preftune.training.metrics import Seen, observe
from preftune.training.processes import current
from preftune.training.scored import Scored, States, fetch

WITH_GRADIENT = ("logps_K", "kl_K", "reward_R")  # the fields of LogProbs through which objectives reach the policy
HEEDING = ("cpu", "cuda")  # where fused optimisers look at the flag that holds a step back


@dataclass(frozen=True)
class Micro:
    """One forward's worth of a batch: the examples, and the same as tensors on the policy's device. A stand-in is
    computed only because other processes have as many forwards: it counts for nothing."""

    examples: Sequence[Example]
    batch: PackedBatch
    stand_in: bool = False


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
        self.scaled = accelerator.mixed_precision == "fp16"
        self.group = current()
        self.failed: Tensor | None = None  # 1 once a gradient was not finite, and from then on

    def train(
        self,
        micros: Sequence[Micro],
        states: States,
        optimizer: torch.optim.Optimizer,
        step: int,
        max_grad_norm: float | None,
    ) -> Scored:
        """One optimiser step: `gradient`, then `take`."""
        scored = self.gradient(micros, states, step, max_grad_norm)
        self.take(optimizer, scored)
        return scored

    def gradient(self, micros: Sequence[Micro], states: States, step: int, max_grad_norm: float | None) -> Scored:
        """Gradients of an optimiser batch, clipped; no weight has changed when this returns."""
        totals = self._totals(micros)
        self.policy.train()
        if any(term.objective.couples for term in self.terms):
            losses, seen, after = self._backward_coupled(micros, totals, states, step)
        else:
            losses, seen = self._backward_apart(micros, totals, states, step)
            after = states
        norm = self._gradient_norm(max_grad_norm)
        return Scored(losses, seen, after, norm, step, scaled=self.scaled, **_counts(micros))

    def take(self, optimizer: torch.optim.Optimizer, scored: Scored) -> None:
        """Change the weights by the gradients of `scored`; they stay, now and in all later steps, if a gradient was
        not finite.

        Raises:
            PreftuneError: if the gradient is not finite and only the host can keep the optimiser from its step;
                otherwise `Scored.require_finite` says so, whenever it is asked.
        """
        self._hold_back(optimizer, scored)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _hold_back(self, optimizer: torch.optim.Optimizer, scored: Scored) -> None:
        """Keep the optimiser from a step that is not finite, and from all later ones. Fused optimisers read a flag on
        the device, which is how loss scalers speak to them; for others the host must read the norm."""
        if self.scaled or scored.norm is None:
            return
        inner: Any = getattr(optimizer, "optimizer", optimizer)  # what Accelerate wraps
        heeds = getattr(inner, "_step_supports_amp_scaling", False) and scored.norm.device.type in HEEDING
        if not heeds:  # torch's kernel for Apple GPUs takes the flag and does not look at it
            scored.require_finite()
            return
        failed = (~torch.isfinite(scored.norm)).float()
        self.failed = failed if self.failed is None else torch.maximum(self.failed, failed)
        inner.found_inf = self.failed

    @torch.no_grad()
    def evaluate(self, micros: Sequence[Micro], states: States) -> Scored:
        """The same without gradient, dropout or change of state, over any number of micro-batches."""
        totals, training = self._totals(micros), self.policy.training
        losses, seen = list[Tensor](), list[Seen]()
        self.policy.eval()
        try:
            if any(term.objective.couples for term in self.terms):
                policy, reference, batch, _ = self._everything(micros, [self._policy(micro) for micro in micros])
                loss, outcomes = self._loss(policy, reference, batch, totals, states)
                if self.group.main:  # all processes have found the same
                    losses.append(loss)
                    seen.append(observe(policy, reference, outcomes[0], batch))
            else:  # one forward after the other: there may be many
                for micro in micros:
                    policy, reference = self._policy(micro), self._reference(micro)
                    if not micro.stand_in:
                        loss, outcomes = self._loss(policy, reference, micro.batch, totals, states)
                        losses.append(loss)
                        seen.append(observe(policy, reference, outcomes[0], micro.batch))
        finally:
            self.policy.train(training)
        return Scored(tuple(losses), tuple(seen), states)

    def whole(self, many: Sequence[Scored]) -> list[Scored]:
        """The same on the host, the parts of all processes put together; to be asked for by all of them at once."""
        found = fetch(many)
        if self.group.size == 1:
            return found
        parts = self.group.gathered([replace(one, states=()) for one in found])
        return [one.with_parts(of_all) for one, of_all in zip(found, zip(*parts, strict=True), strict=True)]

    def _backward_apart(
        self, micros: Sequence[Micro], totals: Sequence[Tensor], states: States, step: int
    ) -> tuple[tuple[Tensor, ...], tuple[Seen, ...]]:
        """Gradients where examples do not depend on each other: one forward and backward for each micro-batch."""
        losses, pieces = list[Tensor](), list[Seen]()
        for number, micro in enumerate(micros):
            self._seed(step, number)
            reference = self._reference(micro)
            with self._syncing(number, micros):
                policy = self._policy(micro)
                if micro.stand_in:
                    self.accelerator.backward(_nothing(policy))
                    continue
                value, outcomes = self._loss(policy, reference, micro.batch, totals, states)
                self.accelerator.backward(value * self.accelerator.num_processes)
            losses.append(value.detach())
            pieces.append(observe(policy, reference, outcomes[0], micro.batch))
        return tuple(losses), tuple(pieces)

    def _backward_coupled(
        self, micros: Sequence[Micro], totals: Sequence[Tensor], states: States, step: int
    ) -> tuple[tuple[Tensor, ...], tuple[Seen, ...], States]:
        """Gradients where examples depend on each other: the objective sees the whole batch at once, that of all
        processes, from a pass without gradient; then each forward is repeated with its seed and its targets' gradients
        are sent back."""
        found = []
        with torch.no_grad():
            for number, micro in enumerate(micros):
                self._seed(step, number)
                found.append(self._policy(micro))
        policy, reference, batch, before = self._everything(micros, found)
        policy, leaves = _as_leaves(policy)
        value, outcomes = self._loss(policy, reference, batch, totals, states)
        gradients = dict(
            zip(leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), strict=True)
        )
        at = dict(before)
        for number, micro in enumerate(micros):
            self._seed(step, number)
            with self._syncing(number, micros):
                again = self._policy(micro)
                pulled = _nothing(again) if micro.stand_in else again.logps_K.new_zeros(())
                for name, gradient in gradients.items() if not micro.stand_in else ():
                    size = len(getattr(again, name))
                    pulled = pulled + (getattr(again, name) * gradient[at[name] : at[name] + size]).sum()
                    at[name] += size
                self.accelerator.backward(pulled * self.accelerator.num_processes)
        after = tuple(outcome.state for outcome in outcomes)
        if not self.group.main:  # all processes have found the same
            return (), (), after
        return (value.detach(),), (observe(policy, reference, outcomes[0], batch),), after

    def _everything(
        self, micros: Sequence[Micro], found: Sequence[LogProbs]
    ) -> tuple[LogProbs, LogProbs | None, Batch, dict[str, int]]:
        """The forwards of all processes as one (see `exchanged`)."""
        references = [self._reference(micro) for micro in micros]
        real = [number for number, micro in enumerate(micros) if not micro.stand_in]
        own = None
        if real:
            reference = [one for number in real if (one := references[number]) is not None]
            own = (
                LogProbs.join([found[number] for number in real]),
                LogProbs.join(reference) if reference else None,
                join([micros[number].batch for number in real]),
            )
        return exchanged(self.group, own, found[0].logps_K.device)

    def _loss(
        self, policy: LogProbs, reference: LogProbs | None, batch: Batch, totals: Sequence[Tensor], states: States
    ) -> tuple[Tensor, list[Outcome]]:
        """What these examples add to the loss of the whole optimiser batch."""
        loss, outcomes = policy.logps_K.new_zeros(()), []
        for term, total, state in zip(self.terms, totals, states, strict=True):
            outcome = term.objective(policy, reference if term.objective.reference else None, batch, state)
            loss = loss + term.weight * (outcome.loss_E * term.objective.weight_E(batch)).sum() / total
            outcomes.append(outcome)
        return loss, outcomes

    def _policy(self, micro: Micro) -> LogProbs:
        if "reward_R" in self.needs:
            return rewards(self.policy, micro.batch)
        other = None
        if "kl_K" in self.needs:
            assert self.reference is not None  # what needs it compares with a reference
            other = self.reference.logits(micro.batch, micro.examples)
        return logps(self.policy, micro.batch, self.needs, other)

    def _reference(self, micro: Micro) -> LogProbs | None:
        return None if self.reference is None else self.reference.logps(micro.batch, micro.examples)

    def _totals(self, micros: Sequence[Micro]) -> list[Tensor]:
        """Sum of each term's example weights over micro-batches and processes; 1 if all are 0, as the loss then is."""
        totals = []
        for term in self.terms:
            # of a stand-in none, but its tensor says on which device and in which precision
            every = [(term.objective.weight_E(micro.batch).sum(), not micro.stand_in) for micro in micros]
            total = torch.stack([weight * counts for weight, counts in every]).sum()
            total = self.accelerator.reduce(total, "sum")
            totals.append(torch.where(total == 0, torch.ones_like(total), total))
        return totals

    def _seed(self, step: int, number: int) -> None:
        """Dropout as a function of its place, whatever was drawn before."""
        torch.manual_seed(torch_seed(self.seed, DROPOUT, step, number, self.accelerator.process_index))

    def _syncing(self, number: int, micros: Sequence[Micro]) -> AbstractContextManager[Any]:
        """Processes exchange gradients in the last backward of a step only; where weights are sharded, in each, because
        gradients that wait would have to be whole."""
        last = number == len(micros) - 1 or self.accelerator.is_fsdp2
        return nullcontext() if last else self.accelerator.no_sync(self.policy)

    def _gradient_norm(self, max_grad_norm: float | None) -> Tensor:
        limit = float("inf") if max_grad_norm is None else max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), limit)
        return whole(torch.as_tensor(norm))


def _counts(micros: Sequence[Micro]) -> dict[str, Any]:
    """What `Scored` says of the size of a batch."""
    real = [micro for micro in micros if not micro.stand_in]
    return {
        "rows": tuple(example.row for micro in real for example in micro.examples),
        "tokens": sum(micro.batch.real_tokens for micro in real),
        "computed": sum(micro.batch.tokens for micro in micros),
    }


def _nothing(found: LogProbs) -> Tensor:
    """Zero, which depends on everything that a forward gave."""
    return torch.stack([0 * v.sum() for name in WITH_GRADIENT if (v := getattr(found, name)) is not None]).sum()


def _as_leaves(found: LogProbs) -> tuple[LogProbs, dict[str, Tensor]]:
    """The same values, those that carry gradient as leaves of their own; and these leaves by name."""
    values = {name: getattr(found, name) for name in WITH_GRADIENT}
    leaves = {name: value.detach().requires_grad_() for name, value in values.items() if value is not None}
    return replace(found, **leaves), leaves

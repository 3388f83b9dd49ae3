"""What stops a run: a reference that is not the policy's start, and training that explodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import nn

from preftune.errors import PreftuneError
from preftune.policy.policy import logps
from preftune.policy.reference import Reference
from preftune.training.scored import UNTRAINED
from preftune.training.step import Micro

# Nats per response token by which two forwards of the same weights may differ, by precision of the computation.
TOLERANCE = {"no": 1e-5, "bf16": 2e-2, "fp16": 2e-3}

# A loss this many times the first one (or 1, if that is more) does not come back.
EXPLOSION = 100.0

# A spike stands this many spreads above the median of the last losses, and half as high again; single batches of few
# pairs scatter widely. Of those that follow soon after, nothing is said.
SPIKE, SPIKE_LEAST, SPIKE_MEMORY, SPIKE_QUIET = 10.0, 16, 64, 50


def check_start(policy: nn.Module, reference: Reference, micro: Micro, precision: str) -> float:
    """Largest difference between policy and reference on a response, in nats per token.

    Args:
        policy: the policy as prepared, at global step 0.
        reference: declared to be a copy of the policy's start.
        micro: examples to compare on.
        precision: Accelerate's name of the precision.

    Raises:
        PreftuneError: if they differ by more than the precision explains, or the policy gives no numbers.
    """
    training = policy.training
    policy.eval()
    with torch.no_grad():
        ours = logps(policy, micro.batch).sums_R(micro.batch)
        theirs = reference.logps(micro.batch, micro.examples).sums_R(micro.batch)
    policy.train(training)
    gap_R = (ours - theirs).abs() / micro.batch.length_R
    worst = int(gap_R.argmax())
    gap = float(gap_R[worst])
    if not torch.isfinite(ours).all():
        row = micro.examples[int(micro.batch.example_R[int((~torch.isfinite(ours)).nonzero()[0])])].row
        raise PreftuneError(
            f"the policy gives a response of row {row} a log-prob that is not finite, before anything was trained: its "
            "weights are too large for this precision, take model.dtype=fp32 and train.precision=fp32, or another model"
        )
    if not gap <= TOLERANCE[precision]:
        row = micro.examples[int(micro.batch.example_R[worst])].row
        raise PreftuneError(
            f"the reference is not the policy's start: on a response of row {row} they differ by {gap:.2g} nats per "
            f"token (at most {TOLERANCE[precision]:g} in this precision): check model, adapter and reference.path"
        )
    return gap


class ExplosionError(PreftuneError):
    """The weights that gave this loss are of no use any more."""


class ExplosionGate:
    """Stops a run that will not come back: a loss beyond all bounds, or a policy that has come to know less of its own
    data than a uniform guess (norms can keep both loss and gradients of such a policy finite).

    A policy that begins near a uniform guess (a scratch model) is not held to the second.
    """

    def __init__(self, vocabulary: int | None) -> None:
        """`vocabulary` is the number of token ids; None if it is not known."""
        self.guess = None if vocabulary is None else -math.log(vocabulary)
        self.first_loss: float | None = None
        self.start: float | None = None

    def check(self, found: Mapping[str, object], loss: float, step: int, rows: Sequence[int] = ()) -> None:
        """Compare a batch, as it was before optimiser step `step` (from 1), with the first one.

        Args:
            found: metrics of the batch.
            loss: of the batch.
            step: number of the optimiser step.
            rows: of the batch's examples, for the message.

        Raises:
            PreftuneError: if the first loss is not finite.
            ExplosionError: if a loss is more than 100 times the first one, or if chosen and rejected responses are both
                less likely than random tokens.
        """
        if self.first_loss is None:
            self.first_loss = loss
            if not math.isfinite(loss):
                where = f" (rows {sorted(set(rows))[:8]})" if rows else ""
                raise PreftuneError(f"the first loss is {loss}{where}, before anything was trained: {UNTRAINED}")
        if abs(loss) > EXPLOSION * max(1.0, abs(self.first_loss)):
            raise ExplosionError(
                f"training exploded before step {step}: the loss is {loss:.3g}, and was {self.first_loss:.3g} in the "
                "first: lower optim.learning_rate, or look at the objective's settings"
            )
        names = ("chosen_logp_per_token", "rejected_logp_per_token")
        known = [value for name in names if isinstance(value := found.get(name), float)]
        if self.guess is None or not known:
            return
        best = max(known)
        if self.start is None:
            self.start = best
        if self.start > 0.7 * self.guess and not best > 0.98 * self.guess:
            raise ExplosionError(
                f"training exploded before step {step}: the policy gives its data {best:.3g} nats per token, a uniform "
                f"guess {self.guess:.3g}, its start {self.start:.3g}: lower optim.learning_rate"
            )


class SpikeWatch:
    """Says so when the loss of a batch stands far above those before it.

    Attributes:
        losses: of the last steps, for a checkpoint.
        said: the step of the last warning.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.said = -SPIKE_QUIET

    def check(self, loss: float, step: int, rows: Sequence[int]) -> str | None:
        """A warning, if there is reason for one.

        Args:
            loss: of the batch.
            step: number of the optimiser step (from 1).
            rows: of the batch's examples.
        """
        before = self.losses[-SPIKE_MEMORY:]
        self.losses = [*before, loss][-SPIKE_MEMORY:]
        if len(before) < SPIKE_LEAST or step - self.said < SPIKE_QUIET:
            return None
        middle = median(before)
        spread = 1.4826 * median(abs(value - middle) for value in before)  # a standard deviation, for normal losses
        if loss - middle <= max(SPIKE * spread, 0.5 * abs(middle)):
            return None
        self.said = step
        return (
            f"the loss of step {step} is {loss:.3g}, far above the {middle:.3g} of the steps before (rows "
            f"{sorted(set(rows))[:8]}): look at these rows; if it happens again, lower optim.learning_rate"
        )

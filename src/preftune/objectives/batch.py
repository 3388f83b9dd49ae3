"""What objectives read: the batch's roles, labels and weights, and the log-probs of its targets.

Tensor names carry their shape: K targets (response tokens), R responses, E examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor


class Role(IntEnum):
    """What a response is to its example."""

    CHOSEN = 0  # the better one of a pair, or a demonstration
    REJECTED = 1  # the worse one of a pair
    RANKED = 2  # one of n, ordered or rewarded by its score
    LABELLED = 3  # unpaired, judged good (score 1) or bad (score 0)
    BASELINE = 4  # a mismatched response that only serves to estimate a baseline (KTO)


class Batch(Protocol):
    """What an objective may read of a batch; `data.packing.PackedBatch` has it all."""

    @property
    def response_K(self) -> Tensor:
        """The response that each target belongs to."""

    @property
    def example_R(self) -> Tensor:
        """The example that each response belongs to."""

    @property
    def role_R(self) -> Tensor:
        """A `Role` for each response."""

    @property
    def score_R(self) -> Tensor:
        """Label, rank or reward of each response; NaN where there is none."""

    @property
    def length_R(self) -> Tensor:
        """Targets of each response."""

    @property
    def weight_E(self) -> Tensor:
        """Weight of each example in the loss."""

    @property
    def confidence_E(self) -> Tensor:
        """Probability that chosen is better, per example; 1 where the data does not say."""

    @property
    def gap_E(self) -> Tensor:
        """Rated difference between chosen and rejected; NaN where there is none."""

    @property
    def row_E(self) -> Tensor:
        """Index of each example's record in its source, whatever the batch; -1 where it is not known."""

    @property
    def token(self) -> Mapping[str, Tensor]:
        """Further values per target (old log-probs, advantages, returns), each of shape K."""

    @property
    def at_hand(self) -> Batch | None:
        """The same batch on the host, where a question about it makes no device wait (see `at_hand`); None if it is
        there."""


@dataclass(frozen=True)
class LogProbs:
    """What a model says about the targets of a batch.

    Attributes:
        logps_K: log-probability of each target token, in nats, float32 or better.
        log_sum_p2_K: log of the sum of squared probabilities over the vocabulary (only for objectives that need it).
        entropy_K: entropy of the next-token distribution, in nats (only for objectives that need it).
        kl_K: KL divergence of the reference's next-token distribution from the policy's, KL(reference || policy), in
            nats, with gradient (only for objectives that need it; the reference must be live).
        reward_R: scalar head's value of each response (only for objectives that train a reward model).
        value_K: scalar head's value before each target: what a value network expects of the rest of the response.
    """

    logps_K: Tensor
    log_sum_p2_K: Tensor | None = None
    entropy_K: Tensor | None = None
    kl_K: Tensor | None = None
    reward_R: Tensor | None = None
    value_K: Tensor | None = None

    @classmethod
    def join(cls, parts: Sequence[LogProbs]) -> LogProbs:
        """Log-probs of several batches as those of one."""

        def cat(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        return parts[0] if len(parts) == 1 else cls(**{f.name: cat(f.name) for f in fields(cls)})  # type: ignore[arg-type]

    def sums_R(self, batch: Batch) -> Tensor:
        """Log-probability of each whole response, in nats, shape R. Summed in float32 or better."""
        sums_R = torch.zeros(len(batch.length_R), dtype=self.logps_K.dtype, device=self.logps_K.device)
        return sums_R.index_add(0, batch.response_K, self.logps_K)


@dataclass(frozen=True)
class PlainBatch:
    """What an objective reads of a batch, and nothing else: plain tensors, or several batches joined. Fields as in
    `Batch`; examples are counted from 0 as `row_E` if that is not given."""

    response_K: Tensor
    example_R: Tensor
    role_R: Tensor
    score_R: Tensor
    length_R: Tensor
    weight_E: Tensor
    confidence_E: Tensor
    gap_E: Tensor
    token: Mapping[str, Tensor] = field(default_factory=dict)
    row_E: Tensor = None  # type: ignore[assignment]  # never None once constructed
    at_hand: Batch | None = None

    def __post_init__(self) -> None:
        if self.row_E is None:
            object.__setattr__(self, "row_E", torch.arange(len(self.weight_E), device=self.weight_E.device))


def at_hand(batch: Batch) -> Batch:
    """The batch where its values can be asked for: what shapes and messages depend on is read there."""
    other: Batch | None = getattr(
        batch, "at_hand", None
    )  # plain stand-ins for a batch are on the host, and say nothing
    return batch if other is None else other


def beside(value: Tensor, like: Tensor) -> Tensor:
    """A value from the host on the device of another, without a wait."""
    if like.device == value.device:
        return value
    if like.device.type == "cuda":
        value = value.pin_memory()  # or the copy would wait for everything before it
    return value.to(like.device, non_blocking=True)


def changed(batch: Batch, change: Callable[[Batch], Mapping[str, Tensor]]) -> Batch:
    """The batch with other fields, which `change` makes of it; and so on the host."""
    other = None if batch.at_hand is None else changed(batch.at_hand, change)
    return replace(batch, **change(batch), at_hand=other)  # type: ignore[type-var]


def pair_indices(batch: Batch) -> tuple[Tensor, Tensor]:
    """Indices of the chosen and of the rejected response of every example, each of shape E.

    Raises:
        ValueError: if an example is no pair.
    """
    chosen, rejected = role_indices(batch, Role.CHOSEN), role_indices(batch, Role.REJECTED)
    examples = len(batch.weight_E)
    if len(chosen) != examples or len(rejected) != examples:
        raise ValueError(
            f"this objective needs pairs, but of {examples} examples {len(chosen)} have a chosen and "
            f"{len(rejected)} a rejected response"
        )
    return chosen, rejected


def role_indices(batch: Batch, role: Role) -> Tensor:
    """Indices of all responses of one role, ordered by example."""
    known = at_hand(batch)
    found = torch.nonzero(known.role_R == int(role)).squeeze(1)
    return beside(found[torch.argsort(known.example_R[found], stable=True)], batch.role_R)


def scores_R(batch: Batch) -> Tensor:
    """How good each response is: its score if it is labelled (1 good, 0 bad) or ranked (higher is better), 1 if chosen,
    0 if rejected; NaN for baselines. Shape R."""
    score_R = batch.score_R
    for role, score in ((Role.CHOSEN, 1.0), (Role.REJECTED, 0.0), (Role.BASELINE, torch.nan)):
        score_R = torch.where(batch.role_R == role, score, score_R)
    return score_R


def swapped(batch: Batch) -> Batch:
    """The batch with the opposite labels: chosen for rejected, p for 1 - p, gap for -gap."""

    def opposite(batch: Batch) -> dict[str, Tensor]:
        role_R = batch.role_R
        to_R = torch.where(role_R == Role.REJECTED, int(Role.CHOSEN), role_R)
        to_R = torch.where(role_R == Role.CHOSEN, int(Role.REJECTED), to_R)
        return {"role_R": to_R, "confidence_E": 1 - batch.confidence_E, "gap_E": -batch.gap_E}

    return changed(batch, opposite)

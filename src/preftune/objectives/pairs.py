"""Objectives over pairs that read whole-response log-probs. Tensor names carry their shape as in `batch`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from preftune.objectives.base import Confidence, DataKind, Objective, Outcome, State, refuse_doubt, softened
from preftune.objectives.batch import Batch, LogProbs, at_hand, pair_indices


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch as plain tensors of shape E, in nats (sums over response tokens) and tokens."""

    chosen_logps_E: Tensor
    rejected_logps_E: Tensor
    reference_chosen_logps_E: Tensor
    reference_rejected_logps_E: Tensor
    chosen_length_E: Tensor
    rejected_length_E: Tensor
    confidence_E: Tensor
    gap_E: Tensor
    confidence_at_hand_E: Tensor | None = None  # on the host, if it is not there already

    @property
    def chosen_ratio_E(self) -> Tensor:
        """Log-ratio of policy to reference on chosen."""
        return self.chosen_logps_E - self.reference_chosen_logps_E

    @property
    def rejected_ratio_E(self) -> Tensor:
        """Log-ratio of policy to reference on rejected."""
        return self.rejected_logps_E - self.reference_rejected_logps_E

    @property
    def delta_E(self) -> Tensor:
        """Difference of the two log-ratios, chosen minus rejected."""
        return self.chosen_ratio_E - self.rejected_ratio_E


class PairObjective(Objective):
    """An objective over pairs that reads whole-response log-probs. Subclasses give `pair_loss` and `reward`.

    `pair_loss` takes labels as certain: the confidence of a pair is dealt with here, unless the class says otherwise.
    """

    data: ClassVar[DataKind] = "pairs"
    confidence: ClassVar[Confidence] = "mixed"

    @abstractmethod
    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Loss of each pair, shape E."""

    @abstractmethod
    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        """Implicit reward of responses, from their log-ratios (nats) and lengths (tokens); any one shape."""

    @property
    def needs_tokens(self) -> bool:
        return False

    @final
    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        policy_R = policy.sums_R(batch)
        reference_R = torch.zeros_like(policy_R)
        if self.reference:  # in a mix, one without a reference is handed the others' and must not read it
            if reference is None:
                raise ValueError(f"{type(self).__name__} compares with a reference: give its log-probs")
            reference_R = reference.sums_R(batch).to(policy_R.dtype)
        rewards_R = self.reward((policy_R - reference_R).detach(), batch.length_R)

        def outcome(batch: Batch) -> Outcome:
            chosen_E, rejected_E = pair_indices(batch)
            pairs = Pairs(
                policy_R[chosen_E],
                policy_R[rejected_E],
                reference_R[chosen_E],
                reference_R[rejected_E],
                batch.length_R[chosen_E],
                batch.length_R[rejected_E],
                batch.confidence_E,
                batch.gap_E,
                at_hand(batch).confidence_E,
            )
            return Outcome(self.pair_loss(pairs), rewards_R, state)

        if self.confidence == "mixed":
            return softened(outcome, batch)
        if self.confidence == "unused":
            refuse_doubt(self, batch)
        return outcome(batch)

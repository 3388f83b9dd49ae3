"""The contract of objectives: pure functions of log-probabilities that know no model, tokenizer, device or trainer.

Tensor names carry their shape: K targets (response tokens), R responses, E examples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, ClassVar, Literal, Protocol, final

import torch
from torch import Tensor

State = Mapping[str, Tensor]
DataKind = Literal["pairs", "labels", "demonstrations"]


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
    def token(self) -> Mapping[str, Tensor]:
        """Further values per target (old log-probs, advantages, returns), each of shape K."""


@dataclass(frozen=True)
class LogProbs:
    """What a model says about the targets of a batch.

    Attributes:
        logps_K: log-probability of each target token, in nats, float32 or better.
        log_sum_p2_K: log of the sum of squared probabilities over the vocabulary (only for objectives that need it).
        entropy_K: entropy of the next-token distribution, in nats (only for objectives that need it).
    """

    logps_K: Tensor
    log_sum_p2_K: Tensor | None = None
    entropy_K: Tensor | None = None

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
class Outcome:
    """What an objective says about a batch; reducing it is the training step's business.

    Attributes:
        loss_E: loss of each example. Examples that the objective does not cover have loss 0 and weight 0.
        rewards_R: implicit reward of each response, without gradient; NaN where it is not defined.
        state: the state after this batch (running baselines); the training step keeps it once per optimiser step.
        extras: further values to log, each a tensor of shape E.
    """

    loss_E: Tensor
    rewards_R: Tensor
    state: State
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """A training objective. Subclasses are frozen dataclasses whose fields are the hyperparameters.

    Class attributes say what it needs:
        reference: True if it compares the policy with a reference model.
        data: "pairs", "labels" (unpaired, judged responses) or "demonstrations".
        needs: names of the optional `LogProbs` fields that it reads.
        couples: True if an example's loss depends on other examples of the optimiser batch, or on a state. Such an
            objective always sees the whole optimiser batch at once.
        learning_rate: peak learning rate to start from when all weights of a model of 1B parameters train.
        lora_learning_rate: the same when LoRA adapters train.
    """

    reference: ClassVar[bool] = True
    data: ClassVar[DataKind] = "pairs"
    needs: ClassVar[frozenset[str]] = frozenset()
    couples: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 1e-6
    lora_learning_rate: ClassVar[float] = 5e-5

    def init(self) -> State:
        """State before the first step; empty for all objectives without running baselines."""
        return {}

    def weight_E(self, batch: Batch) -> Tensor:
        """Weight of each example in the mean of `loss_E`, shape E. It depends on the batch alone, so the training step
        can sum it over micro-batches and processes before the first backward."""
        return batch.weight_E

    @abstractmethod
    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        """Loss of each example.

        Args:
            policy: log-probs of the policy, with gradient.
            reference: log-probs of the reference, without gradient; None for objectives without one.
            batch: roles, lengths, weights and labels.
            state: what `init` or the previous optimiser step's `Outcome` gave.
        """

    def describe(self) -> dict[str, Any]:
        """The hyperparameters, by field name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


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
    """An objective over pairs that reads whole-response log-probs. Subclasses give `pair_loss` and `reward`."""

    data: ClassVar[DataKind] = "pairs"

    @abstractmethod
    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Loss of each pair, shape E."""

    @abstractmethod
    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        """Implicit reward of responses, from their log-ratios (nats) and lengths (tokens); any one shape."""

    @property
    def needs_lengths(self) -> bool:
        """True if `pair_loss` or `reward` divides by response lengths."""
        return False

    @final
    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        policy_R = policy.sums_R(batch)
        reference_R = torch.zeros_like(policy_R)
        if self.reference:  # in a mix, one without a reference is handed the others' and must not read it
            if reference is None:
                raise ValueError(f"{type(self).__name__} compares with a reference: give its log-probs")
            reference_R = reference.sums_R(batch).to(policy_R.dtype)
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
        )
        rewards_R = self.reward((policy_R - reference_R).detach(), batch.length_R)
        return Outcome(self.pair_loss(pairs), rewards_R, state)

    @final
    def on_pairs(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
        confidence: Tensor | None = None,
        gap: Tensor | None = None,
    ) -> PairResult:
        """The objective on plain tensors, as in a notebook.

        Args:
            policy_chosen_logps: log-probability of each chosen response under the policy, nats, shape E.
            policy_rejected_logps: the same of each rejected response.
            reference_chosen_logps: the same under the reference; not needed by reference-free objectives.
            reference_rejected_logps: the same of each rejected response.
            chosen_lengths: tokens of each chosen response, shape E; needed by length-normalised objectives only.
            rejected_lengths: the same of each rejected response.
            confidence: probability that chosen is better, shape E; 1 if not given.
            gap: rated difference, shape E; NaN if not given.

        Returns:
            Loss, rewards, delta and margin per pair; `.loss` is the mean.

        Raises:
            ValueError: if shapes differ, or the reference or the lengths are missing where they are needed.
        """
        given = (reference_chosen_logps, reference_rejected_logps)
        if self.reference and any(logps is None for logps in given):
            raise ValueError(f"{type(self).__name__} compares with a reference: give both reference log-probs")
        if self.needs_lengths and (chosen_lengths is None or rejected_lengths is None):
            raise ValueError(f"{type(self).__name__} divides by lengths here: give chosen_lengths and rejected_lengths")
        nothing = torch.zeros_like(policy_chosen_logps)
        unknown = torch.full_like(policy_chosen_logps, math.nan)
        pairs = Pairs(
            policy_chosen_logps,
            policy_rejected_logps,
            nothing if reference_chosen_logps is None else reference_chosen_logps,
            nothing if reference_rejected_logps is None else reference_rejected_logps,
            unknown if chosen_lengths is None else chosen_lengths,
            unknown if rejected_lengths is None else rejected_lengths,
            torch.ones_like(policy_chosen_logps) if confidence is None else confidence,
            unknown if gap is None else gap,
        )
        for f in fields(pairs):
            shape = getattr(pairs, f.name).shape
            if shape != policy_chosen_logps.shape:
                raise ValueError(
                    f"{f.name.removesuffix('_E')} has shape {tuple(shape)}, expected "
                    f"{tuple(policy_chosen_logps.shape)} as policy_chosen_logps"
                )
        loss_E = self.pair_loss(pairs)
        with torch.no_grad():
            chosen_E = self.reward(pairs.chosen_ratio_E, pairs.chosen_length_E)
            rejected_E = self.reward(pairs.rejected_ratio_E, pairs.rejected_length_E)
        return PairResult(loss_E, chosen_E, rejected_E, pairs.delta_E.detach())


@dataclass(frozen=True)
class PairResult:
    """What `on_pairs` gives: tensors of shape E, and their means."""

    loss_E: Tensor
    chosen_reward_E: Tensor
    rejected_reward_E: Tensor
    delta_E: Tensor

    @property
    def loss(self) -> Tensor:
        """Mean loss, with gradient."""
        return self.loss_E.mean()

    @property
    def margin_E(self) -> Tensor:
        """Chosen reward minus rejected reward."""
        return self.chosen_reward_E - self.rejected_reward_E

    @property
    def margin(self) -> Tensor:
        """Mean margin."""
        return self.margin_E.mean()


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
    found = torch.nonzero(batch.role_R == int(role)).squeeze(1)
    return found[torch.argsort(batch.example_R[found], stable=True)]


def expect(confidence_E: Tensor, label_smoothing: float, loss_E: Tensor, swapped_E: Tensor) -> Tensor:
    """Expected loss when the label is right with probability `confidence_E`, less `label_smoothing`.

    Args:
        confidence_E: probability that chosen is better, from the data.
        label_smoothing: probability that any label was flipped, in [0, 0.5).
        loss_E: loss if chosen is better.
        swapped_E: loss if rejected is better.
    """
    p_E = confidence_E * (1 - label_smoothing) + (1 - confidence_E) * label_smoothing
    return p_E * loss_E + (1 - p_E) * swapped_E


def check(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds; for hyperparameters in `__post_init__`."""
    if not condition:
        raise ValueError(message)

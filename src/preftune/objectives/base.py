"""The contract of objectives: pure functions of log-probabilities that know no model, tokenizer, device or trainer.

Tensor names carry their shape: K targets (response tokens), R responses, E examples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from preftune.errors import PreftuneError
from preftune.objectives.batch import Batch, LogProbs, PlainBatch, Role, at_hand, swapped

State = Mapping[str, Tensor]
DataKind = Literal["pairs", "labels", "rankings", "demonstrations", "rollouts"]
Confidence = Literal["mixed", "read", "unused"]


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
        data: "pairs", "labels" (unpaired, judged responses), "rankings" (n responses in order), "demonstrations" or
            "rollouts" (n responses that the policy itself sampled, with their rewards).
            Pairs serve all of them: chosen is good and rejected bad, or first and second, or what to imitate.
        needs: names of the optional `LogProbs` fields that it reads.
        couples: True if an example's loss depends on other examples of the optimiser batch, or on a state. Such an
            objective always sees the whole optimiser batch at once.
        confidence: what becomes of the probability that chosen is better. "mixed": its loss is the expected one under a
            label of that probability (see `softened`); "read": its own formula has it; "unused": labels are certain.
        baselines: True if every example must carry a response of another prompt, of role BASELINE.
        least_examples: the fewest examples that an optimiser batch may hold.
        refuses: why a modifier makes no sense here, by the modifier's name: the end of a sentence that says what to do.
        carried: names of the values per token that its examples must carry (`batch.token`): "old_logps" and
            "reference_logps", the log-probs under the policy that sampled a response and under the reference;
            "advantages".
        columns: record columns, optional elsewhere ("gap"), in which every example must have a value.
        finite_up_to: size of a response's log-prob, in nats, up to which loss and gradient are finite in float32.
        learning_rate: peak learning rate to start from when all weights of a model of 1B parameters train.
        lora_learning_rate: the same when LoRA adapters train.
    """

    reference: ClassVar[bool] = True
    data: ClassVar[DataKind] = "pairs"
    needs: ClassVar[frozenset[str]] = frozenset()
    couples: ClassVar[bool] = False
    baselines: ClassVar[bool] = False
    least_examples: ClassVar[int] = 1
    confidence: ClassVar[Confidence] = "unused"
    refuses: ClassVar[Mapping[str, str]] = {}
    carried: ClassVar[frozenset[str]] = frozenset()
    columns: ClassVar[frozenset[str]] = frozenset()
    finite_up_to: ClassVar[float] = 1e4
    learning_rate: ClassVar[float] = 1e-6
    lora_learning_rate: ClassVar[float] = 5e-5

    @property
    def needs_lengths(self) -> bool:
        """True if the loss or the rewards depend on response lengths."""
        return False

    @property
    def needs_tokens(self) -> bool:
        """True if it reads more of a response than its whole log-prob, so that it has no `on_pairs`."""
        return True

    def init(self) -> State:
        """State before the first step; empty for all objectives without running baselines."""
        return {}

    def check_column(self, name: str, value: float) -> None:
        """Raise ValueError, in one sentence, if a value of one of `columns` cannot be learned from."""
        check(math.isfinite(value), f"{name} must be a finite number, got {value:g}")

    def notes(self) -> list[str]:
        """What a user should know of these very hyperparameters before training, a sentence each; mostly nothing."""
        return []

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
        """The objective on plain tensors, as in a notebook; for objectives on pairs that need no tokens.

        Args:
            policy_chosen_logps: log-probability of each chosen response under the policy, nats, shape E.
            policy_rejected_logps: the same of each rejected response.
            reference_chosen_logps: the same under the reference; not needed by reference-free objectives.
            reference_rejected_logps: the same of each rejected response.
            chosen_lengths: tokens of each chosen response, shape E; needed by objectives that read lengths only.
            rejected_lengths: the same of each rejected response.
            confidence: probability that chosen is better, in [0, 1], shape E; 1 if not given.
            gap: rated difference, shape E; needed by objectives that name it in `columns` only.

        Returns:
            Loss, rewards, delta and margin per pair; `.loss` is the mean.

        Raises:
            ValueError: if a tensor is empty, of another shape, not of floating point (lengths may be whole numbers) or
                out of range, or if the reference, the lengths or the gap are missing where they are needed.
        """
        name = type(self).__name__
        if self.data != "pairs" or self.needs_tokens:
            raise ValueError(f"{name} reads more than the log-probs of whole pairs: call it on a batch")
        if self.reference and (reference_chosen_logps is None or reference_rejected_logps is None):
            raise ValueError(f"{name} compares with a reference: give both reference log-probs")
        if self.needs_lengths and (chosen_lengths is None or rejected_lengths is None):
            raise ValueError(f"{name} reads lengths here: give chosen_lengths and rejected_lengths")
        if "gap" in self.columns and gap is None:
            raise ValueError(f"{name} learns from rated gaps: give gap")
        _check_tensor("policy_chosen_logps", policy_chosen_logps)
        zero = torch.zeros_like(policy_chosen_logps)
        columns = {
            "policy_chosen_logps": policy_chosen_logps,
            "policy_rejected_logps": policy_rejected_logps,
            "reference_chosen_logps": zero if reference_chosen_logps is None else reference_chosen_logps,
            "reference_rejected_logps": zero if reference_rejected_logps is None else reference_rejected_logps,
            "chosen_lengths": zero + math.nan if chosen_lengths is None else chosen_lengths,
            "rejected_lengths": zero + math.nan if rejected_lengths is None else rejected_lengths,
            "confidence": zero + 1 if confidence is None else confidence,
            "gap": zero + math.nan if gap is None else gap,
        }
        _check_columns(columns)
        for key in self.columns & columns.keys():
            for value in columns[key].flatten().tolist():
                self.check_column(key, value)
        return _plain(self, *columns.values())

    def describe(self) -> dict[str, Any]:
        """The hyperparameters, by field name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


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


def _check_columns(columns: Mapping[str, Tensor]) -> None:
    """Raise ValueError, in one sentence, unless `on_pairs` can take these columns, the first of which is right."""
    name, first = next(iter(columns.items()))
    check(first.numel() > 0, f"{name} is empty: give one pair or more")
    for key, column in columns.items():
        _check_tensor(key, column)
        if column.shape != first.shape:
            raise ValueError(f"{key} has shape {tuple(column.shape)}, expected {tuple(first.shape)} as {name}")
    p = columns["confidence"].detach()
    outside = p[~((p >= 0) & (p <= 1))]
    if len(outside):
        meaning = "it is the probability that chosen is better"
        raise ValueError(f"confidence must be in [0, 1], got {outside[0].item():g}: {meaning}")


def _check_tensor(name: str, column: Any) -> None:
    """Raise ValueError, in one sentence, unless a column of `on_pairs` is a tensor of the numbers that it takes."""
    fits = isinstance(column, Tensor) and (column.is_floating_point() or name.endswith("lengths"))
    kind = column.dtype if isinstance(column, Tensor) else type(column).__name__
    check(fits, f"{name} is of type {kind}, expected a tensor of floating point, such as torch.tensor([-5.0])")


def _plain(
    objective: Objective,
    chosen: Tensor,
    rejected: Tensor,
    other_chosen: Tensor,
    other_rejected: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    confidence: Tensor,
    gap: Tensor,
) -> PairResult:
    """An objective on plain tensors of one shape: a batch whose responses have one target each, all chosen first."""

    def both(of_chosen: Tensor, of_rejected: Tensor) -> Tensor:
        return torch.cat([of_chosen.flatten(), of_rejected.flatten()])

    policy_R, reference_R = both(chosen, rejected), both(other_chosen, other_rejected)
    pair_E = torch.arange(chosen.numel(), device=chosen.device)
    batch = PlainBatch(
        response_K=torch.arange(len(policy_R), device=chosen.device),
        example_R=pair_E.repeat(2),
        role_R=both(torch.full_like(pair_E, int(Role.CHOSEN)), torch.full_like(pair_E, int(Role.REJECTED))),
        score_R=torch.full_like(policy_R, math.nan),
        length_R=both(chosen_length, rejected_length),
        weight_E=torch.ones_like(gap.flatten()),
        confidence_E=confidence.flatten(),
        gap_E=gap.flatten(),
    )
    reference = LogProbs(reference_R) if objective.reference else None
    outcome = objective(LogProbs(policy_R), reference, batch, objective.init())
    chosen_reward, rejected_reward = (reward.reshape(chosen.shape) for reward in outcome.rewards_R.chunk(2))
    delta = ((chosen - other_chosen) - (rejected - other_rejected)).detach()
    return PairResult(outcome.loss_E.reshape(chosen.shape), chosen_reward, rejected_reward, delta)


def softened(outcome: Callable[[Batch], Outcome], batch: Batch) -> Outcome:
    """The expected outcome where labels hold with a probability: p * loss + (1 - p) * loss of the swapped pairs.

    Args:
        outcome: gives the outcome of a batch of pairs, and takes labels as certain.
        batch: its `confidence_E` is p.
    """
    p_E = batch.confidence_E
    right = outcome(batch)
    if bool((at_hand(batch).confidence_E == 1).all()):
        return right
    wrong = outcome(swapped(batch))
    return replace(right, loss_E=p_E * right.loss_E + (1 - p_E) * wrong.loss_E)


def refuse_doubt(objective: Objective, batch: Batch) -> None:
    """Raise PreftuneError if any label is less than certain; for objectives that cannot use the probability."""
    if not bool((at_hand(batch).confidence_E == 1).all()):
        raise PreftuneError(
            f"{type(objective).__name__} takes labels as certain, but the data has confidences below 1: set "
            "modifiers.confidence to weight or ignore"
        )


def check(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds; for hyperparameters in `__post_init__`."""
    if not condition:
        raise ValueError(message)


def check_positive(name: str, value: float, meaning: str) -> None:
    """Raise ValueError unless a hyperparameter is finite and > 0; `meaning` says what it is or what is usual."""
    check(0 < value < math.inf, f"{name} must be finite and > 0, got {value}: {meaning}")


def check_label_smoothing(value: float) -> None:
    """Raise ValueError unless the probability of a flipped label is in [0, 0.5)."""
    check(0 <= value < 0.5, f"label_smoothing must be in [0, 0.5), got {value}: at 0.5 labels would say nothing")

"""Changes to any objective, made to what it sees: log-probs, labels and weights.

An objective knows nothing of them: `Modified` hands it other log-probs, another reference, other confidences or other
weights, and adds penalties to what comes back. Tensor names carry their shape as in `base`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from preftune.objectives.base import (
    Objective,
    Outcome,
    State,
    check,
    check_label_smoothing,
    check_positive,
    refuse_doubt,
)
from preftune.objectives.batch import Batch, LogProbs, PlainBatch, Role, changed, pair_indices, swapped
from preftune.objectives.tokens import with_light_tails, wpo_weight_E


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    check(value in choices, f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


@dataclass(frozen=True)
class Modifiers:
    """Changes to an objective; the defaults change nothing.

    Args:
        average: "mean" divides each response's log-prob by its length, so that it is in nats per token.
        temperature: log-ratios are divided by it: for a loss of beta times delta the same as beta / temperature.
        tail_alpha: weight, in [0, 1], of the tokens of the longer response beyond the length of the shorter one
            (length-desensitised, LD-DPO; 0.5 is usual there).
        tail_of: "both": tail_alpha acts on policy and reference (as in TRL now), so that delta starts at 0; "policy":
            on the policy alone (as in LLaMA-Factory, and in TRL until early 2026).
        reference_free: the reference's log-probs are taken as 0: a reference that likes all responses equally.
        confidence: what the probability that a label holds (that chosen is better) means. "label": the loss is the
            expected one, chosen and rejected exchanged with the remaining probability; "weight": the example's weight
            is multiplied by it; "ignore": labels are certain.
        label_smoothing: probability, in [0, 0.5), that any label is flipped; a confidence c becomes
            c * (1 - label_smoothing) + (1 - c) * label_smoothing.
        wpo: true multiplies each pair's loss by the product, over its two responses, of
            exp(mean over tokens of (log pi(token) - log of the sum of squared probabilities)), without gradient: how
            likely the policy of now would have written them (WPO, arXiv 2406.11827, whose paper has no clamp, as TRL
            now); "clamped": by no more than 1 (its authors' code).
        ratio_penalty: adds this times the sum of the squared log-ratios of an example's responses, as the objective
            sees them.
        drop_penalty: adds this times max(0, -log-ratio of chosen): a price, in loss per nat, on chosen responses that
            become less likely than under the reference.
    """

    average: Literal["sum", "mean"] = "sum"
    temperature: float = 1.0
    tail_alpha: float = 1.0
    tail_of: Literal["both", "policy"] = "both"
    reference_free: bool = False
    confidence: Literal["label", "weight", "ignore"] = "label"
    label_smoothing: float = 0.0
    wpo: bool | Literal["clamped"] = False
    ratio_penalty: float = 0.0
    drop_penalty: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("average", self.average, ("sum", "mean"))
        _check_choice("tail_of", self.tail_of, ("both", "policy"))
        _check_choice("confidence", self.confidence, ("label", "weight", "ignore"))
        _check_choice("wpo", self.wpo, (False, True, "clamped"))
        check_positive("temperature", self.temperature, "log-ratios are divided by it")
        check(
            0 <= self.tail_alpha <= 1,
            f"tail_alpha must be in [0, 1], got {self.tail_alpha}: it weighs the tokens beyond the shorter response",
        )
        check_label_smoothing(self.label_smoothing)
        for name in ("ratio_penalty", "drop_penalty"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"{name} must be finite and >= 0, got {value}")
        check(
            self.tail_of == "both" or self.tail_alpha < 1,
            "tail_of says where tail_alpha acts, which is 1 and changes nothing: set tail_alpha below 1",
        )
        for name in ("tail_of", "ratio_penalty", "drop_penalty"):
            check(
                not (self.reference_free and name in self.given()),
                f"{name} is about the reference, which reference_free removes: leave one of them out",
            )

    def given(self) -> list[str]:
        """Names of the fields that change something."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]


@dataclass(frozen=True)
class Modified(Objective):
    """An objective with modifiers. Its class attributes are those of the inner one, as far as modifiers leave them.

    Args:
        inner: the objective.
        modifiers: what is changed.

    Example:
        >>> from preftune.objectives import build
        >>> from torch import tensor
        >>> cooler = build("dpo", beta=0.2, modifiers={"temperature": 2.0})
        >>> result = cooler.on_pairs(tensor([-5.3]), tensor([-10.7]), tensor([-6.7]), tensor([-9.3]))
        >>> round(result.loss.item(), 4)  # delta = 2.8, halved; log(1 + exp(-0.2 * 1.4))
        0.5629
    """

    inner: Objective
    modifiers: Modifiers = Modifiers()

    def __post_init__(self) -> None:
        check(not isinstance(self.inner, Modified), "the objective is modified already: put all modifiers into one")
        for name in self.modifiers.given():
            reason = refusal(self.inner, name)
            check(reason is None, f"modifiers.{name} is refused: {reason}")
        for name, hint in Objective.__annotations__.items():
            if hint.startswith("ClassVar"):  # what the inner one needs, it needs here too
                object.__setattr__(self, name, getattr(self.inner, name))
        object.__setattr__(self, "reference", self.inner.reference and not self.modifiers.reference_free)
        if self.modifiers.wpo:
            object.__setattr__(self, "needs", self.inner.needs | {"log_sum_p2_K"})

    @property
    def needs_lengths(self) -> bool:
        return self.inner.needs_lengths or self.modifiers.average == "mean"

    @property
    def needs_tokens(self) -> bool:
        return self.inner.needs_tokens or self.modifiers.tail_alpha < 1 or bool(self.modifiers.wpo)

    def init(self) -> State:
        return self.inner.init()

    def check_column(self, name: str, value: float) -> None:
        self.inner.check_column(name, value)

    def notes(self) -> list[str]:
        return self.inner.notes()

    def weight_E(self, batch: Batch) -> Tensor:
        return self.inner.weight_E(self._relabelled(batch))

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "modifiers": asdict(self.modifiers)}

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        change, batch = self.modifiers, self._relabelled(batch)
        if self.inner.data in ("pairs", "labels") and self.inner.confidence == "unused":
            refuse_doubt(self.inner, batch)
        seen = self._rescaled(policy, batch, tails=True)
        if change.reference_free:
            reference = LogProbs(torch.zeros_like(policy.logps_K))
        elif self.reference:
            if reference is None:
                raise ValueError(f"{type(self.inner).__name__} compares with a reference: give its log-probs")
            reference = self._rescaled(reference, batch, tails=change.tail_of == "both")
        outcome = self.inner(seen, reference, batch, state)
        loss_E = outcome.loss_E
        if change.wpo:
            clamp = 1.0 if change.wpo == "clamped" else None
            loss_E = loss_E * wpo_weight_E("modifiers.wpo", policy, batch, clamp)
        if change.ratio_penalty or change.drop_penalty:
            assert reference is not None  # both are refused without one
            loss_E = loss_E + self._penalty_E(seen.sums_R(batch) - reference.sums_R(batch), batch)
        return replace(outcome, loss_E=loss_E)

    def _relabelled(self, batch: Batch) -> Batch:
        """The batch with confidences and weights as the inner objective is to see them."""
        change = self.modifiers

        def relabelled(batch: Batch) -> dict[str, Tensor]:
            p_E, weight_E = batch.confidence_E, batch.weight_E
            if change.confidence == "weight":
                weight_E = weight_E * p_E
            if change.confidence != "label":
                p_E = torch.ones_like(p_E)
            if change.label_smoothing:
                p_E = p_E * (1 - change.label_smoothing) + (1 - p_E) * change.label_smoothing
            return {"confidence_E": p_E, "weight_E": weight_E}

        return changed(batch, relabelled) if change.confidence != "label" or change.label_smoothing else batch

    def _rescaled(self, logps: LogProbs, batch: Batch, tails: bool) -> LogProbs:
        """Log-probs such that their sums over a response are what the inner objective is to see."""
        change, logps_K = self.modifiers, logps.logps_K
        if tails and change.tail_alpha < 1:
            logps_K = with_light_tails(logps, batch, change.tail_alpha).logps_K
        if change.average == "mean":
            logps_K = logps_K / batch.length_R[batch.response_K]
        if change.temperature != 1:
            logps_K = logps_K / change.temperature
        return replace(logps, logps_K=logps_K)

    def _penalty_E(self, ratio_R: Tensor, batch: Batch) -> Tensor:
        change = self.modifiers
        squares_R = torch.where(batch.role_R == Role.BASELINE, 0.0, ratio_R) ** 2
        squares_E = ratio_R.new_zeros(len(batch.weight_E)).index_add(0, batch.example_R, squares_R)
        if not change.drop_penalty:
            return change.ratio_penalty * squares_E
        chosen_E, rejected_E = pair_indices(batch)
        p_E = batch.confidence_E
        drop_E = p_E * torch.relu(-ratio_R[chosen_E]) + (1 - p_E) * torch.relu(-ratio_R[rejected_E])
        return change.ratio_penalty * squares_E + change.drop_penalty * drop_E


def refusal(objective: Objective, name: str) -> str | None:
    """Why a modifier makes no sense for an objective, in words that say what to do; None if it does.

    Args:
        objective: without modifiers.
        name: a field of `Modifiers`.
    """
    kind = type(objective).__name__
    if name in {f.name for f in fields(objective)}:  # type: ignore[arg-type]
        return f"{kind} has its own {name}: set it there"
    if name in objective.refuses:
        return objective.refuses[name]
    if name in _OF_LABELS and objective.data not in ("pairs", "labels"):
        return f"it is about pairs and labels, and {kind} learns from {objective.data}: leave it out"
    if name in _OF_PAIRS and objective.data != "pairs":
        return f"it is about pairs, and {kind} learns from {objective.data}: leave it out"
    if name in _OF_SEVERAL and objective.data not in ("pairs", "rankings"):
        return f"it compares responses to one prompt, and {kind} learns from {objective.data}: leave it out"
    if name in _OF_REFERENCE and not objective.reference:
        return f"{kind} compares with no reference: leave it out"
    if name == "wpo" and "log_sum_p2_K" in objective.needs:
        return f"{kind} weighs by the policy already: leave it out"
    if name in _OF_LOGPS and objective.needs:
        return f"{kind} reads more of each token than its log-prob, which would not be changed alike: leave it out"
    if name == "label_smoothing" and objective.confidence == "unused":
        return f"{kind} takes labels as certain: leave it out"
    if name == "label_smoothing" and not sees_labels(objective):
        return f"it is the same to {kind} which response is called chosen: leave it out"
    if name == "reference_free" and not sees_differences_only(objective):
        return f"{kind} reads each log-ratio by itself, which says nothing without a reference: leave it out"
    return None


_OF_LABELS = ("confidence", "label_smoothing")
_OF_PAIRS = ("wpo", "drop_penalty")
_OF_SEVERAL = ("tail_alpha", "tail_of", "reference_free")
_OF_REFERENCE = ("reference_free", "tail_of", "ratio_penalty", "drop_penalty")
_OF_LOGPS = ("average", "temperature", "tail_alpha", "tail_of")


def sees_differences_only(objective: Objective) -> bool:
    """True if the loss stays as it is when both responses of equally long pairs become likelier by the same factor:
    only then does a reference that likes all responses equally cancel. Tried out on three pairs."""
    if objective.needs:
        return False
    batch, policy, reference = _trial()
    likelier = LogProbs(policy.logps_K + 0.75)
    loss_E, other_E = (objective(each, reference, batch, objective.init()).loss_E for each in (policy, likelier))
    return torch.allclose(loss_E, other_E, rtol=1e-9, atol=1e-9)


def sees_labels(objective: Objective) -> bool:
    """True if the loss depends on which response is called chosen. Tried out on three pairs."""
    if objective.needs:
        return True
    batch, policy, reference = _trial()
    opposite = replace(swapped(batch), confidence_E=batch.confidence_E)  # type: ignore[type-var]
    loss_E, other_E = (objective(policy, reference, each, objective.init()).loss_E for each in (batch, opposite))
    return not torch.allclose(loss_E, other_E, rtol=1e-9, atol=1e-9)


def _trial() -> tuple[Batch, LogProbs, LogProbs]:
    """Three pairs of two tokens each, each with a baseline, and some log-probs of a policy and a reference."""
    certain_E = torch.ones(3, dtype=torch.float64)
    batch = PlainBatch(
        response_K=torch.arange(9).repeat_interleave(2),
        example_R=torch.arange(3).repeat(3),
        role_R=torch.tensor([Role.CHOSEN] * 3 + [Role.REJECTED] * 3 + [Role.BASELINE] * 3),
        score_R=torch.full((9,), math.nan, dtype=torch.float64),
        length_R=torch.full((9,), 2),
        weight_E=certain_E,
        confidence_E=certain_E,
        gap_E=certain_E,
    )
    logps_K = -torch.arange(1, 19, dtype=torch.float64).sqrt().roll(5)
    return batch, LogProbs(logps_K), LogProbs(torch.full_like(logps_K, -2.0))

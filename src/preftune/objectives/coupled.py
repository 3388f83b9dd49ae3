"""What more than one objective makes of a whole batch: who was judged how, running means, quantiles.

Throughout, an example of weight w counts like w examples of weight 1. Tensor names carry their shape as in `batch`: J
judged responses, S segments of the unit interval, and N or M of anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import Objective, State, check
from preftune.objectives.batch import Batch, Role, at_hand, beside, scores_R


@dataclass(frozen=True)
class Judged:
    """The judged responses of a batch: labelled ones, and both of a pair.

    Attributes:
        index_J: where each stands among the batch's responses.
        example_J: its example.
        good_J: probability that it is good.
        share_J: one over the number of judged responses of its example.
        weight_J: the example's weight times the share.
        examples: number of examples.
    """

    index_J: Tensor
    example_J: Tensor
    good_J: Tensor
    share_J: Tensor
    weight_J: Tensor
    examples: int

    def mean_E(self, value_J: Tensor) -> Tensor:
        """Mean of a value over each example's judged responses, shape E."""
        return value_J.new_zeros(self.examples).index_add(0, self.example_J, value_J * self.share_J)


def judged(who: str, batch: Batch) -> Judged:
    """The judged responses of a batch. A label of probability p counts as good with p, or with 1 - p if it says bad.

    Args:
        who: the objective, for the message.

    Raises:
        ValueError: if an example has none.
    """
    known = at_hand(batch)
    counted_R = (known.role_R == Role.LABELLED) | (known.role_R == Role.CHOSEN) | (known.role_R == Role.REJECTED)
    index_J = torch.nonzero(counted_R).squeeze(1)
    example_J = known.example_R[index_J]
    count_E = torch.bincount(example_J, minlength=len(batch.weight_E))
    if not bool((count_E > 0).all()):
        raise ValueError(
            f"{who} needs judged responses, but of {len(count_E)} examples {int((count_E > 0).sum())} have one: give "
            "labelled responses, or pairs"
        )
    share_J = beside(1 / count_E[example_J], batch.weight_E)
    index_J, example_J = (beside(each, batch.weight_E) for each in (index_J, example_J))
    right_J, score_J = batch.confidence_E[example_J], scores_R(batch)[index_J]
    return Judged(
        index_J,
        example_J,
        right_J * score_J + (1 - right_J) * (1 - score_J),
        share_J,
        batch.weight_E[example_J] * share_J,
        len(count_E),
    )


def refuse_few(objective: Objective, batch: Batch, meaning: str) -> None:
    """Raise ValueError if a batch holds fewer examples than the objective can do with; `meaning` says what for."""
    if len(batch.weight_E) < objective.least_examples:
        raise ValueError(
            f"{type(objective).__name__} {meaning}, and needs {objective.least_examples} examples for that, but the "
            f"batch holds {len(batch.weight_E)}: raise batch.size"
        )


def weighted_mean(value_N: Tensor, weight_N: Tensor) -> Tensor:
    """The weighted mean; 0 if there is no weight."""
    return (weight_N * value_N).sum() / total(weight_N)


def total(weight_N: Tensor) -> Tensor:
    """The sum of weights, to divide by: 1 where there is none, and all that is divided is 0."""
    sum_of = weight_N.sum()
    return torch.where(sum_of > 0, sum_of, 1)


def running_mean(state: State, value_N: Tensor, weight_N: Tensor, decay: float) -> dict[str, Tensor]:
    """The weighted mean of all values so far, those of each batch before counting `decay` times as much as in the last.

    Args:
        state: "mean" and "weight", both 0 at first.
        value_N: values of this batch, without gradient.
        weight_N: their weights.
        decay: 1 counts all batches alike.
    """
    weight = decay * state["weight"] + weight_N.sum()
    change = (weight_N * (value_N - state["mean"])).sum() / total(weight)
    return {"mean": state["mean"] + change, "weight": weight}


def check_shift(shift: str, decay: float) -> None:
    """Raise ValueError unless a shift is "running", with a decay in (0, 1], or "none", with none."""
    check(shift in ("running", "none"), f'shift must be "running" or "none", got {shift!r}')
    check(0 < decay <= 1, f"decay must be in (0, 1], got {decay}: 1 counts all batches alike")
    check(
        shift == "running" or decay == 1,
        f"decay is {decay}, but without a shift nothing decays: leave it out or set shift to running",
    )


def first_shift(shift: str) -> State:
    """The state of `running_mean` before the first batch; none where nothing runs."""
    return {"mean": torch.zeros(()), "weight": torch.zeros(())} if shift == "running" else {}


def smoothed(margin_S: Tensor, label_smoothing: float) -> Tensor:
    """Logistic loss of margins whose sign is wrong with a probability."""
    return -(1 - label_smoothing) * logsigmoid(margin_S) - label_smoothing * logsigmoid(-margin_S)


@dataclass(frozen=True)
class Quantiles:
    """Two weighted samples, side by side over the unit interval, each in ascending order.

    Attributes:
        first_S: index of the first sample's value on each segment.
        second_S: index of the second sample's value.
        width_S: width of the segment, float64; they sum to 1, or are all 0 if a sample has no weight.
    """

    first_S: Tensor
    second_S: Tensor
    width_S: Tensor


def quantiles(value_N: Tensor, weight_N: Tensor, other_M: Tensor, other_weight_M: Tensor) -> Quantiles:
    """Couples two samples quantile by quantile, which is optimal transport on the line.

    Between the places at which either quantile function steps, both are constant: these are the segments. Samples of
    one size and equal weights are coupled value by value, in sorted order. It is worked out in float64, in which sums
    of equal weights are equal: on the CPU where the device has none (MPS).

    Args:
        value_N: the first sample, without gradient.
        weight_N: its weights, >= 0.
        other_M: the second sample.
        other_weight_M: its weights.
    """
    device = value_N.device
    if device.type == "mps":
        value_N, weight_N, other_M, other_weight_M = (
            each.cpu() for each in (value_N, weight_N, other_M, other_weight_M)
        )
    (order_N, end_N), (order_M, end_M) = _steps(value_N, weight_N), _steps(other_M, other_weight_M)
    end_S = torch.cat([end_N, end_M]).sort().values
    width_S = torch.diff(end_S, prepend=end_S.new_zeros(1))
    middle_S = end_S - width_S / 2
    both = (weight_N.sum() > 0) & (other_weight_M.sum() > 0)
    return Quantiles(
        order_N[torch.searchsorted(end_N, middle_S).clamp(max=len(end_N) - 1)].to(device),
        order_M[torch.searchsorted(end_M, middle_S).clamp(max=len(end_M) - 1)].to(device),
        width_S * both,
    )


def _steps(value_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
    """The values' ascending order, and where in the unit interval each one's share of the weight ends, in float64."""
    order_N = torch.argsort(value_N, stable=True)
    end_N = weight_N[order_N].double().cumsum(0)
    return order_N, end_N / total(end_N[-1])


def shared_out(value_S: Tensor, owner_S: Tensor, weight_E: Tensor) -> Tensor:
    """Values of examples whose weighted mean is the sum of values that belong to them, shape E.

    Args:
        value_S: each belongs to one example, and is 0 where that has no weight.
        owner_S: the example.
        weight_E: weights of the mean.
    """
    sum_E = value_S.new_zeros(len(weight_E)).index_add(0, owner_S, value_S)
    return sum_E * weight_E.sum() / torch.where(weight_E > 0, weight_E, 1)

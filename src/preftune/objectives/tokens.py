"""What objectives and modifiers make of the log-probs of tokens. Tensor names carry their shape as in `batch`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from preftune.objectives.batch import Batch, LogProbs, Role, pair_indices


def ratios_R(who: str, policy: LogProbs, reference: LogProbs | None, batch: Batch) -> Tensor:
    """Log-ratio of policy to reference of each whole response, in nats, shape R.

    Args:
        who: the objective, for the message.

    Raises:
        ValueError: if there is no reference.
    """
    if reference is None:
        raise ValueError(f"{who} compares with a reference: give its log-probs")
    policy_R = policy.sums_R(batch)
    return policy_R - reference.sums_R(batch).to(policy_R.dtype)


def required(values: Tensor | None, who: str, name: str) -> Tensor:
    """An optional field of the policy's log-probs that somebody cannot do without.

    Args:
        values: the field.
        who: the objective or modifier, for the message.
        name: of the field.

    Raises:
        ValueError: if it is not there.
    """
    if values is None:
        raise ValueError(f"{who} needs {name}: give it in the policy's LogProbs")
    return values


def in_tail_K(batch: Batch) -> Tensor:
    """True for targets beyond the length of their example's shortest response; targets of a response are in order."""
    lengths_R = batch.length_R
    order_K = torch.argsort(batch.response_K, stable=True)
    before_R = torch.cumsum(lengths_R, 0) - lengths_R
    sorted_K = batch.response_K[order_K]
    index_K = torch.arange(len(order_K), device=order_K.device) - before_R[sorted_K]
    shortest_E = lengths_R.new_full((len(batch.weight_E),), torch.iinfo(lengths_R.dtype).max)
    own_R = torch.where(batch.role_R == Role.BASELINE, torch.iinfo(lengths_R.dtype).max, lengths_R)
    shortest_E = shortest_E.scatter_reduce(0, batch.example_R, own_R, "amin")
    beyond_K = torch.empty_like(order_K, dtype=torch.bool)
    beyond_K[order_K] = index_K >= shortest_E[batch.example_R[sorted_K]]
    return beyond_K


def with_light_tails(logps: LogProbs, batch: Batch, alpha: float) -> LogProbs:
    """The log-probs, those of targets beyond the length of their example's shortest response multiplied by alpha."""
    return replace(logps, logps_K=torch.where(in_tail_K(batch), alpha * logps.logps_K, logps.logps_K))


def wpo_weight_E(who: str, policy: LogProbs, batch: Batch, clamp: float | None) -> Tensor:
    """How likely the policy would have written both responses of each pair, per token; without gradient.

    It is the product over both responses of exp(mean over tokens of (log pi(token) - log sum of squared
    probabilities)): 1 where tokens are on average as likely as those that the policy draws.

    Args:
        who: the objective or modifier, for the message.
        clamp: weights are at most this; None leaves them.

    Raises:
        ValueError: if the policy's log-probs have no log_sum_p2_K.
    """
    above_K = policy.logps_K - required(policy.log_sum_p2_K, who, "log_sum_p2_K")
    mean_R = LogProbs(above_K.detach()).sums_R(batch) / batch.length_R
    chosen_E, rejected_E = pair_indices(batch)
    weight_E = torch.exp(mean_R[chosen_E] + mean_R[rejected_E])
    return weight_E if clamp is None else weight_E.clamp(max=clamp)

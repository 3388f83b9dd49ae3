"""What objectives on rollouts share: what they may learn from, rewards within a group, ratios to the sampling policy.

A group is an example: one prompt, and the responses that the policy sampled to it. Tensor names carry their shape as in
`batch`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from preftune.errors import PreftuneError
from preftune.objectives.base import check
from preftune.objectives.batch import Batch, LogProbs, at_hand, beside, scores_R

# Log-ratios are cut at this many nats: exp(20) is far beyond any clip, and float32 still holds its square.
LARGEST = 20.0
REFUSALS: Mapping[str, str] = {
    "average": "rollouts carry log-probs that it would not change alike: leave it out",
    "temperature": "rollouts carry log-probs that it would not change alike: leave it out",
}


def covered_E(batch: Batch, names: Collection[str]) -> Tensor:
    """True for examples that carry all of these values at each of their targets, shape E: rollouts do; held-out pairs
    and the like do not, and there is nothing to learn from them here."""
    known = at_hand(batch)
    missing_K = torch.zeros_like(known.response_K, dtype=torch.bool)
    for name in names:
        values_K = known.token.get(name)
        missing_K = missing_K | (torch.ones_like(missing_K) if values_K is None else values_K.isnan())
    missing_E = torch.zeros_like(known.weight_E).index_add(
        0, known.example_R[known.response_K], missing_K.to(known.weight_E.dtype)
    )
    return beside(missing_E == 0, batch.weight_E)


def carried_K(batch: Batch, name: str, otherwise_K: Tensor) -> Tensor:
    """A value that rollouts carry, and something else where they do not, shape K."""
    values_K = batch.token.get(name)
    return otherwise_K if values_K is None else torch.where(values_K.isnan(), otherwise_K, values_K.to(otherwise_K))


def log_ratio_K(policy: LogProbs, batch: Batch) -> Tensor:
    """Log-ratio of the policy to the one that sampled the rollouts, at each target, nats; 0 where they do not say."""
    return policy.logps_K - carried_K(batch, "old_logps", policy.logps_K.detach())


def clipped_loss(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's loss of tokens or of responses: -min(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage).

    Args:
        log_ratio: of the policy to the one that sampled, nats, with gradient.
        advantage: without gradient; of the same shape.
        low: how far ratios may fall below 1.
        high: how far they may rise above it.

    Returns:
        The loss, and 1 where the clip holds it (no gradient), else 0.
    """
    ratio = log_ratio.clamp(-LARGEST, LARGEST).exp()
    free, held = -advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(free, held), (held > free).to(ratio.dtype).detach()


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's estimate exp(x) - x - 1 of KL(p || q) from a sample of p, where x = log q - log p: never negative, and
    unbiased."""
    x = log_ratio.clamp(-LARGEST, LARGEST)
    return x.exp() - x - 1


def group_mean(values_R: Tensor, batch: Batch) -> Tensor:
    """Mean of each example's responses, shape E."""
    sums_E = values_R.new_zeros(len(batch.weight_E)).index_add(0, batch.example_R, values_R)
    return sums_E / responses_E(batch).to(sums_E)


def responses_E(batch: Batch) -> Tensor:
    """Responses of each example, shape E."""
    ones_R = torch.ones_like(batch.example_R)
    return ones_R.new_zeros(len(batch.weight_E)).index_add(0, batch.example_R, ones_R)


def rewards_R(who: str, batch: Batch, names: Collection[str]) -> Tensor:
    """The reward of each response: its score, or 1 and 0 of a pair; 0 in examples that are not covered. Shape R.

    Args:
        who: the objective, for messages.
        batch: rollouts.
        names: of the values that they carry (see `covered_E`).

    Raises:
        PreftuneError: if a reward is no finite number, or a group has a single response.
    """
    known = at_hand(batch)
    covered_R = covered_E(known, names)[known.example_R]
    score_R = scores_R(known)
    bad_R = covered_R & ~score_R.isfinite()
    if bool(bad_R.any()):
        at = int(bad_R.int().argmax())
        raise PreftuneError(
            f"{who}: a response to the prompt of row {int(known.row_E[known.example_R[at]])} has reward "
            f"{score_R[at].item():g}, expected a finite number: mend what rewards it (online.judge)"
        )
    alone_E = responses_E(known) < 2
    if bool((alone_E[known.example_R] & covered_R).any()):
        raise PreftuneError(
            f"{who} compares the responses to one prompt, but a prompt has only one: set online.samples to 2 or more"
        )
    score_R = torch.where(covered_R, score_R, 0.0)
    return beside(score_R, batch.score_R)


def token_means(values_K: Tensor, batch: Batch) -> Tensor:
    """Mean over all targets of each example, shape E."""
    example_K = batch.example_R[batch.response_K]
    sums_E = values_K.new_zeros(len(batch.weight_E)).index_add(0, example_K, values_K)
    return sums_E / tokens_E(batch).to(sums_E)


def tokens_E(batch: Batch) -> Tensor:
    """Targets of each example, shape E."""
    tokens_E = torch.zeros_like(batch.weight_E)
    return tokens_E.index_add(0, batch.example_R, batch.length_R.to(tokens_E.dtype))


def step_figures(log_ratio_K: Tensor, clipped_K: Tensor, batch: Batch) -> dict[str, Tensor]:
    """How far a step has gone from the policy that sampled, of each example: the share of tokens that the clip holds,
    mean and largest ratio, and an estimate of the KL divergence per token, in nats."""
    log_ratio_K = log_ratio_K.detach().clamp(-LARGEST, LARGEST)
    ratio_K, example_K = log_ratio_K.exp(), batch.example_R[batch.response_K]
    highest_E = ratio_K.new_zeros(len(batch.weight_E)).scatter_reduce(0, example_K, ratio_K, "amax")
    return {
        "clipped": token_means(clipped_K, batch),
        "ratio_mean": token_means(ratio_K, batch),
        "ratio_max": highest_E,
        "approx_kl": token_means(k3(log_ratio_K), batch),
    }


def any_covered(batch: Batch, names: Collection[str]) -> bool:
    """True if there is a rollout to learn from."""
    return bool(covered_E(at_hand(batch), names).any())


def check_clip(name: str, value: float) -> None:
    """Raise ValueError unless a clip is in (0, 1)."""
    check(0 < value < 1, f"{name} must be in (0, 1), got {value}: ratios are held within it of 1; 0.2 is usual")


def check_beta(value: float) -> None:
    """Raise ValueError unless a KL coefficient is finite and >= 0."""
    check(0 <= value < math.inf, f"beta must be finite and >= 0, got {value}: it is the price of a nat of KL")


def implicit_R(beta: float, ratio_R: Tensor) -> Tensor:
    """Reward that a policy stands for, at the optimum of reward less beta * KL: beta * log-ratio, up to a constant for
    each prompt. NaN without a price on KL, where there is no such reward."""
    return beta * ratio_R.detach() if beta > 0 else torch.full_like(ratio_R, torch.nan).detach()

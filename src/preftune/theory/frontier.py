"""The exact frontier between reward and KL: how much reward a policy can have at most, for the nats that it moves.

Among all policies with a mean divergence KL(policy || reference) of k nats per response, the greatest mean reward is
that of pi_ref exp(r / beta) / Z, with the one beta, shared by all prompts, whose divergence is k (Levine 2018;
Rafailov et al. 2023, equation 4). Letting beta run from infinity to 0 draws the curve: it begins at the reference,
rises with slope beta, and ends where only the best responses of each prompt are left. Whatever a method does, it lies
on or below.

`Frontier` is the curve where all responses are listed; `SampledFrontier` estimates it from samples. Both answer the
same questions: `reward_at(kl)`, `gain_share(reward, kl)`, `regret(reward, kl)`. `best_of_n` is a policy to hold against
them.

    >>> reference = torch.tensor([[0.7, 0.2, 0.1]]).log()
    >>> reward = torch.tensor([[0.0, 1.0, 2.0]])
    >>> curve = Frontier.of(reference, reward)
    >>> policy = best_of_n(reference, reward, 4)
    >>> nats, gained = kl(policy, reference), expected(policy, reward)
    >>> round(float(nats), 3), round(float(gained), 3), round(curve.gain_share(float(gained), float(nats)), 3)
    (0.473, 1.104, 0.944)

Tensor names carry their shape: P prompts, Y responses of a prompt, S samples of a prompt, B betas.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from preftune.theory.tabular import reward_kl_optimum as optimum

__all__ = ["Curve", "Frontier", "SampledFrontier", "best_of_n", "expected", "kl", "objective", "optimum"]

_ROUNDING = 1e-12  # differences of rewards below this share of them are none


def expected(logps_PY: Tensor, value_PY: Tensor) -> Tensor:
    """Mean value under a policy: over its responses, then over prompts alike. A scalar, with gradient.

    Args:
        logps_PY: log-probabilities of the policy, nats.
        value_PY: value of each response; a reward, or one component of it.
    """
    return (logps_PY.exp() * value_PY).sum(-1).mean()


def kl(logps_PY: Tensor, reference_logps_PY: Tensor) -> Tensor:
    """KL(policy || reference), nats per response, mean over prompts. A scalar, with gradient.

    Args:
        logps_PY: log-probabilities of the policy, nats; responses of probability 0 have -infinity.
        reference_logps_PY: log-probabilities of the reference, nats, finite.
    """
    ratio_PY = torch.where(logps_PY.isneginf(), 0, logps_PY - reference_logps_PY)
    return (logps_PY.exp() * ratio_PY).sum(-1).mean()


def objective(logps_PY: Tensor, reference_logps_PY: Tensor, reward_PY: Tensor, beta: float) -> Tensor:
    """What RLHF maximises, exactly: mean reward less beta times KL(policy || reference). A scalar, with gradient.

    Its gradient by the parameters behind `logps_PY` is the exact policy gradient. The greatest value that any policy
    has is beta times the mean of log Z, that of `optimum`.

    Args:
        logps_PY: log-probabilities of the policy, nats.
        reference_logps_PY: log-probabilities of the reference, nats.
        reward_PY: reward of each response.
        beta: reward per nat.
    """
    return expected(logps_PY, reward_PY) - beta * kl(logps_PY, reference_logps_PY)


def best_of_n(reference_logps_PY: Tensor, reward_PY: Tensor, n: int) -> Tensor:
    """The policy that draws n responses from the reference and gives the one of greatest reward; of equals, the first.

    Its divergence is at most log n - (n - 1) / n, and that exactly if no two responses have one reward and none is
    probable (Stiennon et al. 2020; Beirami et al. 2024).

    Args:
        reference_logps_PY: log-probabilities of the reference, nats.
        reward_PY: reward of each response.
        n: responses drawn, >= 1.

    Returns:
        Log-probabilities, shape (P, Y), float64.

    Example:
        >>> half = torch.tensor([[0.5, 0.5]]).log()
        >>> best_of_n(half, torch.tensor([[1.0, 0.0]]), 2).exp().tolist()  # the worse one only if it comes twice
        [[0.75, 0.25]]
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    logps_PY, found_PY = reference_logps_PY.double().log_softmax(-1), []
    for logps_Y, reward_Y in zip(logps_PY.reshape(-1, logps_PY.shape[-1]), _rows(reward_PY), strict=True):
        levels, level_Y = reward_Y.unique(return_inverse=True)
        mass = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, level_Y, logps_Y.exp())
        up_to = mass.cumsum(0) / mass.sum()
        below = torch.cat([up_to.new_zeros(1), up_to[:-1]])
        # the best is of this level: all n are at most this good, and not all are worse
        best = up_to**n - below**n
        found_PY.append(logps_Y + (best / mass).log()[level_Y])
    return torch.stack(found_PY).reshape(logps_PY.shape)


@dataclass(frozen=True, eq=False)
class Curve(ABC):
    """Points of a frontier, in order of rising KL, the reference first.

    Attributes:
        beta_B: reward per nat at each point, which is the slope of the curve there; infinity at the reference.
        kl_B: nats per response.
        reward_B: mean reward.
        spread: mean over prompts of the reward's variance under the reference, which is how steeply the curve begins:
            reward - reward of the reference = sqrt(2 spread KL), for little KL.
        component_B: what each component of the reward is at each point.
    """

    beta_B: Tensor
    kl_B: Tensor
    reward_B: Tensor
    spread: float
    component_B: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def reference_reward(self) -> float:
        """Mean reward of the reference."""
        return float(self.reward_B[0])

    @property
    def last_kl(self) -> float:
        """Nats up to which the curve is known."""
        return float(self.kl_B[-1])

    def reward_at(self, kl: float) -> float:
        """The greatest mean reward that any policy has at a KL from the reference; NaN where the curve is not known.

        Between points it is a cubic in the root of KL through both, with the slopes that theory gives them.

        Args:
            kl: nats per response.
        """
        if math.isnan(kl) or kl < 0 or kl > self.last_kl:
            return math.nan if math.isnan(kl) or kl < 0 else self._beyond()
        after = min(int(torch.searchsorted(self.kl_B, kl, right=True)), len(self.kl_B) - 1)
        low, high = (math.sqrt(float(self.kl_B[i])) for i in (after - 1, after))
        rises = [self._rise(i) * (high - low) for i in (after - 1, after)]
        at = (math.sqrt(kl) - low) / (high - low)
        ends = float(self.reward_B[after - 1]), float(self.reward_B[after])
        return (
            (1 + 2 * at) * (1 - at) ** 2 * ends[0]
            + at * (1 - at) ** 2 * rises[0]
            + at**2 * (3 - 2 * at) * ends[1]
            - at**2 * (1 - at) * rises[1]
        )

    def gain_share(self, reward: float, kl: float) -> float:
        """Share of the greatest possible gain at this KL: (R - R_ref) / (R*(KL) - R_ref). At most 1, but for noise in
        what it is given; NaN where the curve is not known, and at a KL of 0 or less.

        Args:
            reward: mean reward of a policy.
            kl: its KL from the reference, nats per response.
        """
        possible = self.reward_at(kl) - self.reference_reward
        return (reward - self.reference_reward) / possible if kl > 0 and self._counts(possible) else math.nan

    def regret(self, reward: float, kl: float) -> float:
        """Share of the greatest possible gain at this KL that was missed: 1 - `gain_share`."""
        return 1 - self.gain_share(reward, kl)

    def _counts(self, gain: float) -> bool:
        return gain > _ROUNDING * (abs(self.reference_reward) or 1.0)

    def _beyond(self) -> float:
        """The reward at more nats than those of the last point."""
        return math.nan

    def _rise(self, i: int) -> float:
        """Slope of the curve over the root of KL: 2 root(KL) beta."""
        if float(self.kl_B[i]) == 0:
            return math.sqrt(2 * self.spread)
        return 2 * math.sqrt(float(self.kl_B[i])) * float(self.beta_B[i])


@dataclass(frozen=True, eq=False)
class Frontier(Curve):
    """The curve where all responses are listed, from the reference to the best responses alone."""

    @classmethod
    def of(
        cls,
        reference_logps_PY: Tensor,
        reward_PY: Tensor,
        components: Mapping[str, Tensor] | None = None,
        betas: Tensor | None = None,
    ) -> Frontier:
        """The frontier of a finite world.

        Args:
            reference_logps_PY: log-probabilities of the reference over all responses, nats, finite.
            reward_PY: reward of each response.
            components: parts of the reward by name, each of shape (P, Y).
            betas: points to compute, > 0; by default 200 from a hundred times the reward's spread down to where the
                second best responses have vanished.
        """
        reference_PY, reward_PY = reference_logps_PY.double().log_softmax(-1), reward_PY.double()
        parts = {name: value.double() for name, value in (components or {}).items()}
        spread = _spread(reference_PY, reward_PY)
        if betas is None:
            betas = _betas(math.sqrt(spread), 200)
        best_PY = reward_PY >= reward_PY.amax(-1, keepdim=True)
        policies = [reference_PY, *(optimum(reference_PY, reward_PY, float(beta)) for beta in _falling(betas))]
        policies.append(reference_PY.masked_fill(~best_PY, -math.inf).log_softmax(-1))
        kl_B = torch.stack([kl(logps_PY, reference_PY) for logps_PY in policies])
        kl_B[0] = 0  # and not what rounding left of it
        return cls(
            torch.cat([torch.tensor([math.inf]), _falling(betas), torch.zeros(1)]).double(),
            kl_B.cummax(0).values,
            torch.stack([expected(logps_PY, reward_PY) for logps_PY in policies]),
            spread,
            {name: torch.stack([expected(each, value) for each in policies]) for name, value in parts.items()},
        )

    @property
    def best_reward(self) -> float:
        """Mean over prompts of the greatest reward that a response has."""
        return float(self.reward_B[-1])

    def attainable_share(self, kl: float) -> float:
        """How much of the way from the reference's reward to the best responses' can be had at this KL; NaN if there is
        no way to go."""
        way = self.best_reward - self.reference_reward
        return (self.reward_at(kl) - self.reference_reward) / way if self._counts(way) else math.nan

    def _beyond(self) -> float:
        return self.best_reward


@dataclass(frozen=True, eq=False)
class SampledFrontier(Curve):
    """The curve by self-normalised importance sampling, from the reference to where samples give out.

    At a given KL of k nats, the best reward is the least value over beta of beta k + beta mean log Z. So what sampling
    does to the curve is, to first order, beta times what it does to mean log Z, whose estimate for a prompt has the
    variance 1 / ESS - 1 / S (for S samples of the reference itself) and is too low by half of that.

    Attributes:
        effective_B: effective sample size of a prompt at each point, ESS = 1 / sum of squared weights; harmonic mean
            over prompts, so that no prompt hides behind the others.
        error_B: standard error of `reward_at` the KL of each point.
        bias_B: by how much the curve is too low there, on average.
    """

    effective_B: Tensor = field(default_factory=lambda: torch.zeros(0))
    error_B: Tensor = field(default_factory=lambda: torch.zeros(0))
    bias_B: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of(
        cls,
        reward_PS: Tensor,
        log_weight_PS: Tensor | None = None,
        components: Mapping[str, Tensor] | None = None,
        betas: Tensor | None = None,
        *,
        least_effective: float = 100.0,
    ) -> SampledFrontier:
        """The frontier from responses that were sampled to each prompt.

        Below an effective sample size of some tens the largest weight decides: the curve is then too low, and flatters
        policies that are held against it.

        Args:
            reward_PS: reward of each sample.
            log_weight_PS: log of reference over proposal probability of each sample; None: the reference sampled them.
            components: parts of the reward by name, each of shape (P, S).
            betas: points to compute, > 0; by default 200 over four decades.
            least_effective: effective sample size of a prompt at which the curve is cut.

        Raises:
            ValueError: if it has no point beside the reference.
        """
        reward_PS = reward_PS.double()
        prior_PS = torch.zeros_like(reward_PS) if log_weight_PS is None else log_weight_PS.double()
        prior_PS = prior_PS.log_softmax(-1)
        # samples with weights are a finite world, whose reference are the weights
        whole = Frontier.of(prior_PS, reward_PS, components, betas)
        policies = [prior_PS, *(optimum(prior_PS, reward_PS, float(beta)) for beta in whole.beta_B[1:-1])]
        weights = [logps_PS.exp() for logps_PS in policies]
        inverse_B = torch.stack([weight_PS.square().sum(-1).mean() for weight_PS in weights])
        variance_B = torch.stack([(weight_PS - weights[0]).square().sum(-1).mean() for weight_PS in weights])
        effective_B = 1 / inverse_B
        low = (effective_B < least_effective).nonzero()
        known = int(low[0]) if len(low) else len(policies)
        if known < 2:
            raise ValueError(
                f"an effective sample size of {least_effective} per prompt is out of reach with {reward_PS.shape[-1]} "
                "samples of each: draw more samples, or ask for less"
            )
        beta_B, prompts = whole.beta_B[:known], reward_PS.numel() // reward_PS.shape[-1]
        error_B = beta_B * variance_B[:known].sqrt()
        centred_PS = reward_PS - (weights[0] * reward_PS).sum(-1, keepdim=True)
        error_B[0] = (weights[0] * centred_PS).square().sum(-1).mean().sqrt()  # its limit: the error of a mean
        return cls(
            beta_B,
            whole.kl_B[:known],
            whole.reward_B[:known],
            whole.spread,
            {name: value[:known] for name, value in whole.component_B.items()},
            effective_B[:known],
            error_B / math.sqrt(prompts),
            torch.where(beta_B.isinf(), 0, beta_B * (inverse_B[:known] - inverse_B[0]) / 2),
        )


def _rows(value_PY: Tensor) -> Tensor:
    return value_PY.double().reshape(-1, value_PY.shape[-1])


def _spread(reference_PY: Tensor, reward_PY: Tensor) -> float:
    p_PY = reference_PY.exp()
    centred_PY = reward_PY - (p_PY * reward_PY).sum(-1, keepdim=True)
    return float((p_PY * centred_PY.square()).sum(-1).mean())


def _betas(unit: float, n: int) -> Tensor:
    """From a hundred spreads of the reward, where the curve is still a root, to a hundredth, where it is flat."""
    return torch.logspace(2, -2, n, dtype=torch.float64) * (unit or 1.0)


def _falling(betas: Tensor) -> Tensor:
    if (betas <= 0).any():
        raise ValueError("betas must be > 0: 0 is the end of the curve, which is always part of it")
    return betas.double().sort(descending=True).values

"""From the reward of whole responses to advantages of tokens: KL reward, generalised advantages, whitening.

Arrays carry their shape: T targets of one response; lists are over responses. All is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SMALLEST = 1e-8  # added to a variance
MOST = 0.2  # of its error, that the KL controller heeds


def token_rewards(old_logps_T: Floats, reference_logps_T: Floats, reward: float, beta: float) -> Floats:
    """Rewards of a response's tokens: what each costs in KL, and at the last one what the whole response earned.

    Args:
        old_logps_T: log-probs under the policy that sampled it, nats.
        reference_logps_T: the same under the reference.
        reward: of the response.
        beta: price of a nat.

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.

    Example:
        >>> token_rewards(np.array([-1.0, -2.0]), np.array([-2.0, -1.0]), reward=3.0, beta=0.5).tolist()
        [-0.5, 3.5]
    """
    rewards_T = -beta * (np.asarray(old_logps_T, np.float64) - np.asarray(reference_logps_T, np.float64))
    rewards_T[-1] += reward
    return rewards_T


def generalised_advantages(rewards_T: Floats, values_T: Floats, gamma: float, lam: float) -> Floats:
    """Generalised advantage estimates: discounted sums of one-step errors of the values.

    The value after the last token is 0, whether the response ended there or was cut.

    Args:
        rewards_T: of each token.
        values_T: expected return before each token.
        gamma: discount per token.
        lam: 0: one-step errors; 1: the whole return less the value.

    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
        arXiv 1506.02438, equation 16.

    Example:
        >>> generalised_advantages(np.array([0.0, 1.0]), np.array([0.5, 0.25]), gamma=1.0, lam=0.5).tolist()
        [0.125, 0.75]
    """
    advantages_T, ahead, value_ahead = np.empty(len(rewards_T)), 0.0, 0.0
    for t in range(len(rewards_T) - 1, -1, -1):
        error = rewards_T[t] + gamma * value_ahead - values_T[t]
        ahead = error + gamma * lam * ahead
        advantages_T[t], value_ahead = ahead, values_T[t]
    return advantages_T


def whitened(values: Sequence[Floats], counts: Sequence[bool] | None = None, keep_mean: bool = False) -> list[Floats]:
    """Values of many responses, scaled together to variance 1, and to mean 0 unless the mean is to be kept.

    Args:
        values: of the tokens of each response.
        counts: which responses mean and variance are taken over; None: all.
        keep_mean: give back the mean that they had.

    Source: Ziegler et al. 2019, arXiv 1909.08593, whose code takes the variance with n, and keeps the mean of rewards.

    Example:
        >>> [each.round(4).tolist() for each in whitened([np.array([1.0, 3.0]), np.array([5.0])])]
        [[-1.2247, 0.0], [1.2247]]
    """
    together = np.concatenate([each for i, each in enumerate(values) if counts is None or counts[i]])
    mean, scale = together.mean(), 1 / np.sqrt(together.var() + SMALLEST)
    return [(each - mean) * scale + (mean if keep_mean else 0.0) for each in values]


@dataclass
class KLController:
    """The price of a nat, which follows the KL divergence that is seen if there is a target for it.

    Attributes:
        beta: price of a nat of KL divergence from the reference, in reward.
        target: nats per response; None: beta stays.
        horizon: responses over which beta adapts.

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2: a proportional controller of log beta.

    Example:
        >>> controller = KLController(0.1, target=6.0, horizon=1000)
        >>> controller.update(kl=6.6, responses=500)  # 10% above: by 1 + 0.1 * 0.5
        >>> round(controller.beta, 4)
        0.105
    """

    beta: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, responses: int) -> None:
        """Adapt to what was seen.

        Args:
            kl: nats per response.
            responses: how many it was seen in.
        """
        if self.target is None:
            return
        error = min(MOST, max(-MOST, kl / self.target - 1)) if math.isfinite(kl) else MOST
        # of more responses than the horizon, one step may not turn the price's sign
        self.beta *= 1 + error * min(responses / self.horizon, 1.0)

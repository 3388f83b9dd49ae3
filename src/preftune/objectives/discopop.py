"""Discovered preference optimisation."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class DiscoPOP(PairObjective):
    """DiscoPOP: a blend of logistic and exponential loss, found by a language model's search.

    Equation:
        loss = (1 - s) * (-log sigmoid(x)) + s * exp(-x), x = beta * delta, s = sigmoid(x / tau)
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))

        Pairs out of order (x < 0) see the logistic loss, pairs in order the exponential one. It is not convex:
        around x = 0 it rises with x, so a pair slightly out of order sits in a local minimum.

    Source: Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models",
        arXiv 2406.08414 (log-ratio modulated loss). Defaults beta 0.05 and tau 0.05: theirs, as in TRL and Liger.

    When to use: to compare with DPO on the same data; its authors report small gains.

    In nats: x = 1 is a delta of 1 / beta: 20 nats at beta 0.05. One loss gives way to the other within tau / beta nats
        of delta 0: 1 at the defaults.

    Differs between libraries: none: the authors, TRL and Liger have the same values.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.1.
        tau: width of the change from one loss to the other, in units of beta * delta, in (0, 1]. Usual: 0.05.

    Example:
        >>> from torch import tensor
        >>> result = DiscoPOP(beta=0.5, tau=0.5).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # x = 1, s = sigmoid(2) = 0.8808: 0.1192 * 0.3133 + 0.8808 * 0.3679
        0.3614
    """

    beta: float = 0.05
    tau: float = 0.05

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.05 is usual")
        check(
            0 < self.tau <= 1,
            f"tau must be in (0, 1], got {self.tau}: above 1 the exponential grows faster than its share falls; "
            "0.05 is usual",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        x_E = self.beta * pairs.delta_E
        gate_E = x_E / self.tau
        # one exponential for share and loss together: each alone would leave the range of floats
        return torch.sigmoid(-gate_E) * -logsigmoid(x_E) + torch.exp(logsigmoid(gate_E) - x_E)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

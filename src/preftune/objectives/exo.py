"""Efficient exact optimisation."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class EXO(PairObjective):
    """EXO: the KL divergence from the policy's preference to the label's, where DPO has the opposite direction.

    Equation:
        loss = q * (log q - log(1 - epsilon)) + (1 - q) * (log(1 - q) - log epsilon)
        q = sigmoid(beta * delta), delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))

        The label says "chosen is better" with probability 1 - epsilon. The loss is 0 at q = 1 - epsilon, nowhere
        negative, and levels off at log(1 / epsilon) for pairs that are far out of order.

    Source: Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", arXiv 2402.00856,
        equation 16 for pairs. Default beta 0.1: theirs for IMDb (0.5 for TL;DR). Default epsilon 1e-3: TRL's advice.

    When to use: where the policy should settle on the best answers rather than cover all good ones: the direction of
        the divergence seeks modes. Pairs far out of order hardly pull, so begin from a fine-tuned policy.

    In nats: delta is drawn to log((1 - epsilon) / epsilon) / beta: 69 nats at the defaults, 14 at beta 0.5.

    Differs between libraries: the authors' code has log epsilon = -10 (epsilon 4.54e-5) and 0 for log(1 - epsilon),
        which changes the loss by less than 5e-5, and divides the logits of both models by 0.8, which we do not; TRL
        takes epsilon from label_smoothing.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.1 to 0.5.
        epsilon: probability that a label is wrong, in (0, 0.5); the margin aimed at is log((1 - epsilon) / epsilon).
            Usual: 5e-5 to 1e-3.

    Example:
        >>> from torch import tensor
        >>> result = EXO(beta=0.5, epsilon=0.25).on_pairs(
        ...     tensor([-6.0]), tensor([-9.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # q = 1/2: log(1/2) - (log(3/4) + log(1/4)) / 2
        0.1438
    """

    beta: float = 0.1
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(
            0 < self.epsilon < 0.5,
            f"epsilon must be in (0, 0.5), got {self.epsilon}: the loss takes its logarithm; 0.001 is usual",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        margin_E = self.beta * pairs.delta_E
        log_right, log_wrong = math.log1p(-self.epsilon), math.log(self.epsilon)
        right_E = torch.sigmoid(margin_E) * (logsigmoid(margin_E) - log_right)
        return right_E + torch.sigmoid(-margin_E) * (logsigmoid(-margin_E) - log_wrong)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

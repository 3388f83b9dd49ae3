"""Anchored preference optimisation, down only."""

from dataclasses import dataclass

from torch import Tensor, sigmoid

from preftune.objectives.base import check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class APODown(PairObjective):
    """APO-down: both responses become less likely than under the reference, rejected ones more so.

    Equation:
        loss = sigmoid(beta * w) + 1 - sigmoid(beta * (w - l))
        w = log(pi(chosen) / pi_ref(chosen)), l = log(pi(rejected) / pi_ref(rejected))

        It lies between 0 and 2. Where labels never contradict each other, delta grows without end for beta below 1: as
        it widens, what holds chosen down fades faster than what drives the two apart.

    Source: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions: Addressing
        Underspecification in Alignment", arXiv 2408.06266. Default beta 0.1: theirs, as in TRL, to which their
        repository refers.

    When to use: the policy is better than the chosen responses already (a weaker model wrote them), so that only the
        difference between chosen and rejected is worth learning. If they are better, take APO-zero.

    In nats: a reward of 1 is a log-ratio of 1 / beta: 10 nats at beta 0.1. At 3 / beta nats each of the two forces is
        less than a fifth of what it is at the start.

    Differs between libraries: none: the authors' repository refers to TRL, whose loss this is.

    Args:
        beta: reward per nat, which sets how soon a pair stops to pull. Usual: 0.01 to 0.5.

    Example:
        >>> from torch import tensor
        >>> result = APODown(beta=1.0).on_pairs(
        ...     tensor([-6.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # log-ratios 0 and -1: 1/2 + 1 / (1 + e)
        0.7689
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")

    def pair_loss(self, pairs: Pairs) -> Tensor:
        # 1 - sigmoid(x) would round to 0 where sigmoid(-x) does not
        return sigmoid(self.beta * pairs.chosen_ratio_E) + sigmoid(-self.beta * pairs.delta_E)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

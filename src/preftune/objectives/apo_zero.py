"""Anchored preference optimisation, up and down."""

from dataclasses import dataclass

from torch import Tensor, sigmoid

from preftune.objectives.base import check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class APOZero(PairObjective):
    """APO-zero: chosen responses become more likely than under the reference, rejected ones less likely.

    Equation:
        loss = 1 - sigmoid(beta * w) + sigmoid(beta * l)
        w = log(pi(chosen) / pi_ref(chosen)), l = log(pi(rejected) / pi_ref(rejected))

        It lies between 0 and 2, and pairs far from the reference, in good order or not, hardly pull. It has no finite
        optimum, even with noisy labels: the majority is enough to drive log-ratios ever further apart.

    Source: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions: Addressing
        Underspecification in Alignment", arXiv 2408.06266. Default beta 0.1: theirs, as in TRL, to which their
        repository refers.

    When to use: chosen responses are better than what the policy says now (a stronger model wrote them). If they are
        worse, take APO-down.

    In nats: a reward of 1 is a log-ratio of 1 / beta: 10 nats at beta 0.1. At 3 / beta nats from the reference a
        response pulls with less than a fifth of its force at the start.

    Differs between libraries: none: the authors' repository refers to TRL, whose loss this is.

    Args:
        beta: reward per nat, which sets how soon a pair stops to pull. Usual: 0.01 to 0.5.

    Example:
        >>> from torch import tensor
        >>> result = APOZero(beta=1.0).on_pairs(
        ...     tensor([-5.0]), tensor([-9.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # log-ratios 1 and 0: 1 / (1 + e) + 1/2
        0.7689
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")

    def pair_loss(self, pairs: Pairs) -> Tensor:
        # 1 - sigmoid(x) would round to 0 where sigmoid(-x) does not
        return sigmoid(-self.beta * pairs.chosen_ratio_E) + sigmoid(self.beta * pairs.rejected_ratio_E)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

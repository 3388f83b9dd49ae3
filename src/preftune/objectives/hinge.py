"""The hinge loss of RSO."""

from dataclasses import dataclass

from torch import Tensor, relu

from preftune.objectives.base import check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class Hinge(PairObjective):
    """Hinge (RSO): a support vector machine on the difference of log-ratios.

    Equation:
        loss = max(0, 1 - beta * delta)
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))

        A pair pulls with constant force until delta is 1 / beta nats, and not at all beyond.

    Source: Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", arXiv 2309.06657
        (hinge-norm). Default beta 0.1: TRL and LLaMA-Factory.

    When to use: where DPO keeps pushing pairs apart that are in order already; the loss stops at a margin of 1.

    In nats: a pair pulls until delta is 1 / beta: 10 nats at beta 0.1.

    Differs between libraries: "hinge" is this loss in TRL's DPO and LLaMA-Factory, a loss without a reference in TRL's
        CPO, and SLiC's (on log-probabilities, plus likelihood) in HALOs.

    Args:
        beta: reward per nat; the distance aimed at is 1 / beta nats. Usual: 0.01 to 0.5.

    Example:
        >>> from torch import tensor
        >>> result = Hinge(beta=0.25).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> result.loss.item()  # delta = 1 + 1 = 2
        0.5
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "the distance aimed at is 1 / beta nats; 0.1 is usual")

    def pair_loss(self, pairs: Pairs) -> Tensor:
        return relu(1 - self.beta * pairs.delta_E)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

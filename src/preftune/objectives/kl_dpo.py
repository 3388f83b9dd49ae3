"""DPO with a penalty on the divergence from the reference."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class KLDPO(PairObjective):
    """KL-penalised DPO: DPO plus a penalty on the squares of both log-ratios.

    Equation:
        loss = -log sigmoid(beta * (w - l)) + kl_weight * (w^2 + l^2)
        w = log(pi(chosen) / pi_ref(chosen)), l = log(pi(rejected) / pi_ref(rejected))

        Half the mean square of a log-ratio approximates the KL divergence between close policies (to second order), so
        this holds both responses near the reference, not only their difference.

    Source: DPO with the estimator k2 of the KL divergence (Schulman 2020, "Approximating KL Divergence") taken on the
        responses of the pair; default kl_weight 0.01 is ours: at beta 0.1 the minimum is at log-ratios of +-2 nats.

    When to use: where DPO makes chosen responses less likely together with rejected ones, or the policy drifts far.

    In nats: a margin of 1 is a delta of 1 / beta: 10 nats at beta 0.1. The penalty knows no beta: at kl_weight 0.01 a
        log-ratio of 5 nats costs 0.25.

    Differs between libraries: we know of no other library that has it.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.5.
        kl_weight: weight of the squared log-ratios, per square nat, >= 0; 0 is DPO. Usual: 0.001 to 0.1.

    Example:
        >>> from torch import tensor
        >>> result = KLDPO(beta=0.5, kl_weight=0.25).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # log-ratios 1 and -1: log(1 + exp(-1)) + 0.25 * 2
        0.8133
    """

    beta: float = 0.1
    kl_weight: float = 0.01

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(
            0 <= self.kl_weight < math.inf,
            f"kl_weight must be finite and >= 0, got {self.kl_weight}: it is the weight of the squared log-ratios; "
            "0.01 is usual",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        squares_E = pairs.chosen_ratio_E**2 + pairs.rejected_ratio_E**2
        return -logsigmoid(self.beta * pairs.delta_E) + self.kl_weight * squares_E

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

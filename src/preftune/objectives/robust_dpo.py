"""DPO that keeps rewards small."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class RobustDPO(PairObjective):
    """Robust DPO: DPO plus a penalty on the squares of both rewards.

    Equation:
        loss = -log sigmoid(r_w - r_l) + eta * (r_w^2 + r_l^2)
        r_w = beta * log(pi(chosen) / pi_ref(chosen)), r_l = beta * log(pi(rejected) / pi_ref(rejected))

        The penalty gives the loss a minimum at a finite distance: r_w = -r_l = r with sigmoid(-2 r) = 2 * eta * r.

    Source: ridge regularisation of DPO's rewards; default eta 0.1 is ours (r is 0.8 then, and the margin 1.6). The
        same as KL-penalised DPO with kl_weight = eta * beta^2, but eta means the same at every beta.

    When to use: few or noisy pairs, or many epochs, where DPO alone drives rewards ever further apart.

    In nats: a reward of 1 is a log-ratio of 1 / beta: 10 nats at beta 0.1. At the defaults log-ratios stop at 8 nats
        up for chosen and 8 down for rejected.

    Differs between libraries: we know of no other library that has it. TRL's "robust" is rDPO, which is for flipped
        labels.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.5.
        eta: weight of the squared rewards, >= 0; 0 is DPO. Usual: 0.01 to 1.

    Example:
        >>> from torch import tensor
        >>> result = RobustDPO(beta=0.5, eta=0.25).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # rewards 0.5 and -0.5: log(1 + exp(-1)) + 0.25 * 0.5
        0.4383
    """

    beta: float = 0.1
    eta: float = 0.1

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(
            0 <= self.eta < math.inf,
            f"eta must be finite and >= 0, got {self.eta}: it is the weight of the squared rewards; 0.1 is usual",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        chosen_E, rejected_E = self.beta * pairs.chosen_ratio_E, self.beta * pairs.rejected_ratio_E
        return -logsigmoid(chosen_E - rejected_E) + self.eta * (chosen_E**2 + rejected_E**2)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

"""DPO-positive (Smaug)."""

import math
from dataclasses import dataclass

from torch import Tensor, relu
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class DPOP(PairObjective):
    """DPOP (DPO-positive): DPO that forbids chosen responses to become less likely than under the reference.

    Equation:
        loss = -log sigmoid(beta * (w - l - lam * max(0, -w)))
        w = log(pi(chosen) / pi_ref(chosen)), l = log(pi(rejected) / pi_ref(rejected))

        The penalty stands inside the sigmoid, so beta multiplies it, and it vanishes where w >= 0. Where labels
        contradict each other it can outweigh what there is to learn: of two responses, the one preferred 80% of the
        time, the defaults do not leave the reference at all, because each gets its turn as chosen.

    Source: Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
        arXiv 2402.13228. Defaults beta 0.3 and lam 50: theirs (tried: beta 0.1, 0.3, 1; lam 5, 50, 500).

    When to use: chosen and rejected differ in few tokens (mathematics, code), where DPO lowers the likelihood of both.

    In nats: a margin of 1 is a delta of 1 / beta: 3.3 nats at beta 0.3. A nat by which chosen falls below the
        reference costs as much as lam nats of delta.

    Differs between libraries: no difference is known to us.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.1 to 1.
        lam: weight of the penalty against one nat of delta, >= 0; 0 is DPO. Usual: 5 to 500.

    Example:
        >>> from torch import tensor
        >>> result = DPOP(beta=0.5, lam=2.0).on_pairs(
        ...     tensor([-7.0]), tensor([-13.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # log-ratios -1 and -4: 3 - 2 * 1 = 1; log(1 + exp(-0.5))
        0.4741
    """

    beta: float = 0.3
    lam: float = 50.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.3 is usual")
        check(
            0 <= self.lam < math.inf,
            f"lam must be finite and >= 0, got {self.lam}: it is the weight of the penalty; 50 is usual",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        return -logsigmoid(self.beta * (pairs.delta_E - self.lam * relu(-pairs.chosen_ratio_E)))

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

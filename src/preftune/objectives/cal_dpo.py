"""Calibrated DPO."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class CalDPO(PairObjective):
    """Cal-DPO: a preference loss, plus regression of each reward on +1/2 (chosen) and -1/2 (rejected).

    Equation:
        loss = -log sigmoid(w - l) + calibration_weight * ((w - 1 / (2 beta))^2 + (l + 1 / (2 beta))^2)
        w = log(pi(chosen) / pi_ref(chosen)), l = log(pi(rejected) / pi_ref(rejected))

        The targets are rewards of +1/2 and -1/2, divided by beta. The logistic part has no beta.

    Source: Xiao et al. 2024, "Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment",
        arXiv 2412.14516. Defaults beta 0.002 and calibration_weight 0.5 (a mean of two squares): the authors' code.

    When to use: where the size of rewards matters, not only their order, or chosen responses lose likelihood.

    In nats: log-ratios are drawn to 1 / (2 beta) up and down: 250 nats at beta 0.002, 50 at 0.01.

    Differs between libraries: a logistic part without beta and the weight of 1/2 are those of the authors' code; we
        know of no other.

    Args:
        beta: reward per nat; the targets are 1 / (2 beta) nats away: 250 at the default. Usual: 0.001 to 0.01.
        calibration_weight: weight of the squares, per square nat, > 0. Usual: 0.5.

    Example:
        >>> from torch import tensor
        >>> result = CalDPO(beta=0.25).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # log-ratios 1 and -1, targets 2 and -2: log(1 + exp(-2)) + (1 + 1) / 2
        1.1269
    """

    beta: float = 0.002
    calibration_weight: float = 0.5

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "log-ratios are drawn to +-1 / (2 beta) nats; 0.002 is usual")
        check_positive("calibration_weight", self.calibration_weight, "without its squares the loss has no beta")

    def pair_loss(self, pairs: Pairs) -> Tensor:
        target = 1 / (2 * self.beta)
        squares_E = (pairs.chosen_ratio_E - target) ** 2 + (pairs.rejected_ratio_E + target) ** 2
        return -logsigmoid(pairs.delta_E) + self.calibration_weight * squares_E

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

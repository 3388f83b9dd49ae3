"""Length-regularised DPO."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class RDPO(PairObjective):
    """R-DPO: DPO for a reward from which every token of the response takes a fixed amount.

    Equation:
        loss = -log sigmoid(beta * delta + alpha * (|chosen| - |rejected|))
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected)), |.| in tokens

        The sign is plus: the policy that maximises r - alpha * |response| has r = beta * log-ratio + alpha * |response|
        (up to a constant), and labels follow r. A chosen response that is longer needs less delta, so length that the
        labels reward does not go into the policy.

    Source: Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization", arXiv 2403.19159.
        Default alpha 0.01 is ours: at beta 0.1, a token costs what a tenth of a nat earns.

    When to use: chosen responses are longer than rejected ones and the policy grows verbose. Compare the length of
        samples before and after; raise alpha until it stands still.

    In nats: a margin of 1 is a delta of 1 / beta: 10 nats at beta 0.1. A token by which chosen is longer stands for
        alpha / beta nats of delta: 0.1 at the defaults.

    Differs between libraries: check the sign of any other implementation; a minus rewards length. Not to be confused
        with rDPO, which is for noisy labels.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.5.
        alpha: reward that a token costs; 0 is DPO. Usual: 0.001 to 0.1.

    Example:
        >>> from torch import tensor
        >>> result = RDPO(beta=0.5, alpha=0.25).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]), tensor([3]), tensor([5]))
        >>> round(result.loss.item(), 4)  # delta = 2: log(1 + exp(-(0.5 * 2 - 0.25 * 2)))
        0.4741
    """

    beta: float = 0.1
    alpha: float = 0.01

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(
            0 <= self.alpha < math.inf,
            f"alpha must be finite and >= 0, got {self.alpha}: it is the reward that a token costs; 0.01 is usual",
        )

    @property
    def needs_lengths(self) -> bool:
        return True

    def pair_loss(self, pairs: Pairs) -> Tensor:
        chosen_E = self.reward(pairs.chosen_ratio_E, pairs.chosen_length_E)
        return -logsigmoid(chosen_E - self.reward(pairs.rejected_ratio_E, pairs.rejected_length_E))

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio + self.alpha * length.to(ratio.dtype)

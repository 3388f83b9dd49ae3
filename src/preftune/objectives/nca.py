"""Noise contrastive alignment."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class NCA(PairObjective):
    """NCA: tells responses of the policy from those of the reference, so that rewards are absolute, not relative.

    Equation:
        loss = -log sigmoid(r_w) - 1/2 * log sigmoid(-r_w) - 1/2 * log sigmoid(-r_l)
        r_w = beta * log(pi(chosen) / pi_ref(chosen)), r_l = beta * log(pi(rejected) / pi_ref(rejected))

        The chosen reward is drawn to log 2, the rejected one goes down without end.

    Source: Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv 2402.05369,
        the form for pairs. Defaults beta 0.01 and a LoRA learning rate of 5e-6: the authors' code.

    When to use: where DPO makes chosen responses less likely; here their likelihood has an optimum of its own.

    In nats: the log-ratio of chosen is drawn to log(2) / beta: 69 nats at beta 0.01, 7 at 0.1.

    Differs between libraries: TRL's "nca_pair" is this loss. The authors' InfoNCA for pairs is DPO.

    Args:
        beta: reward per nat; chosen is drawn to log(2) / beta nats: 69 at the default. Usual: 0.001 to 0.1.

    Example:
        >>> from torch import tensor
        >>> result = NCA(beta=1.0).on_pairs(
        ...     tensor([-5.0]), tensor([-9.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # rewards 1 and 0: log(1 + 1/e) + log(1 + e) / 2 + log(2) / 2
        1.3165
    """

    lora_learning_rate: ClassVar[float] = 5e-6

    beta: float = 0.01

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "chosen is drawn to log(2) / beta nats; 0.01 is usual")

    def pair_loss(self, pairs: Pairs) -> Tensor:
        chosen_E, rejected_E = self.beta * pairs.chosen_ratio_E, self.beta * pairs.rejected_ratio_E
        return -logsigmoid(chosen_E) - 0.5 * logsigmoid(-chosen_E) - 0.5 * logsigmoid(-rejected_E)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

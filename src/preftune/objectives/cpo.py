"""Contrastive preference optimisation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class CPO(PairObjective):
    """CPO: DPO with a uniform reference, and the likelihood of chosen to hold the policy up.

    Equation:
        loss = -log sigmoid(beta * (log pi(chosen) - log pi(rejected))) - alpha * log pi(chosen) / |chosen|

    Source: Xu et al. 2024, "Contrastive Preference Optimization", arXiv 2401.08417, equations 4 to 6; beta 0.1 and
        alpha 1 as in the authors' code.

    When to use: chosen responses that are good in themselves (translations by a better model), and no memory or time
        for a reference.

    In nats: a margin of 1 is a difference of 1 / beta between the log-probs: 10 nats at beta 0.1. The likelihood of
        chosen counts in nats per token.

    Differs between libraries: the authors and TRL take the mean of the likelihood over all chosen tokens of a
        micro-batch, so that long responses count more and a cut of the batch changes it; here, as in LLaMA-Factory,
        each response has its own mean. The authors' weighting over a whole batch is the mix of cpo with alpha 0 and
        sft with weight alpha. TRL's label smoothing leaves the likelihood on chosen; a soft label here exchanges both.

    Args:
        beta: steepness, reward per nat. Usual: 0.1.
        alpha: weight of the likelihood of chosen, in nats per token; 0 leaves the comparison alone. Usual: 1.

    Example:
        >>> from torch import tensor
        >>> result = CPO(beta=0.1, alpha=1.0).on_pairs(
        ...     tensor([-4.0]), tensor([-9.0]), chosen_lengths=tensor([8]), rejected_lengths=tensor([8]))
        >>> round(result.loss.item(), 4)  # log(1 + exp(-0.5)) = 0.4741, and half a nat per token
        0.9741
    """

    reference: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {
        "average": "its likelihood is a mean over tokens already: mix simpo with sft for means in both",
        "temperature": "it would divide the likelihood of chosen too: set beta",
    }
    lora_learning_rate: ClassVar[float] = 1e-4

    beta: float = 0.1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat; 0.1 is usual")
        check(
            0 <= self.alpha < math.inf,
            f"alpha must be finite and >= 0, got {self.alpha}: it is the weight of chosen's likelihood; 1 is usual",
        )

    @property
    def needs_lengths(self) -> bool:
        return self.alpha > 0

    def pair_loss(self, pairs: Pairs) -> Tensor:
        loss_E = -logsigmoid(self.beta * (pairs.chosen_logps_E - pairs.rejected_logps_E))
        if self.alpha > 0:
            loss_E = loss_E - self.alpha * pairs.chosen_logps_E / pairs.chosen_length_E
        return loss_E

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

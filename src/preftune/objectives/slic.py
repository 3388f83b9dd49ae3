"""Sequence likelihood calibration from human feedback."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from preftune.objectives.base import check
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class SLiC(PairObjective):
    """SLiC-HF: chosen should be likelier than rejected by a margin; without a reference.

    Equation:
        loss = max(0, delta - log pi(chosen) + log pi(rejected)) - lam * log pi(chosen)

    Source: Zhao et al. 2023, "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", arXiv 2305.10425,
        equation 1 with the chosen response as the target of the last term; delta 1 as there. The paper gives no lam:
        0.1 is that of HALOs.

    When to use: as a baseline that stops at a margin: a pair that keeps it pulls no longer, but for the likelihood.

    In nats: the margin delta is in nats itself: chosen should be exp(delta) times as likely as rejected, 2.7 times at
        delta 1.

    Differs between libraries: in the paper the last term is the likelihood of a fine-tuning target, which need not be
        the chosen response (give lam 0 and mix with sft for data of that kind); HALOs has chosen, with its tokens left
        unsummed. The "hinge" of TRL and LLaMA-Factory is another loss, max(0, 1 - beta * delta) on log-ratios.

    Args:
        delta: margin, in nats between whole responses (per token with modifiers.average "mean"). Usual: 1.
        lam: weight of the likelihood of chosen, per nat. Usual: 0.1.

    Example:
        >>> from torch import tensor
        >>> result = SLiC(delta=1.0, lam=0.1).on_pairs(tensor([-4.0]), tensor([-4.5]))
        >>> round(result.loss.item(), 4)  # half a nat short of the margin, and 0.1 * 4
        0.9
    """

    reference: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {
        "temperature": "it would divide the likelihood of chosen too: multiply delta by it instead"
    }
    learning_rate: ClassVar[float] = 1e-5

    delta: float = 1.0
    lam: float = 0.1

    def __post_init__(self) -> None:
        check(
            0 <= self.delta < math.inf,
            f"delta must be finite and >= 0, got {self.delta}: it is the margin in nats; 1 is usual",
        )
        check(
            0 <= self.lam < math.inf,
            f"lam must be finite and >= 0, got {self.lam}: it is the weight of the likelihood of chosen",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        short_E = torch.relu(self.delta - pairs.chosen_logps_E + pairs.rejected_logps_E)
        return short_E - self.lam * pairs.chosen_logps_E

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return ratio

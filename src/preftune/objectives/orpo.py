"""Odds-ratio preference optimisation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class ORPO(PairObjective):
    """ORPO: likelihood of chosen, and the odds of chosen against rejected; without a reference.

    Equation:
        loss = -a(chosen) - lam * log sigmoid(log_odds(chosen) - log_odds(rejected))
        without its first term if likelihood is "none"
        a(y) = log pi(y) / |y|, the mean log-prob of a token
        log_odds(y) = a(y) - log(1 - exp(a(y)))

    Source: Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", arXiv 2403.07691;
        lam 0.1 as in the authors' Mistral recipe (1 if their script is given none; the paper: 0.1 to 0.25).

    When to use: to go from a base model to an aligned one in a single stage, in place of SFT and then DPO; it needs the
        learning rate of SFT rather than that of DPO.

    In nats: there is no beta: what is compared is the mean log-prob of a token. At -1 nat per token (probability 0.37)
        the log-odds are -0.54 and rise by 1.58 per nat per token.

    Differs between libraries: the likelihood covers prompt and chosen in the authors' default and in TRL, the
        completion alone in LLaMA-Factory and here, where prompt tokens are no targets (--disable_prompt_loss of the
        authors). The authors and TRL take one mean over all tokens of a micro-batch, so that long responses count more;
        LLaMA-Factory and we the mean of each response. Their weighting, over the whole optimiser batch, is the mix of
        orpo with likelihood: none, and sft, both of weight 1. A soft label exchanges the responses in both terms here,
        and leaves the likelihood of a mix on chosen. The authors' mask counts the first padding token of a padded row.

    Args:
        lam: weight of the odds ratio. Usual: 0.05 to 1.
        clamp: a(y) is kept at -clamp or below, in nats per token, because the odds of a response that is certain are
            infinite; 0 clamps nothing. Beyond it the odds have no slope. Usual: 1e-6.
        likelihood: "response", the mean over the tokens of each chosen response; or "none", for a mix with sft.

    Example:
        >>> from torch import tensor
        >>> result = ORPO(lam=0.5).on_pairs(
        ...     tensor([-2 * math.log(2)]), tensor([-math.log(4)]), None, None, tensor([2]), tensor([1]))
        >>> round(result.loss.item(), 4)  # tokens of 1/2 and 1/4: odds 1 and 1/3; log 2 + 0.5 * log(1 + 1/3)
        0.837
    """

    reference: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {
        "average": "ORPO divides by lengths itself: leave it out",
        "temperature": "odds are those of probabilities, which a temperature would change: set lam",
    }
    learning_rate: ClassVar[float] = 2e-5
    lora_learning_rate: ClassVar[float] = 2e-4

    lam: float = 0.1
    clamp: float = 1e-6
    likelihood: Literal["response", "none"] = "response"

    def __post_init__(self) -> None:
        check(
            0 <= self.lam < math.inf,
            f"lam must be finite and >= 0, got {self.lam}: it is the weight of the odds ratio; 0.1 is usual",
        )
        check(
            0 <= self.clamp < math.inf,
            f"clamp must be finite and >= 0, got {self.clamp}: it is the least nats per token that odds are taken of",
        )
        check(
            self.likelihood in ("response", "none"),
            f'likelihood must be "response" or "none", got {self.likelihood!r}',
        )
        check(
            self.likelihood == "response" or self.lam > 0,
            "with likelihood none and lam 0 nothing is left to learn: set likelihood to response, or lam above 0",
        )

    @property
    def needs_lengths(self) -> bool:
        return True

    def pair_loss(self, pairs: Pairs) -> Tensor:
        chosen_E = pairs.chosen_logps_E / pairs.chosen_length_E
        rejected_E = pairs.rejected_logps_E / pairs.rejected_length_E
        loss_E = -self.lam * logsigmoid(self._log_odds(chosen_E) - self._log_odds(rejected_E))
        return loss_E - chosen_E if self.likelihood == "response" else loss_E

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self._log_odds(ratio / length)

    def _log_odds(self, mean: Tensor) -> Tensor:
        mean = mean.clamp(max=-self.clamp)
        return mean - torch.log(-torch.expm1(mean))

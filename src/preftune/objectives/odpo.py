"""DPO with an offset by the rated difference."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class ODPO(PairObjective):
    """ODPO: DPO that asks for a margin, the larger the better chosen was rated than rejected.

    Equation:
        loss = -log sigmoid(beta * delta - alpha * f(gap))
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))
        gap = score(chosen) - score(rejected), f = log or the gap itself; f(-gap) = -f(gap) for a pair that confidence
        swaps

    Source: Amini, Vieira and Cotterell 2024, "Direct Preference Optimization with an Offset", arXiv 2402.10571.
        Defaults alpha 1 and f = log: the authors' code, whose beta is 0.7 (IMDb, with alpha 0.5), 0.05 (toxicity) or
        0.5 (TL;DR); our default of 0.1 is DPO's.

    When to use: pairs that come with scores (a reward model's, or ratings), some of them close and some far apart. The
        data needs a column gap, or the two scores; pairs rated alike must be left out.

    In nats: a margin of 1 is a delta of 1 / beta: 10 nats at beta 0.1. The offset asks for alpha * f(gap) / beta nats
        more: 7 for a gap of 2 at the defaults.

    Differs between libraries: the authors' option `ratio` takes the logarithm of the ratio of the two scores instead:
        give that logarithm as gap and set scaling to identity.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.05 to 0.7.
        alpha: offset per unit of f(gap), >= 0; 0 is DPO. Usual: 0.5 to 1.
        scaling: f: "log" (gaps below 1 give negative offsets; every gap must be > 0) or "identity".

    Example:
        >>> from torch import tensor
        >>> result = ODPO(beta=0.5, scaling="identity").on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]), gap=tensor([0.5]))
        >>> round(result.loss.item(), 4)  # delta = 2: log(1 + exp(-(1 - 0.5)))
        0.4741
    """

    columns: ClassVar[frozenset[str]] = frozenset({"gap"})

    beta: float = 0.1
    alpha: float = 1.0
    scaling: Literal["log", "identity"] = "log"

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(
            0 <= self.alpha < math.inf,
            f"alpha must be finite and >= 0, got {self.alpha}: it is the offset per unit of f(gap); 1 is usual",
        )
        check(self.scaling in ("log", "identity"), f'scaling must be "log" or "identity", got {self.scaling!r}')

    def check_column(self, name: str, value: float) -> None:
        super().check_column(name, value)
        check(
            self.scaling == "identity" or value > 0,
            f"{name} must be > 0 to have a logarithm, got {value:g}: leave such pairs out or set scaling to identity",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        gap_E = pairs.gap_E.to(pairs.delta_E.dtype)
        offset_E = gap_E.abs().log() * gap_E.sign() if self.scaling == "log" else gap_E
        return -logsigmoid(self.beta * pairs.delta_E - self.alpha * offset_E)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

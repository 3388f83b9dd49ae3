"""DPO under other divergences than the reverse KL."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class FDPO(PairObjective):
    """f-DPO: DPO where another f-divergence than the reverse KL holds the policy to the reference.

    Equation:
        loss = -log sigmoid(beta * (f'(u_w) - f'(u_l))), u = pi(response) / pi_ref(response)
        reverse_kl: f'(u) = log u                  (this is DPO)
        forward_kl: f'(u) = 1 - 1 / u
        js:         f'(u) = log(2 u / (1 + u))     (Jensen-Shannon)
        alpha:      f'(u) = (1 - u^-alpha) / alpha (between the KLs: reverse as alpha -> 0, forward as alpha -> 1)

        Constants, which drop out, are such that the reward beta * f'(u) is 0 at u = 1. In float32, forward_kl and alpha
        overflow where log u falls below -88 or -88 / alpha nats; training then stops and says so.

    Source: Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
        Constraints", arXiv 2309.16240. Their code's beta: reverse_kl 0.1 or 0.9, js 0.1 or 0.3, alpha 0.3 or 0.9,
        forward_kl 0.03 (HH) or 1e-5 (IMDb). Default: reverse_kl, beta 0.1.

    When to use: to trade diversity against reward. js and alpha keep more diverse answers than reverse_kl; forward_kl
        most of all, and it needs a small beta, because its reward falls exponentially as a response gets less likely.

    In nats: near the reference a nat of log-ratio earns a reward of beta (of beta / 2 with js). Far above it rewards
        level off: at beta with forward_kl, beta * log 2 with js, beta / alpha with alpha; never with reverse_kl.

    Differs between libraries: the authors' alpha is ours. TRL's coefficient is 1 - alpha since 2026-02, and was alpha
        before (default 1); it cuts exponents at 80 in float32, so that the gradient vanishes there. We cut nothing.

    Args:
        beta: reward per unit of f'. Usual: 0.01 to 0.9, see Source.
        divergence: "reverse_kl", "forward_kl", "js" or "alpha".
        alpha: in (0, 1), for divergence "alpha" only. Usual: 0.3 to 0.7.

    Example:
        >>> from torch import tensor
        >>> given = tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0])  # log-ratios 1 and -1
        >>> round(FDPO(beta=0.5, divergence="forward_kl").on_pairs(*given).loss.item(), 4)  # f' differ by e - 1/e
        0.2691
    """

    finite_up_to: ClassVar[float] = 80.0

    beta: float = 0.1
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per unit of f'; 0.1 is usual")
        check(
            self.divergence in ("reverse_kl", "forward_kl", "js", "alpha"),
            f'divergence must be "reverse_kl", "forward_kl", "js" or "alpha", got {self.divergence!r}',
        )
        if self.divergence == "alpha":
            check(
                self.alpha is not None and 0 < self.alpha < 1,
                f"alpha must be in (0, 1) for divergence alpha, got {self.alpha}: at its ends use reverse_kl and "
                "forward_kl",
            )
        else:
            check(self.alpha is None, f"alpha is {self.alpha}, but {self.divergence} has none: set divergence to alpha")

    def pair_loss(self, pairs: Pairs) -> Tensor:
        return -logsigmoid(self.beta * (self._slope(pairs.chosen_ratio_E) - self._slope(pairs.rejected_ratio_E)))

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * self._slope(ratio)

    def _slope(self, ratio: Tensor) -> Tensor:
        """f'(u) from log u; 0 at log u = 0."""
        if self.divergence == "reverse_kl":
            return ratio
        if self.divergence == "js":
            return logsigmoid(ratio) + math.log(2)
        alpha = 1.0 if self.alpha is None else self.alpha  # forward_kl is the end of the family
        return -torch.expm1(-alpha * ratio) / alpha

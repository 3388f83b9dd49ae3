"""Identity preference optimisation."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from preftune.objectives.base import check
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class IPO(PairObjective):
    """IPO: least squares towards a finite difference of log-ratios.

    Equation:
        loss = (delta - 1 / (2 tau))^2
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))

        With confidence p that chosen is better: p * (delta - 1/(2 tau))^2 + (1 - p) * (delta + 1/(2 tau))^2, smallest
        at delta = (2p - 1) / (2 tau).
        With average "mean", each log-ratio is divided by its own response's length first, and the target 1/(2 tau) is
        in nats per token.

    Source: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
        arXiv 2310.12036, equation 17.

    When to use: labels that never contradict each other (a checker, one annotator), or many epochs: delta is drawn to
        a finite target instead of growing for ever.

    In nats: delta is drawn to 1 / (2 tau): 0.5 nats at tau 1, 5 at 0.1, 50 at 0.01. With "mean" that is per token: tau
        0.1 asks two responses of 20 tokens for 100 nats.

    Differs between libraries: the paper's log-probabilities are those of whole responses: "sum", our default, as in
        the DPO authors' code, OpenRLHF and FIPO. TRL (since 2024-01), HALOs and LLaMA-Factory divide each log-ratio by
        its own length: "mean". Most call tau beta; the default 0.1 is that of HALOs.

    Args:
        tau: regularisation; the target is 1 / (2 tau) nats (per token with "mean"). Usual: 0.01 to 1 with "mean",
            0.05 to 1 with "sum": tau 0.01 with sums aims at 50 nats.
        average: "sum" or "mean" over a response's tokens.

    Example:
        >>> from torch import tensor
        >>> result = IPO(tau=0.5).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> result.loss.item()  # delta = 1 + 1 = 2, target = 1
        1.0
    """

    tau: float = 0.1
    average: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        check(
            0 < self.tau < math.inf,
            f"tau must be finite and > 0, got {self.tau}: the target log-ratio difference is 1 / (2 tau)",
        )
        check(self.average in ("sum", "mean"), f'average must be "sum" or "mean", got {self.average!r}')

    @property
    def needs_lengths(self) -> bool:
        return self.average == "mean"

    def pair_loss(self, pairs: Pairs) -> Tensor:
        chosen_E = self._scaled(pairs.chosen_ratio_E, pairs.chosen_length_E)
        rejected_E = self._scaled(pairs.rejected_ratio_E, pairs.rejected_length_E)
        return (chosen_E - rejected_E - 1 / (2 * self.tau)) ** 2

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.tau * self._scaled(ratio, length)

    def _scaled(self, ratio: Tensor, length: Tensor) -> Tensor:
        return ratio if self.average == "sum" else ratio / length

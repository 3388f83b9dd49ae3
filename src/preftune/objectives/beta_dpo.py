"""DPO with a beta that follows the data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import Confidence, Objective, Outcome, State, check, check_positive, refuse_doubt
from preftune.objectives.batch import Batch, LogProbs, at_hand, beside, pair_indices
from preftune.objectives.coupled import refuse_few, total, weighted_mean
from preftune.objectives.tokens import ratios_R

_CERTAIN = {"label_smoothing": "BetaDPO takes labels as certain, as gaps say which pairs to trust: leave it out"}


@dataclass(frozen=True)
class BetaDPO(Objective):
    """Beta-DPO: DPO without the pairs that stand out, and with a larger beta for batches that are easy to tell apart.

    Equation:
        loss = -log sigmoid(beta_b * delta) over the pairs that are kept, 0 over the others
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))
        beta_b = max(beta * (1 + alpha * (m - mean)), beta_min), without gradient; m is the mean delta of kept pairs
        mean, sd = decay * before + (1 - decay) * the batch's mean and standard deviation of delta; both 0 at first

        Of n pairs, n * (1 - filter_share), rounded down, are kept, one at least: drawn without replacement with weights
        exp(-((delta - mean) / max(sd, spread_min))^2 / 2). Losses are scaled so that the batch's mean is that over kept
        pairs. Weights count in all means; pairs of weight 0 are never kept. What chance adds to a pair is a function of
        its row in the data and of the number of steps so far, which is kept as state with mean and sd: neither the
        order of the batch matters, nor how it is cut.

    Source: Wu et al. 2024, "beta-DPO: Direct Preference Optimization with Dynamic beta", arXiv 2407.08639. Defaults:
        the authors' code.

    When to use: data that mixes clear and doubtful pairs, or pairs with outliers that DPO would learn by heart.

    In nats: with defaults, beta_b grows by 6 % for each tenth of a nat that kept pairs are further apart than usual,
        and from 1.65 nats below it has the floor beta_min. Rewards are beta times the log-ratio, with no regard to
        beta_b, so that those of different steps compare.

    Differs between libraries: none but the authors' code has it. There the draw is the process's random state's; its
        rounding and its kind of standard deviation (ours: of a sample, n - 1) we did not compare. spread_min is ours.

    Args:
        beta: beta of a batch as far apart as usual, reward per nat. Usual: 0.1.
        alpha: how fast beta_b grows, per nat. Usual: 0.6; 0 keeps it at beta.
        filter_share: share of pairs to leave out, in [0, 1). Usual: 0.2.
        decay: of the running mean and sd, in [0, 1). Usual: 0.9.
        beta_min: beta_b is at least this, > 0. Usual: 0.001.
        spread_min: sd counts as at least this, in nats, > 0. As training starts all deltas are 0 but for rounding;
            divided by the spread of that very rounding, it would say which pairs stand out. Usual: 0.001; more
            where log-probs are less exact (bfloat16).
        keep: "drawn": kept pairs are drawn by the weights; "likeliest": those nearest to the mean, in whole steps of
            spread_min, and of equally near ones those that chance adds more to.

    Example:
        >>> from torch import tensor
        >>> objective = BetaDPO(beta=1.0, alpha=0.5, filter_share=0.0, decay=0.5)
        >>> result = objective.on_pairs(tensor([-4.0, -4.0]), tensor([-6.0, -6.0]), *torch.full((2, 2), -5.0))
        >>> [round(x, 4) for x in result.loss_E.tolist()]  # delta 2, mean 1: beta_b = 1.5: log(1 + exp(-3))
        [0.0486, 0.0486]
    """

    couples: ClassVar[bool] = True
    confidence: ClassVar[Confidence] = "unused"
    least_examples: ClassVar[int] = 2
    refuses: ClassVar[Mapping[str, str]] = _CERTAIN

    beta: float = 0.1
    alpha: float = 0.6
    filter_share: float = 0.2
    decay: float = 0.9
    beta_min: float = 1e-3
    spread_min: float = 1e-3
    keep: Literal["drawn", "likeliest"] = "drawn"

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(
            0 <= self.alpha < math.inf,
            f"alpha must be finite and >= 0, got {self.alpha}: it is how fast beta grows with the gap; 0.6 is usual",
        )
        check(
            0 <= self.filter_share < 1,
            f"filter_share must be in [0, 1), got {self.filter_share}: it is the share of pairs left out; 0.2 is usual",
        )
        check(0 <= self.decay < 1, f"decay must be in [0, 1), got {self.decay}: at 1 the mean stays 0; 0.9 is usual")
        check_positive("beta_min", self.beta_min, "it is the smallest beta of a batch; 0.001 is usual")
        check_positive("spread_min", self.spread_min, "it is the smallest spread of gaps, in nats; 0.001 is usual")
        check(self.keep in ("drawn", "likeliest"), f'keep must be "drawn" or "likeliest", got {self.keep!r}')

    @property
    def needs_tokens(self) -> bool:
        return False

    def init(self) -> State:
        return {"mean": torch.zeros(()), "sd": torch.zeros(()), "step": torch.zeros((), dtype=torch.int64)}

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        ratio_R = ratios_R("BetaDPO", policy, reference, batch)
        refuse_few(self, batch, "measures how gaps spread over the batch")
        refuse_doubt(self, batch)
        chosen_E, rejected_E = pair_indices(batch)
        delta_E, weight_E = ratio_R[chosen_E] - ratio_R[rejected_E], batch.weight_E
        gap_E = delta_E.detach()
        after = self._after(gap_E, weight_E, state)
        kept_E = self._kept_E(gap_E, batch, after)
        kept_weight_E = weight_E * kept_E
        beyond = weighted_mean(gap_E, kept_weight_E) - after["mean"]
        beta = (self.beta * (1 + self.alpha * beyond)).clamp(min=self.beta_min)
        scale = weight_E.sum() / total(kept_weight_E)
        loss_E = -logsigmoid(beta * delta_E) * kept_E * scale
        return Outcome(loss_E, self.beta * ratio_R.detach(), after, {"beta": beta.expand(len(gap_E)), "kept": kept_E})

    def _after(self, gap_E: Tensor, weight_E: Tensor, state: State) -> dict[str, Tensor]:
        mean = weighted_mean(gap_E, weight_E)
        count = (weight_E > 0).sum()
        variance = weighted_mean((gap_E - mean) ** 2, weight_E) * count / (count - 1).clamp(min=1)
        return {
            "mean": self.decay * state["mean"] + (1 - self.decay) * mean,
            "sd": self.decay * state["sd"] + (1 - self.decay) * variance.sqrt(),
            "step": state["step"] + 1,
        }

    def _kept_E(self, gap_E: Tensor, batch: Batch, after: State) -> Tensor:
        """1 for the pairs that are kept, 0 for the others; float."""
        device, known = gap_E.device, at_hand(batch)
        mean, sd, counts_E = after["mean"], after["sd"], batch.weight_E > 0
        if device.type == "mps":
            gap_E, mean, sd, counts_E = (each.cpu() for each in (gap_E, mean, sd, counts_E))
        # in float64, which MPS lacks: against a spread that still grows, a pair may be thousands of deviations away
        mean, sd = mean.double(), sd.double()
        # the step stays on the host, where `init` counts from
        distance_E, chance_E = (gap_E.double() - mean).abs(), _gumbel_E(int(after["step"]), known.row_E)
        chance_E = beside(chance_E, gap_E)
        if self.keep == "drawn":  # the largest of log-weight plus Gumbel noise are a draw without replacement
            key_E = chance_E - (distance_E / sd.clamp(min=self.spread_min)) ** 2 / 2
        else:
            key_E = -torch.floor(distance_E / self.spread_min)
        key_E = torch.where(counts_E, key_E, -torch.inf)
        order_E = torch.argsort(chance_E, descending=True)
        order_E = order_E[torch.argsort(key_E[order_E], descending=True, stable=True)]
        # 30 * (1 - 0.9) is 2.9999999999999996
        count = max(1, math.floor(int((known.weight_E > 0).sum()) * (1 - self.filter_share) + 1e-9))
        kept_E = torch.zeros_like(gap_E)
        kept_E[order_E[:count]] = 1
        return kept_E.to(device)


def _gumbel_E(step: int, row_E: Tensor) -> Tensor:
    """Standard Gumbel noise, a function of step and row; of a row that occurs again, the next of its numbers."""
    rows = row_E.tolist()
    of_row = {row: np.random.default_rng((step, row + 1)) for row in rows}  # rows that are not known are -1
    return torch.tensor([of_row[row].gumbel() for row in rows], dtype=torch.float64)

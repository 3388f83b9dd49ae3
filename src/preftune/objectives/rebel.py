"""Regression on relative rewards."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from preftune.objectives.base import check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class REBEL(PairObjective):
    """REBEL: least squares of the difference of log-ratios on the difference of rewards.

    Equation:
        loss = (delta / eta - gap)^2
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))
        gap = reward(chosen) - reward(rejected), of either sign

        Its minimum is the policy pi_ref * exp(eta * reward), normalised. It reads the gap and not the label: swapping
        the two responses turns both signs, so a flipped label or a confidence below 1 changes nothing.

    Source: Gao et al. 2024, "REBEL: Reinforcement Learning via Regressing Relative Rewards", arXiv 2404.16767. Default
        eta 1: the authors' code (1e6 in its script for large batches).

    When to use: responses scored by a reward model, in rounds with the last policy as reference. It learns how much
        better a response is, where DPO and IPO know only that it is. The data needs a column gap, or the two scores.

    In nats: delta is drawn to eta * gap: at eta 1, a nat for each unit of reward.

    Differs between libraries: the authors' code squares delta - eta * gap, which is eta^2 times this: give the
        objective weight eta^2 for its values.

    Args:
        eta: nats of log-ratio per unit of reward, > 0; larger moves further from the reference. Usual: 1.

    Example:
        >>> from torch import tensor
        >>> result = REBEL(eta=2.0).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]), gap=tensor([3.0]))
        >>> result.loss.item()  # delta = 2: (2 / 2 - 3)^2
        4.0
    """

    columns: ClassVar[frozenset[str]] = frozenset({"gap"})

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_positive("eta", self.eta, "it is the nats of log-ratio per unit of reward; 1 is usual")

    def pair_loss(self, pairs: Pairs) -> Tensor:
        return (pairs.delta_E / self.eta - pairs.gap_E.to(pairs.delta_E.dtype)) ** 2

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return ratio / self.eta

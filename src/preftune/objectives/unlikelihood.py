"""Likelihood of chosen against likelihood of rejected."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from preftune.objectives.base import check
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class Unlikelihood(PairObjective):
    """Unlikelihood: raise the log-prob of chosen, lower that of rejected; the baseline that DPO is compared with.

    Equation:
        loss = -log pi(chosen) + alpha * log pi(rejected)

        Its optimum gives each response a probability in proportion to how often it is chosen, less alpha times how
        often it is rejected. It is finite where every response is rejected less than 1 / alpha times as often as it is
        chosen; a response beyond that is driven down without end.

    Source: the baseline of this name in Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290,
        section 6, where alpha is 0.05, 0.1, 0.5 or 1 (0.1 here); the paper describes it in words and prints no formula.

    When to use: to see why DPO weighs its pairs. Every rejected response is pushed down with the same force, however
        unlikely it has become; where responses are seldom both chosen and rejected there is no finite optimum, and
        text falls apart in long runs.

    In nats: nothing to convert: a nat of rejected counts alpha times as much as a nat of chosen.

    Differs between libraries: Welleck et al. 2019 (arXiv 1908.04319), who gave it the name, add
        -alpha * log(1 - p) for each rejected token instead, which is bounded from below.

    Args:
        alpha: weight of the rejected response, in [0, 1]; 0 is maximum likelihood of chosen. Usual: 0.05 to 1.

    Example:
        >>> from torch import tensor
        >>> Unlikelihood(alpha=0.5).on_pairs(tensor([-4.0]), tensor([-6.0])).loss.item()  # 4 - 0.5 * 6
        1.0
    """

    reference: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {
        "temperature": "it would only divide the whole loss: set the weight of the objective in its mix"
    }

    alpha: float = 0.1

    def __post_init__(self) -> None:
        check(
            0 <= self.alpha <= 1,
            f"alpha must be in [0, 1], got {self.alpha}: it is the weight of the rejected response",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        return -pairs.chosen_logps_E + self.alpha * pairs.rejected_logps_E

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return ratio

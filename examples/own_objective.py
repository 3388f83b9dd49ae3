"""Your own objective: preftune train --model sandbox --data sandbox objective.name=own_objective:Savage"""

from dataclasses import dataclass

from torch import Tensor, sigmoid

from preftune.objectives import PairObjective, Pairs


@dataclass(frozen=True)
class Savage(PairObjective):
    """Savage DPO: a bounded loss, so that pairs far out of order, which may be mislabelled, hardly pull.

    Equation: loss = sigmoid(-beta * delta)^2

    Source: Masnadi-Shirazi and Vasconcelos 2008 (SavageBoost), with the margin of DPO.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.05 to 0.5.
    """

    beta: float = 0.1

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Loss of each pair."""
        return sigmoid(-self.beta * pairs.delta_E) ** 2

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        """Implicit reward of responses."""
        return self.beta * ratio

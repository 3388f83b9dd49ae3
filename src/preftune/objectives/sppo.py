"""Self-play preference optimisation."""

from dataclasses import dataclass

from torch import Tensor

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class SPPO(PairObjective):
    """SPPO: regression of each response's log-ratio on how often it wins.

    Equation:
        loss = 1/2 * ((w - (P_w - 1/2) / beta)^2 + (l - (P_l - 1/2) / beta)^2)
        w = log(pi(chosen) / pi_ref(chosen)), l = log(pi(rejected) / pi_ref(rejected))
        P_w, P_l: probability that chosen, or rejected, beats a response sampled from the reference

        With confidence p that chosen is better and the default win rates, this equals P_w = p and P_l = 1 - p, up to a
        constant.

    Source: Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", arXiv 2405.00675. Default
        beta 0.001 (their eta is 1 / beta = 1000): theirs. Default win rates 1 and 0: TRL's "sppo_hard".

    When to use: in rounds, each with the last policy as reference and samples of it as responses, ranked by a
        preference model. Chosen gains and rejected loses likelihood, each to a finite target.

    In nats: chosen is drawn to a log-ratio of 1 / (2 beta) and rejected to the opposite, with win rates of 1 and 0:
        500 nats at beta 0.001, 5 at 0.1.

    Differs between libraries: the authors' P is the mean win rate over five samples, itself included. TRL's "sppo_hard"
        has P of 1 and 0 and no factor 1/2: give the objective weight 2 for its values.

    Args:
        beta: reward per nat; at the default the targets are 500 nats away. Usual: 0.001 to 0.1.
        chosen_win_rate: P_w, in (rejected_win_rate, 1]. Usual: 1.
        rejected_win_rate: P_l, in [0, chosen_win_rate). Usual: 0.

    Example:
        >>> from torch import tensor
        >>> result = SPPO(beta=0.25).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> result.loss.item()  # log-ratios 1 and -1, targets 2 and -2: (1 + 1) / 2
        1.0
    """

    beta: float = 0.001
    chosen_win_rate: float = 1.0
    rejected_win_rate: float = 0.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "log-ratios are drawn to (P - 1/2) / beta nats; 0.001 is usual")
        check(
            0 <= self.rejected_win_rate < self.chosen_win_rate <= 1,
            "win rates must have 0 <= rejected_win_rate < chosen_win_rate <= 1, got "
            f"{self.rejected_win_rate} and {self.chosen_win_rate}: 0 and 1 are usual",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        chosen_E = pairs.chosen_ratio_E - (self.chosen_win_rate - 0.5) / self.beta
        rejected_E = pairs.rejected_ratio_E - (self.rejected_win_rate - 0.5) / self.beta
        return 0.5 * (chosen_E**2 + rejected_E**2)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

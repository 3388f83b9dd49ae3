"""Direct preference optimisation."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_label_smoothing
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class DPO(PairObjective):
    """DPO: logistic regression on the difference of log-ratios.

    Equation:
        loss = -log sigmoid(beta * delta)
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))

        With label smoothing e (conservative DPO) the label is taken as right with probability p = 1 - e:
        loss = -p * log sigmoid(beta * delta) - (1 - p) * log sigmoid(-beta * delta)
        A confidence c in the data makes it p = c * (1 - e) + (1 - c) * e.

    Source: Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, equation 7; label smoothing from
        the authors' repository (cDPO), default 0 as there.

    When to use: the first thing to try on pairs, with noisy or ordinary labels. Where labels are deterministic (a
        checker decides) or training runs for many epochs, delta grows without bound: prefer IPO there.

    In nats: a margin of 1 is a delta of 1 / beta: 10 nats at beta 0.1. The policy takes a label for right with
        probability sigmoid(beta * delta): 0.9 at 2.2 / beta nats, where the pull is a fifth of what it is at delta 0.

    Differs between libraries: beta is 0.1 by default in TRL, OpenRLHF, LLaMA-Factory and torchtune, 0.05 in NeMo-RL;
        open-instruct's default divides log-ratios by lengths, with beta 5 (here modifiers.average "mean", in TRL
        "sigmoid_norm"). TRL (since 2026-02) and Liger ignore label_smoothing for this loss; in HALOs its default is
        0.2.

    Args:
        beta: strength of the pull towards the reference, reward per nat; smaller moves further. Usual: 0.01 to 0.5.
        label_smoothing: probability that a label is flipped, in [0, 0.5). Usual: 0 to 0.2.

    Example:
        >>> from torch import tensor
        >>> result = DPO(beta=0.1).on_pairs(
        ...     tensor([-5.3]), tensor([-10.7]), tensor([-6.7]), tensor([-9.3]))
        >>> round(result.delta_E.item(), 4), round(result.loss.item(), 4)  # delta = 1.4 + 1.4; log(1 + exp(-0.28))
        (2.8, 0.5629)
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check(
            0 < self.beta < math.inf,
            f"beta must be finite and > 0, got {self.beta}: it is the reward per nat of log-ratio; 0.1 is usual",
        )
        check_label_smoothing(self.label_smoothing)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        margin_E = self.beta * pairs.delta_E
        right_E, wrong_E = -logsigmoid(margin_E), -logsigmoid(-margin_E)
        return (1 - self.label_smoothing) * right_E + self.label_smoothing * wrong_E

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

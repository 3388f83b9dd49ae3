"""Provably robust DPO, for labels that are flipped at a known rate."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class rDPO(PairObjective):  # noqa: N801 (as the paper spells it; RDPO is R-DPO, which regularises length)
    """rDPO: an unbiased estimate of the DPO loss on clean labels, from labels flipped at a known rate.

    Equation:
        loss = ((1 - e) * D(delta) - e * D(-delta)) / (1 - 2 e), D(delta) = -log sigmoid(beta * delta)
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected)), e = label_smoothing

        Where each label is flipped with probability e, its mean over flips is D(delta) of the true label. It falls
        without bound as delta grows, with slope -beta * e / (1 - 2 e): one pair may have a negative loss.

    Source: Ray Chowdhury, Kini and Natarajan 2024, "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
        arXiv 2403.00409. Defaults beta 0.1 and label_smoothing 0.1: the examples in TRL's documentation.

    When to use: labels flipped at a rate that is known, such as annotators measured against an expert. If the rate is a
        guess, DPO with label smoothing is safer: its loss has a minimum.

    In nats: a margin of 1 is a delta of 1 / beta: 10 nats at beta 0.1. No pair stops pulling: each nat lowers the loss
        by beta * e / (1 - 2 e) at least, 0.0125 at the defaults.

    Differs between libraries: TRL's "robust" is this loss. The label smoothing of the DPO authors' code (cDPO)
        adds e * D(-delta) instead of subtracting it, and does not divide; a comment in Liger takes the two for one. Not
        to be confused with R-DPO, which regularises length.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.5.
        label_smoothing: probability that a label is flipped, in [0, 0.5); 0 is DPO. Usual: the rate that was measured.

    Example:
        >>> from torch import tensor
        >>> result = rDPO(beta=0.5, label_smoothing=0.25).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # delta = 2: (0.75 * log(1 + exp(-1)) - 0.25 * log(1 + exp(1))) / 0.5
        -0.1867
    """

    beta: float = 0.1
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(
            0 <= self.label_smoothing < 0.5,
            f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}: the loss is divided by "
            "1 - 2 label_smoothing, and at 0.5 labels say nothing",
        )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        margin_E, flipped = self.beta * pairs.delta_E, self.label_smoothing
        right_E, wrong_E = -logsigmoid(margin_E), -logsigmoid(-margin_E)
        return ((1 - flipped) * right_E - flipped * wrong_E) / (1 - 2 * flipped)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio

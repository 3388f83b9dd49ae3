"""Simple preference optimisation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import check, check_positive
from preftune.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class SimPO(PairObjective):
    """SimPO: logistic regression on mean token log-probs, with a margin and without a reference.

    Equation:
        loss = -log sigmoid(beta * (log pi(chosen) / |chosen| - log pi(rejected) / |rejected|) - gamma)

    Source: Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv 2405.14734;
        beta 2 and gamma 0.5 (a gamma_beta_ratio of 0.25) are the defaults of the authors' configuration.

    When to use: no memory or time for a reference, and answers that grow long under DPO. Nothing holds the policy near
        its start but a small learning rate: 3e-7 to 1e-6 for models of 7B.

    In nats: a margin of 1 is 1 / beta nats per token between the responses: 0.5 at beta 2, so 10 nats between
        responses of 20 tokens. The loss asks for gamma / beta per token: 0.25 at the defaults.

    Differs between libraries: the margin is gamma itself here, in TRL, LLaMA-Factory and Liger; the authors' code and
        HALOs have gamma_beta_ratio, and gamma = beta * gamma_beta_ratio. TRL's beta is 0.1 unless set, too small by far
        for log-probs per token, and its CPOTrainer adds a likelihood term unless cpo_alpha is 0. Label smoothing in the
        authors' code turns the sign of the whole logit, margin included; a soft label here exchanges the responses.

    Args:
        beta: reward per nat per token. Usual: 2 to 10, as in the authors' runs.
        gamma: margin that the difference of rewards should exceed, itself in units of reward. Usual: 0.25 to 1.6 for
            beta 2 to 2.5, 3 to 5 for beta 10.

    Example:
        >>> from torch import tensor
        >>> result = SimPO(beta=2.0, gamma=0.5).on_pairs(
        ...     tensor([-4.0]), tensor([-3.0]), chosen_lengths=tensor([4]), rejected_lengths=tensor([2]))
        >>> round(result.loss.item(), 4)  # -1 and -1.5 nats per token: log(1 + exp(-(2 * 0.5 - 0.5)))
        0.4741
    """

    reference: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {"average": "SimPO divides by lengths itself: leave it out"}

    beta: float = 2.0
    gamma: float = 0.5

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat per token; 2 to 10 is usual")
        check(
            0 <= self.gamma < math.inf,
            f"gamma must be finite and >= 0, got {self.gamma}: it is the margin, beta times others' gamma_beta_ratio",
        )

    @property
    def needs_lengths(self) -> bool:
        return True

    def pair_loss(self, pairs: Pairs) -> Tensor:
        chosen_E = pairs.chosen_logps_E / pairs.chosen_length_E
        rejected_E = pairs.rejected_logps_E / pairs.rejected_length_E
        return -logsigmoid(self.beta * (chosen_E - rejected_E) - self.gamma)

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.beta * ratio / length

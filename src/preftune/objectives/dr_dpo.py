"""Distributionally robust DPO."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from preftune.objectives.base import Confidence, Objective, Outcome, State, check_positive
from preftune.objectives.batch import Batch, LogProbs, pair_indices
from preftune.objectives.tokens import ratios_R


@dataclass(frozen=True)
class DrDPO(Objective):
    """Dr. DPO: DPO that believes the pairs of a batch the less, the worse they fit, against flipped labels.

    Equation:
        loss = -beta_prime * log(mean of exp(-l / beta_prime)), the mean over the pairs of the batch
        l = -log sigmoid(beta * delta)
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))

        The gradient is that of the l, each weighed by exp(-l / beta_prime). As beta_prime grows, this becomes DPO; as
        it shrinks, only the pair that fits best counts. The mean is weighted: a pair of weight 2 counts twice. A
        confidence c makes l the expected one: -c * log sigmoid(beta * delta) - (1 - c) * log sigmoid(-beta * delta). It
        is one loss for the whole batch, and every pair's loss_E.

    Source: Wu et al. 2024, "Towards Robust Alignment of Language Models: Distributionally Robustifying Direct
        Preference Optimization", arXiv 2407.07880. Default beta 0.1 as for DPO; beta_prime 1 is usual.

    When to use: an unknown share of labels is flipped, so that rdpo could not be told its rate. It gives up on pairs
        that it cannot fit, which with clean but hard pairs is a loss.

    In nats: of two responses and labels right with probability p, delta settles at
        logit(p) / beta * beta_prime / (beta_prime - 1): twice DPO's at beta_prime 2. At beta_prime 1 or below it grows
        without end, for any p above one half.

    Differs between libraries: the authors' code takes the mean over the batch of a device; here it is that of the
        optimiser step.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.1.
        beta_prime: loss, in nats of the label, at which a pair is weighed down by e; larger trusts labels more.
            Usual: 1.

    Example:
        >>> from torch import tensor
        >>> result = DrDPO(beta=0.5).on_pairs(
        ...     tensor([-4.0, -4.0]), tensor([-6.0, -2.0]), tensor([-5.0, -5.0]), tensor([-5.0, -5.0]))
        >>> round(result.loss.item(), 4)  # delta 2 and -2: -log((s(1) + s(-1)) / 2) = log 2
        0.6931
    """

    couples: ClassVar[bool] = True
    confidence: ClassVar[Confidence] = "read"
    refuses: ClassVar[Mapping[str, str]] = {"wpo": "DrDPO weighs the pairs of a batch itself: leave it out"}

    beta: float = 0.1
    beta_prime: float = 1.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check_positive("beta_prime", self.beta_prime, "it is the loss at which a pair is weighed down by e; 1 is usual")

    @property
    def needs_tokens(self) -> bool:
        return False

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        ratio_R = ratios_R("DrDPO", policy, reference, batch)
        chosen_E, rejected_E = pair_indices(batch)
        margin_E, right_E = self.beta * (ratio_R[chosen_E] - ratio_R[rejected_E]), batch.confidence_E
        pair_E = -right_E * logsigmoid(margin_E) - (1 - right_E) * logsigmoid(-margin_E)
        weight_E = batch.weight_E.to(pair_E.dtype)
        # without any weight nobody sees this loss, but it is to be finite
        weight_E = torch.where(weight_E.sum() > 0, weight_E, 1)
        log_share_E = torch.log(weight_E / weight_E.sum())
        loss = -self.beta_prime * torch.logsumexp(log_share_E - pair_E / self.beta_prime, dim=0)
        return Outcome(loss.expand(len(pair_E)), self.beta * ratio_R.detach(), state)

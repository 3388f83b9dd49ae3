"""Alignment via optimal transport, on pairs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from preftune.objectives.base import Confidence, Objective, Outcome, State, check_label_smoothing, check_positive
from preftune.objectives.batch import Batch, LogProbs, pair_indices
from preftune.objectives.coupled import quantiles, shared_out, smoothed
from preftune.objectives.tokens import ratios_R


@dataclass(frozen=True)
class AOT(Objective):
    """AOT: the policy's margins, sorted, against the reference's, sorted: a better distribution, not better pairs.

    Equation:
        loss = mean over k of -log sigmoid(beta * (u_(k) - v_(k)))
        u_i = log pi(chosen_i) - log pi(rejected_i), v_i the same of the reference; (k): the k-th smallest of the batch

        With weights, the mean over k is an integral over the quantile functions of both, in which an example of weight
        2 counts twice. With confidence c, a pair's margin is u with probability c and -u with 1 - c. The loss of an
        example is that of the quantiles that its u fills, scaled so that the weighted mean is the integral.

        With label smoothing e, the loss at each k is (1 - e) * -log sigmoid(x) + e * -log sigmoid(-x) of the same x:
        after sorting, so that it is another loss than confidences of 1 - e give.

    Source: Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", arXiv 2406.05882.
        Default beta 0.01: theirs, as others quote it.

    When to use: large batches, where the policy should win by more over the whole data rather than pair by pair. With
        one pair in a batch it is DPO, and the smaller the batch, the nearer to it.

    In nats: the pull on a quantile is a tenth of its largest where the policy's is 2.2 / beta nats ahead of the
        reference's, 220 at beta 0.01. Like DPO's, margins of certain labels grow without end; with label_smoothing e
        each quantile comes to rest log((1 - e) / e) / beta nats ahead.

    Differs between libraries: TRL sorts the batch of one device and one micro-batch; here it is that of the optimiser
        step. Early TRL called the unpaired form "aot_pair". label_smoothing is TRL's, and 0 by default there too; a
        confidence in the data, which TRL does not read, mixes margins with their opposites before they are sorted.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.1.
        label_smoothing: probability, in [0, 0.5), that a quantile is matched the wrong way round. Usual: 0.

    Example:
        >>> from torch import tensor
        >>> result = AOT(beta=1.0).on_pairs(
        ...     tensor([-1.0, -5.0]), tensor([-4.0, -6.0]), tensor([-3.0, -3.0]), tensor([-3.0, -5.0]))
        >>> [round(x, 4) for x in result.loss_E.tolist()]  # margins 3, 1 and 0, 2: 3 - 2 = 1 - 0: log(1 + 1/e) each
        [0.3133, 0.3133]
    """

    couples: ClassVar[bool] = True
    confidence: ClassVar[Confidence] = "read"
    refuses: ClassVar[Mapping[str, str]] = {"wpo": "AOT has a loss of quantiles, not of pairs: leave it out"}

    beta: float = 0.01
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.01 is usual")
        check_label_smoothing(self.label_smoothing)

    @property
    def needs_tokens(self) -> bool:
        return False

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        ratio_R = ratios_R("AOT", policy, reference, batch)
        assert reference is not None  # as there are ratios
        chosen_E, rejected_E = pair_indices(batch)
        policy_R, reference_R = policy.sums_R(batch), reference.sums_R(batch)
        right_E = batch.confidence_E
        weight_N = torch.cat([batch.weight_E * right_E, batch.weight_E * (1 - right_E)])
        ours_N, theirs_N = (
            torch.cat([sums_R[chosen_E] - sums_R[rejected_E], sums_R[rejected_E] - sums_R[chosen_E]])
            for sums_R in (policy_R, reference_R.to(policy_R.dtype))
        )
        at = quantiles(ours_N.detach(), weight_N, theirs_N, weight_N)
        margin_S = self.beta * (ours_N[at.first_S] - theirs_N[at.second_S])
        loss_S = smoothed(margin_S, self.label_smoothing)
        loss_E = shared_out(at.width_S.to(loss_S) * loss_S, at.first_S % len(right_E), batch.weight_E)
        return Outcome(loss_E, self.beta * ratio_R.detach(), state)

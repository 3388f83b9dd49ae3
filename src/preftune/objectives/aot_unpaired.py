"""Alignment via optimal transport, on single responses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from preftune.objectives.base import (
    Confidence,
    DataKind,
    Objective,
    Outcome,
    State,
    check_label_smoothing,
    check_positive,
)
from preftune.objectives.batch import Batch, LogProbs
from preftune.objectives.coupled import judged, quantiles, refuse_few, shared_out, smoothed
from preftune.objectives.tokens import ratios_R


@dataclass(frozen=True)
class AOTUnpaired(Objective):
    """AOT on single responses: the log-ratios of good ones, sorted, against those of bad ones, sorted.

    Equation:
        loss = mean over k of -log sigmoid(beta * (g_(k) - b_(k)))
        g: log(pi(response) / pi_ref(response)) of good responses, b of bad ones; (k): the k-th smallest of the batch

        With unequal numbers or weights, the mean over k is an integral over the quantile functions of both, in which an
        example of weight 2 counts twice. With confidence c, a response is in the one sample with weight c and in the
        other with 1 - c. The loss of an example is half that of the quantiles that it fills, scaled so that the
        weighted mean is the integral. A batch without good or without bad responses has nothing to compare: its loss is
        0.

        With label smoothing e, the loss at each k is (1 - e) * -log sigmoid(x) + e * -log sigmoid(-x) of the same x:
        after sorting, so that it is another loss than confidences of 1 - e give.

    Source: Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", arXiv 2406.05882,
        the unpaired form. Default beta 0.01: theirs, as others quote it.

    When to use: thumbs up and thumbs down without pairs, in large batches. Good responses need only be likelier than
        bad ones at each rank, whatever prompts they belong to.

    In nats: the pull on a quantile is a tenth of its largest where good is 2.2 / beta nats ahead of bad, 220 at beta
        0.01. It has no finite optimum, even where labels contradict each other: what is good more often goes up without
        end; but with label_smoothing e each quantile comes to rest log((1 - e) / e) / beta nats ahead.

    Differs between libraries: TRL takes it of pairs alone, sorts the batch of one device and one micro-batch, and once
        called it "aot_pair"; here it is the batch of the optimiser step. label_smoothing is TRL's, and 0 by default
        there too; a confidence in the data, which TRL does not read, moves the response itself to the other sample.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.1.
        label_smoothing: probability, in [0, 0.5), that a quantile is matched the wrong way round. Usual: 0.

    Example:
        >>> from preftune.objectives.batch import PlainBatch, Role
        >>> from torch import tensor
        >>> three, roles = torch.ones(3), torch.full((3,), int(Role.LABELLED))
        >>> batch = PlainBatch(torch.arange(3), torch.arange(3), roles, tensor([1.0, 0.0, 1.0]), three, three, three,
        ...                    three)
        >>> reference = LogProbs(torch.full((3,), -5.0))
        >>> outcome = AOTUnpaired(beta=1.0)(LogProbs(tensor([-4.0, -5.0, -3.0])), reference, batch, {})
        >>> round(outcome.loss_E.mean().item(), 4)  # good 1 and 2 against bad 0: (log(1 + 1/e) + log(1 + 1/e^2)) / 2
        0.2201
    """

    data: ClassVar[DataKind] = "labels"
    couples: ClassVar[bool] = True
    confidence: ClassVar[Confidence] = "read"
    least_examples: ClassVar[int] = 2
    refuses: ClassVar[Mapping[str, str]] = {"wpo": "AOTUnpaired has a loss of quantiles, not of pairs: leave it out"}

    beta: float = 0.01
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.01 is usual")
        check_label_smoothing(self.label_smoothing)

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        ratio_R = ratios_R("AOTUnpaired", policy, reference, batch)
        refuse_few(self, batch, "compares good responses with bad ones of the batch")
        found = judged("AOTUnpaired", batch)
        ratio_J = ratio_R[found.index_J]
        still_J = ratio_J.detach()
        at = quantiles(still_J, found.weight_J * found.good_J, still_J, found.weight_J * (1 - found.good_J))
        margin_S = self.beta * (ratio_J[at.first_S] - ratio_J[at.second_S])
        loss_S = smoothed(margin_S, self.label_smoothing)
        half_S: Tensor = at.width_S.to(loss_S) * loss_S / 2
        owner_S = found.example_J[torch.cat([at.first_S, at.second_S])]
        return Outcome(shared_out(half_S.repeat(2), owner_S, batch.weight_E), self.beta * ratio_R.detach(), state)

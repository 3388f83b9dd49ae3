"""Kahneman-Tversky optimisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from preftune.objectives.base import Confidence, DataKind, Objective, Outcome, State, check, check_positive
from preftune.objectives.batch import Batch, LogProbs, Role, at_hand, role_indices
from preftune.objectives.coupled import judged, refuse_few, weighted_mean
from preftune.objectives.tokens import ratios_R


@dataclass(frozen=True)
class KTO(Objective):
    """KTO: learns from single responses, each judged good or bad, by how far they stand out from the batch.

    Equation:
        good responses: loss = lambda_d * (1 - sigmoid(beta * (ratio - z0)))
        bad responses: loss = lambda_u * (1 - sigmoid(beta * (z0 - ratio)))
        ratio = log(pi(response) / pi_ref(response))
        z0 = max(0, mean of log(pi(y) / pi_ref(y)) over mismatched responses y of the batch), without gradient

        A mismatched response is one to another prompt: z0 estimates the KL divergence of the policy from the reference.
        Means are weighted: an example of weight 2 counts twice in z0 too. The loss of a pair is the mean over its two
        responses, of which chosen is good and rejected bad. A confidence c mixes: c * loss as labelled + (1 - c) *
        loss with the opposite label.

    Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv 2402.01306.
        Defaults beta 0.1, both lambdas 1 and learning rate 5e-6: theirs.

    When to use: thumbs up and thumbs down without pairs. Choose the lambdas so that lambda_d * good examples is 1 to
        1.5 times lambda_u * bad ones. Use batches of 8 to 128 examples: z0 is as good as the batch is large.

    In nats: z0 is at least 0 nats. The pull is strongest where a log-ratio equals z0, and has lost nine tenths at
        3.6 / beta nats from it, 36 at beta 0.1. It has no finite optimum: a response that is good more often than bad
        (by the lambdas) goes up without end, any other one down.

    Differs between libraries: the authors' code (HALOs) takes the mean over log-ratios that are not exactly 0
        (z0_mean: nonzero), TRL over all (our default). Both leave z0 out of the rewards that they log, as we do. The
        "kto_pair" of early TRL, with the mean of the opposite half of a batch of pairs for z0, is another loss.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.5.
        lambda_d: weight of good (desirable) responses, > 0. Usual: 1 to 1.5.
        lambda_u: weight of bad (undesirable) responses, > 0. Usual: 1.
        z0_mean: which mismatched responses z0 is the mean of: "all", or "nonzero": those whose log-ratio is not 0.

    Example:
        >>> from preftune.objectives.batch import PlainBatch
        >>> from torch import tensor
        >>> two, one, roles = torch.ones(2), torch.ones(4), tensor([Role.LABELLED, Role.BASELINE] * 2)
        >>> batch = PlainBatch(torch.arange(4), tensor([0, 0, 1, 1]), roles, tensor([1, torch.nan, 0, torch.nan]),
        ...                    one, two, two, two)
        >>> policy = LogProbs(tensor([-4.0, -6.0, -5.0, -7.0]))
        >>> outcome = KTO(beta=0.5)(policy, LogProbs(tensor([-7.0, -8.0, -9.0, -7.0])), batch, {})
        >>> [round(x, 4) for x in outcome.loss_E.tolist()]  # z0 = (2 + 0) / 2: 1 - s(1), 1 - s(-1.5)
        [0.2689, 0.8176]
    """

    data: ClassVar[DataKind] = "labels"
    couples: ClassVar[bool] = True
    confidence: ClassVar[Confidence] = "mixed"
    baselines: ClassVar[bool] = True
    least_examples: ClassVar[int] = 2
    learning_rate: ClassVar[float] = 5e-6

    beta: float = 0.1
    lambda_d: float = 1.0
    lambda_u: float = 1.0
    z0_mean: Literal["all", "nonzero"] = "all"

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check_positive("lambda_d", self.lambda_d, "it weighs good responses; 1 is usual")
        check_positive("lambda_u", self.lambda_u, "it weighs bad responses; 1 is usual")
        check(self.z0_mean in ("all", "nonzero"), f'z0_mean must be "all" or "nonzero", got {self.z0_mean!r}')

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        ratio_R = ratios_R("KTO", policy, reference, batch)
        refuse_few(self, batch, "compares responses with those to other prompts")
        z0, found = self._z0(ratio_R.detach(), batch), judged("KTO", batch)
        above_J = self.beta * (ratio_R[found.index_J] - z0)
        good_J, bad_J = self.lambda_d * torch.sigmoid(-above_J), self.lambda_u * torch.sigmoid(above_J)
        loss_E = found.mean_E(found.good_J * good_J + (1 - found.good_J) * bad_J)
        extras: Mapping[str, Tensor] = {"z0": z0.expand(len(loss_E))}
        return Outcome(loss_E, self.beta * ratio_R.detach(), state, extras)

    def _z0(self, ratio_R: Tensor, batch: Batch) -> Tensor:
        index_B, known = role_indices(batch, Role.BASELINE), at_hand(batch)
        example_B, ratio_B = batch.example_R[index_B], ratio_R[index_B]
        examples, covered = len(batch.weight_E), len(torch.unique(known.example_R[known.role_R == Role.BASELINE]))
        if covered < examples:
            raise ValueError(
                f"KTO needs a mismatched response for each example, but of {examples} examples {covered} have one: add "
                "to each a response to another prompt, of role BASELINE"
            )
        weight_B = batch.weight_E[example_B]
        if self.z0_mean == "nonzero":
            weight_B = weight_B * (ratio_B != 0)
        return weighted_mean(ratio_B, weight_B).clamp(min=0)

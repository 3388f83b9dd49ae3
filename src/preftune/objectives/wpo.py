"""Weighted preference optimisation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from preftune.objectives.base import Confidence, Objective, Outcome, State, check_positive
from preftune.objectives.batch import Batch, LogProbs
from preftune.objectives.dpo import DPO
from preftune.objectives.tokens import wpo_weight_E

_AS_MODIFIER = "WPO weighs by the log-probs as they are: set modifiers.wpo of dpo instead, and this beside it"


@dataclass(frozen=True)
class WPO(Objective):
    """WPO: DPO that counts a pair the more, the likelier the policy of now would have written it.

    Equation:
        loss = -omega(chosen) * omega(rejected) * log sigmoid(beta * delta)
        omega(y) = exp(mean over tokens t of (log pi(t) - log(sum over the vocabulary of pi(.)^2))), without gradient
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))

        A response whose tokens are as likely as those that the policy draws itself has omega = 1, whatever the entropy
        of the policy: the mean probability of a drawn token is the sum of the squares.

    Source: Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", arXiv 2406.11827. Defaults
        beta 0.01 and clamp 1: the authors' code.

    When to use: pairs that other models wrote, to bring off-policy data nearer to on-policy. It needs the policy's
        whole next-token distribution, which costs some of the speed of the head. To weigh another loss than DPO's, or
        to change what DPO sees besides, set modifiers.wpo on that.

    In nats: delta is 100 nats for a margin of 1 at beta 0.01, whatever the weights. Tokens that are 0.69 nats less
        likely than those that the policy draws halve omega; a pair of two such responses counts a quarter.

    Differs between libraries: the authors' code keeps omega * omega at 1 or below; the paper has no such clamp, and TRL
        dropped it in early 2026 (clamp null). open-instruct's weight lacks the sum of squares and has a gradient.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.1.
        clamp: the pair's weight is at most this; null leaves it. Usual: 1 or null.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace as Batch
        >>> first = torch.arange(2)
        >>> batch = Batch(response_K=first, example_R=torch.tensor([0, 0]), role_R=first, length_R=torch.tensor([1, 1]),
        ...               weight_E=torch.ones(1), confidence_E=torch.ones(1), gap_E=torch.ones(1))
        >>> half, quarter = torch.tensor(0.5).log(), torch.tensor(0.25).log()
        >>> policy = LogProbs(torch.stack([half, quarter]), log_sum_p2_K=torch.stack([half, half]))
        >>> outcome = WPO()(policy, LogProbs(policy.logps_K), batch, {})
        >>> round(outcome.loss_E.item(), 4)  # omega is 1 of chosen and 1/2 of rejected; delta = 0: log(2) / 2
        0.3466
    """

    confidence: ClassVar[Confidence] = "mixed"
    needs: ClassVar[frozenset[str]] = frozenset({"log_sum_p2_K"})
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("average", "temperature", "tail_alpha", "tail_of", "reference_free"), _AS_MODIFIER
    )

    beta: float = 0.01
    clamp: float | None = 1.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.01 is usual")
        if self.clamp is not None:
            check_positive("clamp", self.clamp, "it is a pair's largest weight; 1 is usual, and null clamps nothing")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        outcome = DPO(self.beta)(policy, reference, batch, state)
        return replace(outcome, loss_E=wpo_weight_E("WPO", policy, batch, self.clamp) * outcome.loss_E)

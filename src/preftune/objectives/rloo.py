"""REINFORCE with a leave-one-out baseline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from preftune.objectives.base import DataKind, Objective, Outcome, State
from preftune.objectives.batch import Batch, LogProbs
from preftune.objectives.rollouts import (
    REFUSALS,
    any_covered,
    carried_K,
    check_beta,
    check_clip,
    clipped_loss,
    covered_E,
    group_mean,
    implicit_R,
    log_ratio_K,
    responses_E,
    rewards_R,
    step_figures,
)
from preftune.objectives.tokens import ratios_R


@dataclass(frozen=True)
class RLOO(Objective):
    """RLOO: REINFORCE on whole sampled responses, each against the mean reward of the others to its prompt.

    Equation:
        loss = -(1 / n) * sum over responses i of min(ratio_i * A_i, clip(ratio_i, 1 - clip, 1 + clip) * A_i)
        A_i = R_i - (1 / (n - 1)) * sum over j != i of R_j
        R_i = reward_i - beta * log(pi_old(response i) / pi_ref(response i))
        ratio_i = pi(response i) / pi_old(response i), of the whole response

        pi_old sampled the n responses to the prompt. In the first step on them all ratios are 1, and the gradient is
        that of REINFORCE: an unbiased estimate of the gradient of expected reward less beta * KL(pi || pi_ref).

    Source: Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human
        Feedback in LLMs", arXiv 2402.14740; the baseline is that of Kool et al. 2019. clip 0.2 as in TRL, for several
        steps on the same responses; the paper takes one, without a clip.

    When to use: as PPO, with the reward known for whole responses only: no value network and nothing of it to set. It
        needs the block `online` with 2 or more samples to each prompt; the more, the less a gradient varies.

    In nats: beta is the price of a nat, in units of reward. The ratio is of whole responses: at clip 0.2, a response
        pulls until it has gained 0.18 nats, over all its tokens together.

    Differs between libraries: no part of the formula that we know of. The loss is a mean over responses, not over
        tokens, which is what makes it unbiased; TRL's may scale rewards and advantages to variance 1 besides, which we
        leave to the learning rate.

    Args:
        beta: price of a nat of KL divergence from the reference, in reward. Usual: 0.01 to 0.2 for rewards of a spread
            of 1.
        clip: how far a response's probability ratio may go from 1 and still pull; null: any. Usual: 0.2.

    Example:
        >>> import torch
        >>> from preftune.objectives.batch import PlainBatch, Role
        >>> three, one = torch.ones(3), torch.ones(1)
        >>> batch = PlainBatch(torch.arange(3), torch.zeros(3, dtype=torch.int64), torch.full((3,), Role.RANKED),
        ...                    torch.tensor([2.0, 0.0, 1.0]), three, one, one, one, {"old_logps": -three})
        >>> policy, reference = LogProbs(torch.tensor([0.1, 0.0, 0.0]) - 1), LogProbs(torch.tensor([-3.0, -1.0, -1.0]))
        >>> outcome = RLOO(beta=0.5, clip=None)(policy, reference, batch, {})
        >>> round(outcome.loss_E.item(), 4)  # R = 2 - 0.5 * 2, 0, 1: A = 0.5, -1, 0.5: -(0.5 * e^0.1 - 1 + 0.5) / 3
        -0.0175
    """

    data: ClassVar[DataKind] = "rollouts"
    carried: ClassVar[frozenset[str]] = frozenset({"old_logps"})
    refuses: ClassVar[Mapping[str, str]] = REFUSALS
    learning_rate: ClassVar[float] = 1e-6
    lora_learning_rate: ClassVar[float] = 1e-5

    beta: float = 0.05
    clip: float | None = 0.2

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.clip is not None:
            check_clip("clip", self.clip)

    def weight_E(self, batch: Batch) -> Tensor:
        return batch.weight_E * covered_E(batch, self.carried)

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        implicit = implicit_R(self.beta, ratios_R("RLOO", policy, reference, batch))
        assert reference is not None  # or ratios_R had refused
        covered = covered_E(batch, self.carried)
        log_ratio = log_ratio_K(policy, batch)
        old_K = carried_K(batch, "old_logps", policy.logps_K.detach())
        drift_R = LogProbs(old_K - reference.logps_K.to(old_K)).sums_R(batch)
        reward_R = rewards_R("RLOO", batch, self.carried).to(drift_R) - self.beta * drift_R
        advantage_R = leave_one_out(reward_R, batch) * covered[batch.example_R]
        low, high = (self.clip, self.clip) if self.clip is not None else (1.0, float("inf"))
        loss_R, clipped_R = clipped_loss(LogProbs(log_ratio).sums_R(batch), advantage_R, low, high)
        extras = {}
        if any_covered(batch, self.carried):
            extras = step_figures(log_ratio, clipped_R[batch.response_K], batch)
        return Outcome(group_mean(loss_R, batch), implicit, state, extras)


def leave_one_out(reward_R: Tensor, batch: Batch) -> Tensor:
    """Each response's reward less the mean of the others to its prompt, shape R; 0 where there are no others."""
    count_R = responses_E(batch).to(reward_R)[batch.example_R]
    return (reward_R - group_mean(reward_R, batch)[batch.example_R]) * count_R / (count_R - 1).clamp(min=1)

"""Group-relative policy optimisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from preftune.objectives.base import DataKind, Objective, Outcome, State, check
from preftune.objectives.batch import Batch, LogProbs
from preftune.objectives.rollouts import (
    REFUSALS,
    any_covered,
    check_beta,
    check_clip,
    clipped_loss,
    covered_E,
    group_mean,
    implicit_R,
    k3,
    log_ratio_K,
    responses_E,
    rewards_R,
    step_figures,
    token_means,
    tokens_E,
)
from preftune.objectives.tokens import ratios_R

SMALLEST = 1e-4  # added to the standard deviation of a group, as in TRL: rewards that differ by less are about equal


@dataclass(frozen=True)
class GRPO(Objective):
    """GRPO: PPO's clipped steps with the reward of each response, normalised within its group, at all of its tokens.

    Equation:
        loss = (1 / n) * sum over responses i of (1 / |y_i|) * sum over its tokens t of loss_it
        loss_it = -min(ratio_it * A_i, clip(ratio_it, 1 - clip, 1 + clip_high) * A_i) + beta * kl_it
        A_i = (reward_i - mean of the group's rewards) / (standard deviation of the group's rewards + 1e-4)
        kl_it = exp(x) - x - 1, x = log(pi_ref(token) / pi(token)): the "k3" estimate of KL(pi || pi_ref), with gradient
        ratio_it = pi(token) / pi_old(token)

        pi_old sampled the n responses to the prompt, the group. average says what the mean is over: "response" is the
        one above; "token": all tokens of the optimiser batch alike; "none": (1 / n) * the sum over tokens.
        scale "none" leaves the standard deviation out.

    Source: Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        arXiv 2402.03300; beta 0.04 as there. Liu et al. 2025, "Understanding R1-Zero-Like Training: A Critical
        Perspective", arXiv 2503.20783 (Dr. GRPO): scale none and average none. Yu et al. 2025, "DAPO: An Open-Source
        LLM Reinforcement Learning System at Scale", arXiv 2503.14476: average token, clip_high 0.28 and beta 0.

    When to use: rewards that are right or wrong (maths, code), without a value network. It needs the block `online`
        with several samples to each prompt, 4 to 16. Where reward is to be traded for KL as well as can be, take
        `rloo`: the standard deviation here makes prompts on which rewards hardly differ count as much as all others,
        and the penalty's gradient is that of KL(pi_ref || pi), the other divergence, at each token.

    In nats: beta is the price of a nat, in standard deviations of the group's rewards (in reward with scale none).
        kl is a sum over tokens under average none, and a mean per token otherwise, where beta so is a price per token.

    Differs between libraries: the normalisation by length. Shao et al., and TRL at first, take the mean over each
        response's tokens, under which long wrong answers are pushed down less per token than short ones; TRL now
        takes all tokens alike (loss_type dapo), verl too (token-mean); Dr. GRPO divides by a constant, which here is
        part of the learning rate. The standard deviation is that with n - 1, as in TRL and verl. beta is 0 in TRL now.

    Args:
        beta: weight of the KL divergence from the reference; 0: none. Usual: 0.04; 0 where rewards are exact checks.
        clip: how far a token's probability ratio may fall below 1 and still pull. Usual: 0.2.
        clip_high: how far it may rise above 1; null: as far as clip. Usual: 0.28 (DAPO).
        scale: "std" divides a group's advantages by the standard deviation of its rewards; "none" does not.
        average: "response", "token" or "none": what the loss is a mean over.

    Example:
        >>> import torch
        >>> from preftune.objectives.batch import PlainBatch, Role
        >>> three, one = torch.ones(3), torch.ones(1)
        >>> batch = PlainBatch(torch.arange(3), torch.zeros(3, dtype=torch.int64), torch.full((3,), Role.RANKED),
        ...                    torch.tensor([3.0, 0.0, 0.0]), three, one, one, one, {"old_logps": -three})
        >>> policy = LogProbs(torch.tensor([1.5, 1.0, 1.1]).log() - 1)
        >>> outcome = GRPO(beta=0.0, scale="none")(policy, LogProbs(-three), batch, {})
        >>> round(outcome.loss_E.item(), 4)  # A = 2, -1, -1; ratios 1.5 (held at 1.2), 1, 1.1: (-2.4 + 1 + 1.1) / 3
        -0.1
    """

    data: ClassVar[DataKind] = "rollouts"
    carried: ClassVar[frozenset[str]] = frozenset({"old_logps"})
    refuses: ClassVar[Mapping[str, str]] = REFUSALS
    learning_rate: ClassVar[float] = 1e-6
    lora_learning_rate: ClassVar[float] = 1e-5

    beta: float = 0.04
    clip: float = 0.2
    clip_high: float | None = None
    scale: Literal["std", "none"] = "std"
    average: Literal["response", "token", "none"] = "response"

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_clip("clip", self.clip)
        check(
            self.clip_high is None or self.clip_high > 0,
            f"clip_high must be > 0, or null, got {self.clip_high}: 0.28 is usual",
        )
        check(self.scale in ("std", "none"), f'scale must be "std" or "none", got {self.scale!r}')
        known = ("response", "token", "none")
        check(self.average in known, f"average must be one of {', '.join(known)}, got {self.average!r}")

    def weight_E(self, batch: Batch) -> Tensor:
        weight_E = batch.weight_E * covered_E(batch, self.carried)
        return weight_E * tokens_E(batch) if self.average == "token" else weight_E

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        implicit = implicit_R(self.beta, ratios_R("GRPO", policy, reference, batch))
        assert reference is not None  # or ratios_R had refused
        covered = covered_E(batch, self.carried)
        log_ratio = log_ratio_K(policy, batch)
        advantage_R = self._advantage_R(rewards_R("GRPO", batch, self.carried).to(log_ratio), batch)
        high = self.clip if self.clip_high is None else self.clip_high
        loss_K, clipped_K = clipped_loss(log_ratio, advantage_R[batch.response_K], self.clip, high)
        kl_K = k3(reference.logps_K.to(log_ratio) - policy.logps_K)
        loss_K = (loss_K + self.beta * kl_K) * covered[batch.example_R[batch.response_K]]
        extras = {}
        if any_covered(batch, self.carried):
            drift_E = group_mean(LogProbs(kl_K.detach()).sums_R(batch), batch)
            extras = {**step_figures(log_ratio, clipped_K, batch), "reference_kl": drift_E}
        return Outcome(self._mean_E(loss_K, batch), implicit, state, extras)

    def _advantage_R(self, reward_R: Tensor, batch: Batch) -> Tensor:
        above_R = reward_R - group_mean(reward_R, batch)[batch.example_R]
        if self.scale == "none":
            return above_R
        count_E = responses_E(batch).to(reward_R)
        variance_E = group_mean(above_R**2, batch) * count_E / (count_E - 1).clamp(min=1)
        return above_R / (torch.sqrt(variance_E) + SMALLEST)[batch.example_R]

    def _mean_E(self, loss_K: Tensor, batch: Batch) -> Tensor:
        if self.average == "token":
            return token_means(loss_K, batch)
        loss_R = LogProbs(loss_K).sums_R(batch)
        return group_mean(loss_R if self.average == "none" else loss_R / batch.length_R.to(loss_R), batch)

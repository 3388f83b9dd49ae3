"""Proximal policy optimisation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from preftune.objectives.base import DataKind, Objective, Outcome, State, check, check_positive
from preftune.objectives.batch import Batch, LogProbs
from preftune.objectives.rollouts import (
    REFUSALS,
    any_covered,
    carried_K,
    check_beta,
    check_clip,
    clipped_loss,
    covered_E,
    implicit_R,
    log_ratio_K,
    step_figures,
    token_means,
    tokens_E,
)
from preftune.objectives.tokens import ratios_R


@dataclass(frozen=True)
class PPO(Objective):
    """PPO: raises the probability of sampled tokens that did better than a value network foresaw, in clipped steps.

    Equation:
        loss = -(1 / tokens) * sum over sampled tokens t of min(ratio_t * A_t, clip(ratio_t, 1 - clip, 1 + clip) * A_t)
        ratio_t = pi(token t) / pi_old(token t)
        A_t = sum over l >= 0 of (gamma * lam)^l * (r_{t+l} + gamma * V_{t+l+1} - V_{t+l})
        r_t = -beta * log(pi_old(token t) / pi_ref(token t)), plus the response's reward at its last token
        loss of V = mean over tokens of 1/2 * max((V_t - R_t)^2, (V_old + clip(V_t - V_old, -value_clip, value_clip)
          - R_t)^2), where R_t = A_t + V_old

        pi_old sampled the responses; V is 0 after the last token. Before they are used, advantages are whitened over
        all tokens of the round (mean 0, variance 1), and so are token rewards if whiten_rewards says so (keeping their
        mean). With target_kl, beta follows the KL divergence that a round's responses show, in nats per response:
        beta <- beta * (1 + clip(KL / target_kl - 1, -0.2, 0.2) * responses / horizon).

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv 1707.06347; for language models
        Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593, whose code has
        clip and value clip 0.2, gamma 1, lam 0.95, both whitenings, and the adaptive beta (target 6 nats, horizon
        10000); and Ouyang et al. 2022, arXiv 2203.02155 (InstructGPT): beta fixed at 0.02, a value network that starts
        from the reward model.

    When to use: a reward can be computed for any response, and is to be maximised at a price per nat of divergence
        from the reference. It needs the block `online`, and a second network as large as the policy. With a reward for
        whole responses only, `rloo` does the same without that network, and `grpo` with the usual shortcuts.

    In nats: beta is the price of a nat, in units of reward: where the best policy would gain less than beta of reward
        for one more nat, it stops. clip 0.2 holds a token's log-prob within -0.22 and 0.18 nats of the sampling
        policy's.

    Differs between libraries: the mean is over all tokens of the optimiser batch here, as in Ziegler's code and in TRL
        (their micro-batch, rather): another length of response changes the size of a step, not its direction. OpenRLHF
        offers the mean over tokens of each response as well, under which tokens of short responses pull harder.
        The value network is one of its own with its own learning rate, as with InstructGPT and TRL, and no second head
        of the policy (Ziegler's), so its loss needs no weight (vf_coef). Advantages are whitened over a round, as in
        TRL; Ziegler's code does so in each optimiser batch. Token rewards are whitened in Ziegler's code and not by
        default in TRL.

    Args:
        beta: price of a nat of KL divergence from the reference, in reward; the first one, if target_kl is set.
            Usual: 0.01 to 0.2 for rewards of a spread of 1.
        target_kl: nats per response that beta is adapted to keep; null: beta stays. Usual: 3 to 12.
        horizon: responses over which beta adapts: after as many, at 20% over target, it has grown by e^0.2.
            Usual: 10000, or about 20 rounds' worth.
        gamma: discount of later rewards, per token, in (0, 1]. Usual: 1.
        lam: of generalised advantages, in [0, 1]: 1 trusts rewards alone, 0 the value network. Usual: 0.95 to 1.
        clip: how far a token's probability ratio may go from 1 and still pull. Usual: 0.1 to 0.3.
        value_clip: how far a value may go from the old one in a round and still pull; null: not clipped. Usual: 0.2.
        value_learning_rate: peak learning rate of the value network; null: that of the policy. Usual: as large as the
            policy's, up to 10 times that.
        whiten_rewards: true scales the rewards of tokens to variance 1 over the round, keeping their mean.
        whiten_advantages: true shifts and scales advantages to mean 0 and variance 1 over the round.

    Example:
        >>> import torch
        >>> from preftune.objectives.batch import PlainBatch, Role
        >>> one, two = torch.ones(1), torch.zeros(2, dtype=torch.int64)
        >>> batch = PlainBatch(two, two[:1], torch.tensor([Role.RANKED]), one, torch.tensor([2]), one, one, one,
        ...                    {"old_logps": torch.tensor([0.5, 0.5]).log(), "advantages": torch.tensor([1.0, -1.0])})
        >>> policy, reference = LogProbs(torch.tensor([0.75, 0.45]).log()), LogProbs(torch.zeros(2))
        >>> outcome = PPO(clip=0.2)(policy, reference, batch, {})
        >>> round(outcome.loss_E.item(), 4)  # ratios 1.5, held at 1.2, and 0.9: (-1.2 + 0.9) / 2
        -0.15
    """

    data: ClassVar[DataKind] = "rollouts"
    carried: ClassVar[frozenset[str]] = frozenset({"old_logps", "reference_logps", "advantages"})
    refuses: ClassVar[Mapping[str, str]] = REFUSALS
    learning_rate: ClassVar[float] = 3e-6
    lora_learning_rate: ClassVar[float] = 3e-5

    beta: float = 0.05
    target_kl: float | None = None
    horizon: int = 10_000
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float | None = 0.2
    value_learning_rate: float | None = None
    whiten_rewards: bool = False
    whiten_advantages: bool = True

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.target_kl is not None:
            check_positive("target_kl", self.target_kl, "it is in nats per response; 6 is usual")
            check(self.beta > 0, "target_kl adapts beta by factors, and beta is 0: give a beta to start from")
        check(self.horizon >= 1, f"horizon must be >= 1, got {self.horizon}: beta adapts over as many responses")
        check(0 < self.gamma <= 1, f"gamma must be in (0, 1], got {self.gamma}: it discounts per token; 1 is usual")
        check(0 <= self.lam <= 1, f"lam must be in [0, 1], got {self.lam}: 0.95 is usual")
        check_clip("clip", self.clip)
        for name in ("value_clip", "value_learning_rate"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, f"{name} must be finite and > 0, or null, got {value}")

    def weight_E(self, batch: Batch) -> Tensor:
        return batch.weight_E * tokens_E(batch) * covered_E(batch, ("old_logps", "advantages"))

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        implicit = implicit_R(self.beta, ratios_R("PPO", policy, reference, batch))
        log_ratio = log_ratio_K(policy, batch)
        advantage_K = carried_K(batch, "advantages", torch.zeros_like(policy.logps_K.detach()))
        loss_K, clipped_K = clipped_loss(log_ratio, advantage_K, self.clip, self.clip)
        covered = any_covered(batch, ("old_logps", "advantages"))
        extras = step_figures(log_ratio, clipped_K, batch) if covered else {}
        return Outcome(token_means(loss_K, batch), implicit, state, extras)

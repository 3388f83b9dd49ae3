"""Length-desensitised DPO."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from preftune.objectives.base import Confidence, Objective, Outcome, State, check, check_positive
from preftune.objectives.batch import Batch, LogProbs
from preftune.objectives.dpo import DPO
from preftune.objectives.tokens import with_light_tails

_AS_MODIFIER = "set modifiers.tail_alpha of dpo instead, and this beside it"


@dataclass(frozen=True)
class LDDPO(Objective):
    """LD-DPO: DPO in which what the longer response has beyond the length of the shorter one counts less.

    Equation:
        loss = -log sigmoid(beta * (w - l)), w and l the log-ratios of chosen and rejected, with each log-prob
        log pi(y) = sum over tokens t <= m of log pi(t) + alpha * sum over tokens t > m of log pi(t)
        m = min(|chosen|, |rejected|)

    Source: Liu et al. 2024, "Length Desensitization in Direct Preference Optimization", arXiv 2409.06411. Defaults:
        alpha 0.5 is in the middle of what they try; beta 0.1 is DPO's.

    When to use: the policy grows verbose, because one response of a pair is longer and its many tokens outweigh what
        both have. Lower alpha until the length of samples stands still. On another loss than DPO's, set
        modifiers.tail_alpha.

    In nats: delta is 10 nats for a margin of 1 at beta 0.1, as in DPO, but a nat in a tail counts alpha: a response of
        30 tokens that gains 1 nat on each, beside one of 10 tokens, gains 20 at alpha 0.5.

    Differs between libraries: alpha acts on policy and reference in TRL now, on the policy alone in LLaMA-Factory and
        in TRL until early 2026. We take both by default: then delta is 0, and the loss log 2, where training starts.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.5.
        alpha: weight of the tokens beyond the shorter response, in [0, 1]; 1 is DPO, and 0 leaves them out.
            Usual: 0.3 to 0.7.
        of: "both": alpha acts on policy and reference; "policy": on the policy alone.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace as Batch
        >>> batch = Batch(response_K=torch.tensor([0, 1, 1]), example_R=torch.tensor([0, 0]), role_R=torch.arange(2),
        ...               length_R=torch.tensor([1, 2]), weight_E=torch.ones(1), confidence_E=torch.ones(1),
        ...               gap_E=torch.ones(1))
        >>> policy, reference = LogProbs(torch.tensor([-1.0, -2.0, -4.0])), LogProbs(torch.tensor([-2.0, -2.0, -2.0]))
        >>> outcome = LDDPO(beta=0.5, alpha=0.5)(policy, reference, batch, {})
        >>> round(outcome.loss_E.item(), 4)  # log-ratios 1 and 0 + 0.5 * -2: log(1 + exp(-0.5 * 2))
        0.3133
    """

    confidence: ClassVar[Confidence] = "mixed"
    refuses: ClassVar[Mapping[str, str]] = {
        "tail_alpha": "LDDPO has its own alpha: set it there",
        "tail_of": "LDDPO has its own field of: set it there",
        "reference_free": f"the field of would say nothing: {_AS_MODIFIER}",
    }

    beta: float = 0.1
    alpha: float = 0.5
    of: Literal["both", "policy"] = "both"

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(
            0 <= self.alpha <= 1,
            f"alpha must be in [0, 1], got {self.alpha}: it weighs tokens beyond the shorter response; 0.5 is usual",
        )
        check(self.of in ("both", "policy"), f'of must be "both" or "policy", got {self.of!r}')

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        if self.of == "both" and reference is not None:
            reference = with_light_tails(reference, batch, self.alpha)
        return DPO(self.beta)(with_light_tails(policy, batch, self.alpha), reference, batch, state)

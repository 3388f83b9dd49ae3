"""Token-level DPO."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import Confidence, Objective, Outcome, State, check, check_positive, softened
from preftune.objectives.batch import Batch, LogProbs, pair_indices
from preftune.objectives.tokens import ratios_R, required


@dataclass(frozen=True)
class TDPO(Objective):
    """TDPO: DPO whose margin also counts how far the policy's whole next-token distributions are from the reference's.

    Equation:
        loss = -log sigmoid(beta * (delta - kappa))
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))
        tdpo1: kappa = K(rejected) - K(chosen)
        tdpo2: kappa = alpha * (K(rejected) - K(chosen) without gradient)
        K(y) = sum over the tokens t of y of KL(pi_ref(. | before t) || pi(. | before t)), over the whole vocabulary

        The reward of a response is beta * (log-ratio + K) under tdpo1 and beta * (log-ratio + alpha * K) under tdpo2:
        their difference is the argument of the sigmoid.

    Source: Zeng et al. 2024, "Token-level Direct Preference Optimization", arXiv 2404.11999. Defaults: beta 0.1,
        alpha 0.5 and the learning rate as in the authors' code, and tdpo2, the better of the two in the paper.

    When to use: DPO moves too far from the reference, or loses diversity, and beta alone does not help. It needs the
        reference's whole next-token distributions, so the reference must be live, and costs a second product with the
        vocabulary.

    In nats: a margin of 1 is a delta of 10 nats at beta 0.1, or 20 nats of divergence at alpha 0.5. K is a sum over
        tokens: a rejected response of 200 tokens, each 0.1 nats from the reference, asks for 10 nats more at alpha 0.5.

    Differs between libraries: the authors' config file has tdpo2 off, and the command that their README gives for TDPO2
        does not set it, so that it trains TDPO1. They log beta * (log-ratio + K) as the reward for both forms.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.1 to 0.5.
        form: "tdpo1": gradients run through both K, which the derivation gives; "tdpo2": not through that of chosen,
            whose K then is not pushed up.
        alpha: weight of the difference of K, for tdpo2 only; 0 is DPO; null: 0.5. Usual: 0.3 to 0.7.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace as Batch
        >>> first = torch.arange(2)
        >>> batch = Batch(response_K=first, example_R=torch.tensor([0, 0]), role_R=first, length_R=torch.tensor([1, 1]),
        ...               weight_E=torch.ones(1), confidence_E=torch.ones(1))
        >>> policy = LogProbs(torch.tensor([-1.0, -3.0]), kl_K=torch.tensor([1.0, 3.0]))
        >>> outcome = TDPO(beta=0.5)(policy, LogProbs(torch.tensor([-2.0, -2.0])), batch, {})
        >>> round(outcome.loss_E.item(), 4)  # delta = 2, kappa = 0.5 * (3 - 1): log(1 + exp(-0.5 * (2 - 1)))
        0.4741
    """

    confidence: ClassVar[Confidence] = "mixed"
    needs: ClassVar[frozenset[str]] = frozenset({"kl_K"})
    refuses: ClassVar[Mapping[str, str]] = {
        "reference_free": "TDPO measures divergences from the reference: leave it out",
    }
    learning_rate: ClassVar[float] = 5e-6

    beta: float = 0.1
    form: Literal["tdpo1", "tdpo2"] = "tdpo2"
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(self.form in ("tdpo1", "tdpo2"), f'form must be "tdpo1" or "tdpo2", got {self.form!r}')
        if self.form == "tdpo1":
            check(self.alpha is None, f"alpha is {self.alpha}, but tdpo1 has none: leave it out or set form to tdpo2")
        elif self.alpha is None:
            object.__setattr__(self, "alpha", 0.5)  # so that a run's config says what it was
        else:
            check(
                0 <= self.alpha < math.inf,
                f"alpha must be finite and >= 0, got {self.alpha}: it weighs the divergences; 0.5 is usual",
            )

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        ratio_R = ratios_R("TDPO", policy, reference, batch)
        kl_R = LogProbs(required(policy.kl_K, "TDPO", "kl_K")).sums_R(batch)
        weight = 1.0 if self.alpha is None else self.alpha
        rewards_R = self.beta * (ratio_R + weight * kl_R).detach()

        def outcome(batch: Batch) -> Outcome:
            chosen_E, rejected_E = pair_indices(batch)
            delta_E = ratio_R[chosen_E] - ratio_R[rejected_E]
            kappa_E = weight * (kl_R[rejected_E] - self._held(kl_R[chosen_E]))
            return Outcome(-logsigmoid(self.beta * (delta_E - kappa_E)), rewards_R, state)

        return softened(outcome, batch)

    def _held(self, kl_E: Tensor) -> Tensor:
        """The divergences of chosen responses, with gradient in tdpo1 alone."""
        return kl_E if self.form == "tdpo1" else kl_E.detach()

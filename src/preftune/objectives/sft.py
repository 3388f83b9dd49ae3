"""Supervised fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from preftune.objectives.base import DataKind, Objective, Outcome, State
from preftune.objectives.batch import Batch, LogProbs, Role, role_indices


@dataclass(frozen=True)
class SFT(Objective):
    """SFT: maximum likelihood of demonstrations, or of the chosen response of a pair.

    Equation:
        loss = -(1 / tokens) * sum over response tokens of log pi(token | prompt, tokens before)
        The mean is over all response tokens of the optimiser batch; prompt tokens never count.

    Source: cross-entropy, as in every library; here without prompt tokens.

    When to use: before preference training, so that the policy can give the answers at all; or as a second term beside
        a preference objective, to hold up the likelihood of chosen responses.

    In nats: nothing to set. The loss is in nats per token; its exponential is the perplexity.

    Differs between libraries: none in the formula that we know of. Here the mean is over the whole optimiser batch, so
        that cutting it into micro-batches changes nothing.

    Example:
        >>> from preftune.objectives.batch import LogProbs
        >>> from types import SimpleNamespace as Batch
        >>> batch = Batch(response_K=torch.tensor([0, 0]), example_R=torch.tensor([0]), role_R=torch.tensor([0]),
        ...               length_R=torch.tensor([2]), weight_E=torch.ones(1))
        >>> outcome = SFT()(LogProbs(torch.tensor([-1.0, -3.0])), None, batch, {})
        >>> outcome.loss_E.item(), SFT().weight_E(batch).item()  # two nats per token, two tokens
        (2.0, 2.0)
    """

    reference: ClassVar[bool] = False
    data: ClassVar[DataKind] = "demonstrations"
    refuses: ClassVar[Mapping[str, str]] = {
        "average": "its loss is a mean over tokens already: leave it out",
        "temperature": "a likelihood has no log-ratio to divide; set its weight in the mix",
    }
    learning_rate: ClassVar[float] = 2e-5
    lora_learning_rate: ClassVar[float] = 2e-4

    def weight_E(self, batch: Batch) -> Tensor:
        return batch.weight_E * self._tokens_E(batch)

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        chosen = role_indices(batch, Role.CHOSEN)
        sums_R = policy.sums_R(batch)
        logps_E = sums_R.new_zeros(len(batch.weight_E)).index_add(0, batch.example_R[chosen], sums_R[chosen])
        rewards_R = torch.full_like(sums_R, torch.nan)
        return Outcome(-logps_E / self._tokens_E(batch).clamp(min=1), rewards_R, state)

    def _tokens_E(self, batch: Batch) -> Tensor:
        chosen = role_indices(batch, Role.CHOSEN)
        tokens_E = torch.zeros_like(batch.weight_E)
        return tokens_E.index_add(0, batch.example_R[chosen], batch.length_R[chosen].to(tokens_E.dtype))

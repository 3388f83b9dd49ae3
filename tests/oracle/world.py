"""A finite set of responses to one prompt, preferences over them, and training of a softmax policy on both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch, pack
from preftune.objectives.base import Objective
from preftune.objectives.batch import LogProbs, Role


@dataclass(frozen=True)
class World:
    """Preferences over responses.

    Attributes:
        reference: probability of each response under the reference, shape Y.
        wins: weight of the pair in which the row is chosen and the column rejected, shape (Y, Y).
        lengths: tokens of each response.
        confidence: probability that the row is better, shape (Y, Y); None if every label is certain.
        gap: rated difference of row and column, shape (Y, Y); None if there is none.
    """

    reference: Tensor
    wins: Tensor
    lengths: tuple[int, ...] = ()
    confidence: Tensor | None = None
    gap: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.reference)

    @property
    def reference_logps(self) -> Tensor:
        return self.reference.double().log()

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.lengths or (1,) * self.size

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(i, j) for i, j in permutations(range(self.size), 2) if self.wins[i, j] > 0]

    @property
    def masses(self) -> Tensor:
        """The weights as a batch holds them (float32), as shares of their sum."""
        wins = self.wins.float().double()
        return wins / wins.sum()

    def batch(self) -> PackedBatch:
        return pack(
            [
                Example(
                    np.arange(1, 3, dtype=np.int32),
                    (self._response(i, Role.CHOSEN), self._response(j, Role.REJECTED)),
                    weight=float(self.wins[i, j]),
                    confidence=1.0 if self.confidence is None else float(self.confidence[i, j]),
                    gap=math.nan if self.gap is None else float(self.gap[i, j]),
                )
                for i, j in self.pairs
            ]
        )

    def _response(self, index: int, role: Role) -> Response:
        return Response(np.arange(1, 1 + self.tokens[index], dtype=np.int32), role)

    def log_probs(self, logps_Y: Tensor, batch: PackedBatch) -> LogProbs:
        """What a model with these probabilities of whole responses says of a batch: each token has its share."""
        response_R = torch.tensor([i for pair in self.pairs for i in pair])
        token_Y = logps_Y / torch.tensor(self.tokens)
        return LogProbs(token_Y[response_R[batch.response_K]])

    def loss(self, objective: Objective):
        """The objective's loss of a policy, as a function of the policy's log-probabilities of whole responses."""
        batch = self.batch()
        reference = self.log_probs(self.reference_logps, batch)
        weight_E = objective.weight_E(batch).double()

        def loss(logps_Y: Tensor) -> Tensor:
            outcome = objective(self.log_probs(logps_Y, batch), reference, batch, objective.init())
            return (weight_E * outcome.loss_E).sum() / weight_E.sum()

        return loss


def uniform(size: int) -> Tensor:
    return torch.full((size,), 1 / size, dtype=torch.float64)


def bradley_terry(reward: Tensor) -> Tensor:
    """Probability that the row is preferred to the column; 0 on the diagonal."""
    reward = reward.double()
    return torch.sigmoid(reward[:, None] - reward).fill_diagonal_(0)


def two(p: float) -> Tensor:
    """Wins of two responses of which the first is preferred with probability p."""
    return torch.tensor([[0, p], [1 - p, 0]], dtype=torch.float64)


def trained(objective: Objective, world: World) -> Tensor:
    """Log-probabilities of a softmax policy that L-BFGS trains on the whole batch, from the reference."""
    loss, logits = world.loss(objective), world.reference_logps.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        logits.grad = None
        value = loss(torch.log_softmax(logits, 0))
        value.backward()
        return float(value.detach())

    optimiser.step(closure)
    return torch.log_softmax(logits.detach(), 0)


def trained_by_adam(objective: Objective, world: World, steps: int, rate: float, decay: float = 1.0) -> list[Tensor]:
    """Log-probabilities after every step of Adam on the whole batch; for losses with kinks, and for those without end.

    Args:
        rate: learning rate of the first step.
        decay: learning rate of the last step, as a share of the first.
    """
    loss, logits = world.loss(objective), world.reference_logps.clone().requires_grad_()
    optimiser, found = torch.optim.Adam([logits], lr=rate), []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * decay ** (step / steps)
        (logits.grad,) = torch.autograd.grad(loss(torch.log_softmax(logits, 0)), logits)
        optimiser.step()
        found.append(torch.log_softmax(logits.detach(), 0))
    return found

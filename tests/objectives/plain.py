"""Batches written down number by number, a token to a response, and objectives run on them, all in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, tensor

from preftune.objectives.base import Objective, Outcome, State
from preftune.objectives.batch import LogProbs, PlainBatch, Role


def batch_of(
    roles: Sequence[Sequence[Role]],
    scores: Sequence[float] | None = None,
    weight: Sequence[float] | None = None,
    confidence: Sequence[float] | None = None,
) -> PlainBatch:
    """Examples with responses of these roles, in order; scores are those of all responses."""
    flat = [int(role) for one in roles for role in one]
    ones = [1.0] * len(roles)

    def double(values: Sequence[float] | None, default: Sequence[float]) -> Tensor:
        return tensor(np.array(default if values is None else values, dtype=np.float64))

    return PlainBatch(
        response_K=torch.arange(len(flat)),
        example_R=tensor([index for index, one in enumerate(roles) for _ in one]),
        role_R=tensor(flat),
        score_R=double(scores, [np.nan] * len(flat)),
        length_R=torch.ones(len(flat), dtype=torch.int64),
        weight_E=double(weight, ones),
        confidence_E=double(confidence, ones),
        gap_E=double(None, ones),
    )


def paired(count: int, weight: Sequence[float] | None = None, confidence: Sequence[float] | None = None) -> PlainBatch:
    """Pairs, each chosen before rejected."""
    return batch_of([(Role.CHOSEN, Role.REJECTED)] * count, None, weight, confidence)


def labelled(good: Sequence[float], weight: Sequence[float] | None = None) -> PlainBatch:
    """Single responses with these labels."""
    return batch_of([(Role.LABELLED,)] * len(good), [float(each) for each in good], weight)


def run(
    objective: Objective,
    batch: PlainBatch,
    ratios: Sequence[float],
    state: State | None = None,
    reference: Sequence[float] | None = None,
) -> tuple[Outcome, np.ndarray, np.ndarray]:
    """The outcome for responses of these log-ratios, the losses, and the slopes of their weighted mean in the policy's
    log-probs.

    The mean is multiplied by the sum of the weights, so for weights of 1 these are the slopes of the summed losses.
    """
    theirs = torch.linspace(-1, -3, len(ratios)).double() if reference is None else tensor(reference).double()
    leaf = (theirs + tensor(np.array(ratios, dtype=np.float64))).requires_grad_()
    outcome = objective(LogProbs(leaf), LogProbs(theirs), batch, objective.init() if state is None else state)
    (slopes,) = torch.autograd.grad((objective.weight_E(batch) * outcome.loss_E).sum(), leaf)
    return outcome, outcome.loss_E.detach().numpy(), slopes.numpy()


def softplus(x: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """log(1 + exp(-x)), which is minus the log of the sigmoid, and its slope; written with hyperbolic functions."""
    return np.log(2 * np.cosh(np.asarray(x) / 2)) - np.asarray(x) / 2, (np.tanh(np.asarray(x) / 2) - 1) / 2

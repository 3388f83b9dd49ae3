"""How far an objective pulls: the difference of log-ratios at which its gradient is gone."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from preftune.objectives.base import Objective
from preftune.objectives.batch import LogProbs, PlainBatch, Role
from preftune.objectives.registry import Term

GONE = 0.1  # of the first gradient
NATS = np.geomspace(1e-3, 1e6, 541)  # places at which it is looked for: 60 in each power of ten
TYPICAL_LOGP = -1.5  # nats per token of both responses, for objectives that look at more than the difference
SCALES = ("beta", "tau")  # fields that say how much reward a nat is


def reach(terms: tuple[Term, ...], chosen_length: float, rejected_length: float) -> float | None:
    """The least difference of log-ratios, in nats, at which the first term's gradient has lost nine tenths of what it
    is before training, or has turned; infinite if that is nowhere.

    Args:
        terms: the objective; the first one with a beta or a tau counts.
        chosen_length: usual tokens of a chosen response, for objectives that read lengths.
        rejected_length: the same of rejected ones.

    Returns:
        None if no term has a beta or a tau, or it reads more than whole responses.

    Example:
        >>> from preftune.objectives.registry import terms
        >>> round(reach(terms({"name": "dpo", "beta": 0.1}), 20, 20))  # 1 - sigmoid(0.1 d) = 0.05 at d = 29.4
        30
        >>> 4 < reach(terms({"name": "ipo", "tau": 0.1}), 20, 20) < 5  # 1 / (2 tau) - d is a tenth at d = 4.5
        True
    """
    for term in terms:
        fields = term.objective.describe()
        if any(isinstance(fields.get(name), float) for name in SCALES):
            try:
                return _reach(term.objective, (chosen_length, rejected_length))
            except (ValueError, TypeError, AttributeError, KeyError):  # it reads more than whole responses
                return None
    return None


def _reach(objective: Objective, lengths: tuple[float, float]) -> float:
    delta_N = torch.tensor([0.0, *NATS], dtype=torch.float64, requires_grad=True)
    loss = _losses(objective, delta_N, lengths)
    (gradient_N,) = torch.autograd.grad(loss, delta_N)
    pull = -gradient_N.numpy()
    if not pull[0] > 0:
        raise ValueError("it does not pull")
    gone = np.flatnonzero(pull[1:] <= GONE * pull[0])
    return float(NATS[gone[0]]) if len(gone) else math.inf


def _losses(objective: Objective, delta_N: Tensor, lengths: tuple[float, float]) -> Tensor:
    """Sum of the losses of pairs whose chosen response has gained, and whose rejected one has lost, half of delta.
    Objectives that see a whole batch at once see one pair at a time, beside one that has not moved."""
    length = torch.tensor(lengths, dtype=torch.float64)
    start = TYPICAL_LOGP * length
    if objective.data == "pairs" and not objective.needs_tokens and not objective.couples:
        ones = torch.ones_like(delta_N)
        result = objective.on_pairs(
            start[0] + delta_N / 2,
            start[1] - delta_N / 2,
            ones * start[0] if objective.reference else None,
            ones * start[1] if objective.reference else None,
            chosen_lengths=ones * length[0],
            rejected_lengths=ones * length[1],
            gap=ones,
        )
        return result.loss_E.sum()
    if objective.data != "labels":
        raise ValueError("it takes no pairs")
    return torch.stack([_judged(objective, delta, start, length) for delta in delta_N]).sum()


def _judged(objective: Objective, delta: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Loss of a good and a bad response, each beside a baseline that has not moved."""
    moved = torch.stack([start[0] + delta / 2, start[0], start[1] - delta / 2, start[1]])
    role = torch.tensor([Role.LABELLED, Role.BASELINE] * 2)
    two = torch.ones(2, dtype=torch.float64)
    batch = PlainBatch(
        response_K=torch.arange(4),
        example_R=torch.tensor([0, 0, 1, 1]),
        role_R=role,
        score_R=torch.tensor([1.0, math.nan, 0.0, math.nan], dtype=torch.float64),
        length_R=length.repeat_interleave(2),
        weight_E=two,
        confidence_E=two,
        gap_E=two,
    )
    outcome = objective(LogProbs(moved), LogProbs(moved.detach()[[1, 1, 3, 3]]), batch, objective.init())
    return outcome.loss_E.sum()

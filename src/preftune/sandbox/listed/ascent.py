"""RLHF without an estimate in the listed world: ascent along the exact policy gradient.

What it reaches, the model can represent and descent can find; what other methods miss of it, they miss for other
reasons.

Tensor names carry their shape: P prompts, Y responses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from preftune.sandbox.listed.language import TRAIN, all_logps
from preftune.sandbox.listed.worth import reference_logps, rewards
from preftune.theory.frontier import objective


def exact_objective(lm: nn.Module, beta: float, prompts: Sequence[str], reward_PY: Tensor | None = None) -> Tensor:
    """Mean reward less beta times KL(policy || reference) of a model, exactly. A scalar; its gradient by the model's
    parameters is the exact policy gradient.

    Args:
        lm: the policy; put it into evaluation mode, so that no dropout interferes.
        beta: reward per nat.
        prompts: texts of three words.
        reward_PY: reward of each response; the true one by default.
    """
    reward_PY = rewards(prompts) if reward_PY is None else reward_PY
    logps_PY = all_logps(lm, prompts)
    return objective(logps_PY, reference_logps(prompts).to(logps_PY.device), reward_PY.to(logps_PY.device), beta)


def ascend(
    lm: nn.Module,
    beta: float,
    *,
    steps: int = 600,
    prompts: Sequence[str] = TRAIN,
    batch_size: int = 28,
    learning_rate: float = 5e-3,
    seed: int = 0,
) -> list[float]:
    """Train a model in place by Adam on the exact gradient, the rate falling to 0 along a cosine.

    Args:
        lm: the policy; it is left in evaluation mode.
        beta: reward per nat.
        steps: updates.
        prompts: texts of three words.
        batch_size: prompts of an update; with all their responses.
        learning_rate: of the first step.
        seed: of the order of prompts.

    Returns:
        The objective before each step, on that step's prompts.
    """
    rng, found = random.Random(seed), []
    optimizer = torch.optim.Adam(lm.eval().parameters(), lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value = exact_objective(lm, beta, rng.sample(prompts, min(batch_size, len(prompts))))
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
        schedule.step()
        found.append(float(value.detach()))
    return found

"""A run in which one process's second loss is infinite: `torchrun ... holding.py FOLDER STRATEGY`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import preftune
from preftune.errors import PreftuneError
from preftune.training.step import Step

SETTINGS: dict[str, Any] = {
    "data": {"limit": 40, "held_out": 9},
    "batch": {"size": 4, "micro_size": 1},
    "optim": {"learning_rate": 1e-2},
    "evaluate": {"samples": 0},
}
INFINITE = 1  # number of the step


def main() -> None:
    """The run stops, and the weights are those of the step before."""
    folder, strategy = Path(sys.argv[1]), sys.argv[2]
    after: list[list[Tensor]] = []
    gradient, loss, take = Step.gradient, Step._loss, Step.take
    steps: list[Step] = []

    def watched(self: Step, micros: Any, states: Any, step: int, norm: Any) -> Any:
        self.infinite = step == INFINITE and self.group.index == self.group.size - 1  # type: ignore[attr-defined]
        return gradient(self, micros, states, step, norm)

    def infinite(self: Step, *args: Any) -> Any:
        value, outcomes = loss(self, *args)
        return (value * float("inf") if getattr(self, "infinite", False) else value), outcomes

    def noted(self: Step, *args: Any) -> None:
        steps[:] = [self]
        take(self, *args)
        after.append(weights(self))

    Step.gradient, Step._loss, Step.take = watched, infinite, noted  # type: ignore[method-assign]
    settings = {**SETTINGS, "train": {"max_steps": 5, "strategy": strategy, "check_memory": False}}
    with pytest.raises(PreftuneError, match="finite"):
        preftune.train("sandbox", "sandbox", "dpo", output=folder, quiet=True, config=settings)
    assert len(after) in (1, 2)  # where the host holds the step back, it is not taken at all
    assert all(torch.isfinite(tensor).all() for tensor in after[0])
    assert all(torch.equal(*two) for two in zip(weights(steps[0]), after[0], strict=True))


def weights(step: Step) -> list[Tensor]:
    """A copy of the weights as they are."""
    return [parameter.detach().clone() for parameter in step.policy.parameters()]


if __name__ == "__main__":
    main()

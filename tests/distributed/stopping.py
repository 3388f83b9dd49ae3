"""Runs on several processes, undisturbed, and stopped and resumed: `torchrun ... stopping.py FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import preftune
from preftune.training.step import Step
from preftune.training.stopping import Stopped

SETTINGS: dict[str, Any] = {
    "data": {"limit": 40, "held_out": 9},
    "batch": {"size": 5, "micro_size": 2},
    "optim": {"learning_rate": 1e-2},
    "evaluate": {"every": 3, "samples": 0},
    "output": {"save_every": 3, "keep_last": 3},
}
OBJECTIVE = [{"name": "bco", "weight": 1.0}, {"name": "sft", "weight": 0.1}]
STOPPED_AT = 4


def train(folder: Path, strategy: str) -> None:
    """Seven steps."""
    settings = {**SETTINGS, "train": {"max_steps": 7, "log_every": 2, "strategy": strategy, "check_memory": False}}
    preftune.train("sandbox", "sandbox", OBJECTIVE, output=folder, quiet=True, config=settings)


def stopped(folder: Path, strategy: str) -> None:
    """The same, but the last process is asked to stop, and it alone."""
    original, calls = Step.take, 0

    def counted(self: Step, *args: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, *args)
        if calls == STOPPED_AT and self.group.index == self.group.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    Step.take = counted  # type: ignore[method-assign]
    said = ""
    try:
        train(folder, strategy)
    except Stopped as stop:
        said = str(stop)
    finally:
        Step.take = original  # type: ignore[method-assign]
    assert f"after step {STOPPED_AT} of 7" in said


def main() -> None:
    """Of each strategy, an undisturbed run, and one that is stopped and goes on."""
    folder = Path(sys.argv[1])
    for strategy in sys.argv[2:]:
        train(folder / f"{strategy}-calm", strategy)
        stopped(folder / f"{strategy}-again", strategy)
        preftune.resume(folder / f"{strategy}-again", quiet=True)


if __name__ == "__main__":
    main()

"""Runs to be made by one process and by two: `python runs.py FOLDER [ddp|fsdp2]`, under torchrun for two."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

import preftune
from preftune.training.trainer import Trainer

STORED = {"kind": "stored"}
LORA = {"lora": {"r": 4, "bias": "none"}}
MIX = [{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.1}]
# Nine pairs to a step are shared out unevenly; of 20, the last step of an epoch has two; of 13 held out, none is left over
# in the same way as of 20. Forwards are small, so that some process has fewer.
COMMON: dict[str, Any] = {
    "batch": {"size": 9, "micro_size": 3},
    # with so large an eps, AdamW's step is smooth in the gradient: weights after it tell gradients apart
    "optim": {"learning_rate": 0.5, "eps": 1.0, "warmup_steps": 0, "schedule": "constant"},
    "train": {"max_steps": 3, "log_every": 1},
    "evaluate": {"every": 1, "samples": 1, "max_new_tokens": 5},
    "data": {"limit": 33, "held_out": 13},
}
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": {"name": "dpo", "beta": 0.3}},
    "stored": {"objective": "ipo", "reference": STORED},
    "lora": {"objective": "dpo", "model": LORA},
    "lora-stored": {"objective": "dpo", "model": LORA, "reference": STORED},
    "kto": {"objective": "kto"},
    "mix": {"objective": MIX},
    "bco": {"objective": {"name": "bco", "shift": "running"}},
    "tdpo": {"objective": "tdpo"},
    # one pair to a step: the other process has none
    "single": {"objective": "dpo", "batch": {"size": 1}},
    "padded": {"objective": "simpo", "model": {"layout": "padded", "gradient_checkpointing": True}},
}


def run(name: str, folder: Path, strategy: str) -> None:
    """One of the runs, in a folder of its own."""
    settings = {
        key: {**COMMON.get(key, {}), **value} if isinstance(value, dict) and key in COMMON else value
        for key, value in RUNS[name].items()
    }
    blocks = {**COMMON, **settings}
    objective = blocks.pop("objective")
    blocks["train"] = {**blocks["train"], "strategy": strategy}
    done = preftune.train("sandbox", "sandbox", objective, output=folder / name, quiet=True, config=blocks)
    assert (done.path / "model").is_dir()


def main() -> None:
    """All runs; and which kinds of tensors the weights were while they trained."""
    folder, strategy = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "auto"
    kinds: dict[str, bool] = {}
    fit = Trainer.fit

    def looking(trainer: Trainer) -> dict[str, Any]:
        weights = list(trainer.prepared.parameters())
        sharded = [isinstance(weight, DTensor) and weight.to_local().numel() < weight.numel() for weight in weights]
        kinds[trainer.folder.path.name] = all(sharded)
        assert any(sharded) == all(sharded)
        found = fit(trainer)
        states = trainer.group.gathered([{k: v.clone() for k, v in state.items()} for state in trainer.states])
        for other in states[1:]:
            for one, same in zip(states[0], other, strict=True):
                assert one.keys() == same.keys() and all(torch.equal(one[key], same[key]) for key in one)
        return found

    Trainer.fit = looking  # type: ignore[method-assign]
    for name in sys.argv[3].split(",") if len(sys.argv) > 3 else RUNS:
        run(name, folder, strategy)
    if os.environ.get("RANK", "0") == "0":
        (folder / "sharded.json").write_text(json.dumps(kinds))


if __name__ == "__main__":
    main()

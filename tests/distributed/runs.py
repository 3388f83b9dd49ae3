"""Runs to be made by one process, and again by two: `torchrun runs.py DATA FOLDER STRATEGY NAME,...`."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

import preftune
from preftune.policy import loading
from preftune.training import processes
from preftune.training.trainer import Trainer
from preftune.training.zero import ZeroOptimizer

COMMON: dict[str, Any] = {
    # nine pairs to a step, in forwards of two or fewer: five forwards here, four there; of 20, the last step has two
    "batch": {"size": 9, "micro_size": 2, "micro_tokens": 256},
    # with so large an eps, AdamW's step is smooth in the gradient: weights after it tell gradients apart
    "optim": {"learning_rate": 0.09, "eps": 1.0, "warmup_steps": 0, "schedule": "constant"},
    "train": {"max_steps": 3, "log_every": 1, "check_memory": False},
    "evaluate": {"every": 1, "samples": 0, "max_new_tokens": 5},
    "data": {"held_out": 13},
}
LORA = {"lora": {"r": 4}}
ONLINE = {"judge": "sandbox", "rounds": 3, "prompts": 9, "max_new_tokens": 8, "held_out": 5}
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": {"name": "dpo", "beta": 0.3}, "evaluate": {"samples": 1}},
    "stored": {"objective": "ipo", "reference": {"kind": "stored"}},
    "lora": {"objective": "dpo", "model": LORA, "output": {"save_every": 2}},
    "lora-stored": {"objective": "dpo", "model": LORA, "reference": {"kind": "stored"}},
    "kto": {"objective": "kto"},
    # a running state, and a term beside it that does not couple examples
    "mix": {"objective": [{"name": "bco", "shift": "running"}, {"name": "sft", "weight": 0.1}]},
    # the heads of both models, called outside of their forwards
    "tdpo": {"objective": "tdpo", "model": {"layout": "padded"}},
    # answers sampled by both, of prompts that do not share out evenly; a value network beside the policy
    "online": {"objective": "dpo", "online": {**ONLINE, "reference": "moving"}},
    "ppo": {"objective": "ppo", "online": ONLINE},
    # one pair to a step, and one held out: the other process has none
    "single": {
        "objective": "simpo",
        "batch": {"size": 1},
        "data": {"held_out": 1},
        "model": {"gradient_checkpointing": True},
    },
    "single-coupled": {
        "objective": {"name": "bco", "shift": "running"},
        "batch": {"size": 1},
        "data": {"held_out": 1},
    },
}


def run(name: str, data: Path, folder: Path, strategy: str = "auto") -> Path:
    """One of the runs, in a folder of its own."""
    blocks: dict[str, Any] = {**COMMON, **RUNS[name]}
    blocks = {k: {**COMMON.get(k, {}), **v} if isinstance(v, dict) else v for k, v in blocks.items()}
    objective = blocks.pop("objective")
    blocks["train"] = {**blocks["train"], "strategy": strategy}
    return preftune.train("sandbox", str(data), objective, output=folder / name, quiet=True, config=blocks).path


def main() -> None:
    """The runs named; and of each how the weights lay, and whether the objective's state was one and the same."""
    data, folder, strategy, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4].split(",")
    seen: dict[str, dict[str, Any]] = {}
    fit, main_process, read = Trainer.fit, False, 0

    def looking(trainer: Trainer) -> dict[str, Any]:
        nonlocal main_process
        nonlocal read
        found, group = fit(trainer), processes.current()
        reads, read = group.gathered(read), 0
        weights = list(trainer.prepared.state_dict().values())
        states = group.gathered([list(state.values()) for state in trainer.states])
        seen[trainer.folder.path.name] = {
            "wrapped": type(trainer.prepared).__name__,
            "sharded": [isinstance(w, DTensor) and w.to_local().numel() < w.numel() for w in weights],
            "reads": reads,
            **(_zero(trainer) if isinstance(trainer.optimizer, ZeroOptimizer) else {}),
            "states": len(states[0][0]),
            "same_states": all(
                torch.equal(one, other) for of_one in zip(*states, strict=True) for one, other in _couples(of_one)
            ),
        }
        main_process = group.main
        return found

    pretrained = loading._pretrained

    def reading(*args: Any) -> Any:
        nonlocal read
        read += 1
        return pretrained(*args)

    Trainer.fit = looking  # type: ignore[method-assign]
    loading._pretrained = reading
    for name in names:
        run(name, data, folder, strategy)
    if main_process:
        (folder / "seen.json").write_text(json.dumps(seen))


def _zero(trainer: Trainer) -> dict[str, int]:
    """DeepSpeed's stage, and numbers kept in moments beside numbers trained."""
    states = trainer.optimizer.optimizer.state.values()
    return {
        "stage": 2 if trainer.optimizer.zero.partition_gradients else 1,
        "moments": sum(value.numel() for state in states for key, value in state.items() if key != "step"),
        "trained": sum(p.numel() for p in trainer.policy.parameters() if p.requires_grad),
    }


def _couples(of_one: tuple[list[torch.Tensor], ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each tensor of one term's state beside that of the next process."""
    return [couple for one, other in pairwise(of_one) for couple in zip(one, other, strict=True)]


if __name__ == "__main__":
    main()

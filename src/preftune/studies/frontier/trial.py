"""One cell, from preferences to figures: trained as a user would, measured once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.api import train
from preftune.evaluation.opening import open_for_evaluation
from preftune.evaluation.scoring import score
from preftune.run import Run
from preftune.studies.frontier.cells import Cell
from preftune.studies.frontier.methods import METHODS, Method
from preftune.studies.frontier.reward_models import reward_model
from preftune.studies.frontier.worlds import World, open_world
from preftune.training import metrics

BATCH = 64  # pairs of an optimiser step; all of them where there are fewer
LEARNED = 512  # pairs that were learned from, of which accuracy is taken
SAMPLES = 2  # responses to each prompt, of methods that learn from their own


class Place:
    """Where a process carries out cells, and what it keeps between them.

    Args:
        folder: of the study, which holds what processes share.
        scratch: for runs, which are deleted when they have been measured.
        quick: whether worlds are sampled less.
    """

    def __init__(self, folder: Path, scratch: Path, quick: bool = False) -> None:
        self.folder, self.scratch, self.quick = folder, scratch, quick
        self._worlds: dict[str, World] = {}

    def world(self, name: str) -> World:
        """A world, opened once."""
        if name not in self._worlds:
            self._worlds[name] = open_world(name, self.folder, self.quick)
        return self._worlds[name]

    def carry_out(self, cell: Cell) -> dict[str, Any]:
        """Train, measure, and forget the run.

        Returns:
            What `Measured` has, and: seconds of training and of the whole cell, updates, tokens that were sampled for
            training, pairs that were learned from; for cells that train, accuracy and loss on their pairs and on
            held-out ones.

        Raises:
            PreftuneError: if training fails.
        """
        began = time.perf_counter()
        method, world = METHODS[cell.method], self.world(cell.world)
        judge = None
        if method.feedback == "learned reward":
            judge = reward_model(world, self.folder / "reward-models", cell.preferences, cell.seed)
        figures: dict[str, Any] = {"updates": 0, "sampled_tokens": 0, "training_seconds": 0.0}
        if method.trains:
            try:
                run = _trained(cell, method, world, judge, self.scratch / "run")
                measured = world.measure(run.model, cell.split, cell.preferences, judge)  # type: ignore[arg-type]
                figures |= _costs(run)
                figures |= _gap(run)
            finally:
                shutil.rmtree(self.scratch, ignore_errors=True)
        elif method.kind == "best_of_n":
            measured = world.best_of_n(round(cell.strength), cell.split, cell.preferences, judge)
        else:
            measured = world.measure(world.reference(), cell.split, cell.preferences)
        return {**measured.plain(), **figures, "seconds": time.perf_counter() - began}


def _trained(cell: Cell, method: Method, world: World, judge: Path | None, path: Path) -> Run:
    rows = world.rows(cell.preferences, cell.seed)
    held_out = world.held_out_rows(cell.preferences, cell.seed, cell.split)
    assert cell.rate is not None
    return train_in(
        world, rows, method.spec(cell.strength), cell.rate, cell.updates, cell.seed, path, held_out=held_out
    )


def train_in(
    world: World,
    rows: Sequence[Mapping[str, Any]],
    objective: Any,
    rate: float,
    updates: int,
    seed: int,
    path: Path,
    *,
    held_out: Sequence[Mapping[str, Any]] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """`preftune.train` in a world, without what a study does not look at.

    Args:
        world: which has the model to start from.
        rows: what to learn from.
        objective: as `preftune.train` takes it.
        rate: peak learning rate.
        updates: optimiser steps.
        seed: of data order, new weights and sampling.
        path: run folder.
        held_out: rows to report accuracy and loss on.
        config: further blocks.
    """
    blocks = {name: dict(block) for name, block in {**world.config, **(config or {})}.items()}
    if held_out is None:
        blocks["data"] = {**blocks.get("data", {}), "held_out": 0.0}
    blocks["data"] = {**blocks.get("data", {}), "workers": 1}
    return train(
        world.start,
        list(rows),
        objective,
        held_out=held_out,
        output=path,
        overwrite=True,
        quiet=True,
        config=blocks,
        batch={"size": min(BATCH, len(rows))},
        optim={"learning_rate": rate},
        train={"max_steps": updates, "check_memory": False, "log_every": 10, "device": "cpu"},
        evaluate={"samples": 0, **({} if held_out is None else {"credit": 0})},
        doctor={"answers": 0},
        seed=seed,
    )


def _costs(run: Run) -> dict[str, Any]:
    """What training took."""
    rounds = [line for line in _lines(run) if line.get("kind") == "round"]
    return {
        "updates": run.summary["steps"],
        "training_seconds": run.summary["training_seconds"],
        "sampled_tokens": rounds[-1]["tokens_sampled"] if rounds else 0,
        "sampling_seconds": sum(line["seconds"] for line in rounds),
    }


def _gap(run: Run) -> dict[str, Any]:
    """How often the policy prefers, against the reference, what was chosen: of pairs that it learned from (some of
    them), and of held-out ones."""
    after = run.summary["after"]
    opened = open_for_evaluation(run.path, data=run.path / "data" / "train.jsonl", device="cpu")
    learned = metrics.summarise(score(opened, opened.examples[:LEARNED]).table)
    return {
        "train_accuracy": learned.get("preference_accuracy"),
        "held_out_accuracy": after.get("preference_accuracy"),
    }


def _lines(run: Run) -> list[dict[str, Any]]:
    text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]

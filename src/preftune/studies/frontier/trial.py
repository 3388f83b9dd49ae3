"""One cell, from preferences to figures: trained as a user would, measured once."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from preftune.api import train
from preftune.errors import PreftuneError
from preftune.evaluation.opening import open_for_evaluation
from preftune.evaluation.scoring import score
from preftune.run import Run
from preftune.studies.frontier.cells import Cell
from preftune.studies.frontier.methods import METHODS, Method
from preftune.studies.frontier.reward_models import reward_model
from preftune.studies.frontier.worlds import World, open_world
from preftune.training import metrics

BATCH = 64  # pairs of an optimiser step; all of them where there are fewer
PREFERRED = 256  # pairs that were learned from, and as many others, of which accuracy is taken


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
            What `Measured` has, and: the processor's seconds in training (which do not depend on what else the machine
            does), seconds of the whole cell, updates, tokens that were sampled for training; of methods that learn from
            pairs, their accuracy on those and on held-out ones.

        Raises:
            PreftuneError: if training fails, or leaves nothing that can be measured.
        """
        began = time.perf_counter()
        method, world = METHODS[cell.method], self.world(cell.world)
        judge = None
        if method.feedback == "learned reward":
            judge = reward_model(world, self.folder / "reward-models", cell.preferences, cell.seed)
        figures: dict[str, Any] = {"updates": 0, "sampled_tokens": 0, "training_seconds": 0.0}
        if method.trains:
            try:
                spent = time.process_time()
                run = _trained(cell, method, world, judge, self.scratch / "run")
                figures["training_seconds"] = time.process_time() - spent
                measured = world.measure(run.model, cell.split, cell.preferences, judge)  # type: ignore[arg-type]
                figures |= _costs(run)
                if method.kind == "offline":
                    figures |= _gap(run, world, cell)
            finally:
                shutil.rmtree(self.scratch, ignore_errors=True)
        elif method.kind == "best_of_n":
            measured = world.best_of_n(round(cell.strength), cell.split, cell.preferences, judge)
        else:
            measured = world.measure(world.reference(), cell.split, cell.preferences)
        if not (math.isfinite(measured.reward) and math.isfinite(measured.kl)):
            raise PreftuneError(f"training diverged: the policy's reward is {measured.reward}, its KL {measured.kl}")
        return {**measured.plain(), **figures, "seconds": time.perf_counter() - began}


def _trained(cell: Cell, method: Method, world: World, judge: Path | None, path: Path) -> Run:
    rows = world.rows(cell.preferences, cell.seed)
    assert cell.rate is not None
    objective = method.spec(cell.strength)
    if method.kind == "online":
        online = _online(cell, method, world, judge)
        return train_in(
            world, rows, objective, cell.rate, cell.updates, cell.seed, path, size=online["prompts"], online=online
        )
    return train_in(world, rows, objective, cell.rate, cell.updates, cell.seed, path)


def _online(cell: Cell, method: Method, world: World, judge: Path | None) -> dict[str, Any]:
    """The block `online`: as many responses to an update as others have in their pairs."""
    given = {"epochs": 1, **method.online}
    prompts = 2 * BATCH // given["samples"]
    return {
        **given,
        "judge": world.judge if judge is None else f"reward:{judge}",
        "label_scale": world.scale,
        "prompts": min(prompts, len(set(world.prompts()))),
        "rounds": max(1, cell.updates // given["epochs"]),
        "max_new_tokens": world.longest,
        "held_out": 0,
        "keep": 0,
    }


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
    size: int = BATCH,
    online: Mapping[str, Any] | None = None,
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
        held_out: rows to report accuracy on.
        size: examples of an update; all rows, where there are fewer.
        online: the block of this name, for methods that learn from their own samples, whose rounds say how long.
    """
    data = {**world.config.get("data", {}), "workers": 1, **({"held_out": 0.0} if held_out is None else {})}
    blocks: dict[str, Any] = {**world.config, "data": data, **({} if online is None else {"online": dict(online)})}
    length = {"max_steps": updates} if online is None else {}
    return train(
        world.start,
        list(rows),
        objective,
        held_out=held_out,
        output=path,
        overwrite=True,
        quiet=True,
        config=blocks,
        batch={"size": min(size, len(rows))},
        optim={"learning_rate": rate},
        train={**length, "check_memory": False, "device": "cpu"},
        evaluate={"samples": 0, **({} if held_out is None else {"credit": 0})},
        doctor={"answers": 0},
        seed=seed,
    )


def _costs(run: Run) -> dict[str, Any]:
    """What training took."""
    rounds = [line for line in _lines(run) if line.get("kind") == "round"]
    return {
        "updates": run.summary["steps"],
        "sampled_tokens": rounds[-1]["tokens_sampled"] if rounds else 0,
        "sampling_seconds": sum(line["seconds"] for line in rounds),
    }


def _gap(run: Run, world: World, cell: Cell) -> dict[str, Any]:
    """How often the policy prefers, against the reference, what was chosen: of pairs that it learned from, and of pairs
    of prompts that it has not seen, as many."""
    rows = world.rows(cell.preferences, cell.seed)[:PREFERRED]
    apart = world.held_out_rows(replace(cell.preferences, pairs=PREFERRED), cell.seed, cell.split)
    path = run.path / "preferred.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *apart)), encoding="utf-8")
    opened = open_for_evaluation(run.path, data=path, device="cpu")
    table = score(opened).table
    learned = np.array([example.row < len(rows) for example in opened.examples])
    found = {}
    for name, side in (("train", learned), ("held_out", ~learned)):
        summary = metrics.summarise({key: values[side] for key, values in table.items()})
        found[f"{name}_accuracy"] = summary.get("preference_accuracy")
    return found


def _lines(run: Run) -> list[dict[str, Any]]:
    text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]

"""What a sweep is refused for before anything trains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from preftune import yaml_tree
from preftune.checks import check, check_columns, check_kind, trains_rewards
from preftune.config import RunConfig
from preftune.data import dataset
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.sweeping.grid import Cell, Grid
from preftune.sweeping.measuring import Measure
from preftune.training.processes import launched


def check_sweep(
    found: Grid, how: Measure, folder: Path, kl_budget: float | None, jobs: int, file: Path | None
) -> list[str]:
    """Refuse what shows to be wrong beforehand, in any of the runs.

    Args:
        found: the runs.
        how: by what they are measured.
        folder: of the sweep.
        kl_budget: most KL, nats per response.
        jobs: processes.
        file: the config file, if there is one.

    Returns:
        What to know, a line each.

    Raises:
        PreftuneError: names the run.
    """
    if launched() > 1:
        raise PreftuneError("a sweep starts processes of its own (--jobs): start it without a launcher")
    for name, value, least in (("jobs", jobs, 1), ("prompts", how.prompts, 2), ("samples", how.samples_per_prompt, 1)):
        if value < least:
            raise PreftuneError(f"{name} is {value}, expected at least {least}")
    if kl_budget is not None and not (math.isfinite(kl_budget) and kl_budget > 0):
        raise PreftuneError(f"the KL budget is {kl_budget}, expected a number of nats above 0")
    if folder.is_file() or (folder / "config.yaml").is_file():
        what = "a file" if folder.is_file() else "a run of its own"
        raise PreftuneError(f"{folder} is {what}, expected a folder for a sweep: name another with --out")
    how.check()
    for cell in found.cells:
        try:
            _check_cell(cell, folder, file)
        except PreftuneError as error:
            raise PreftuneError(f"run {cell.name} of the sweep: {error}") from None
    _check_data(found)
    return [*found.notes, *_notes(found)]


def _check_cell(cell: Cell, folder: Path, file: Path | None) -> None:
    config = cell.placed(folder)
    if config.data.path is None:
        raise PreftuneError("data.path is missing: name a file, a folder, a hub id, or 'sandbox' (--data)")
    if trains_rewards(cell.terms):
        raise PreftuneError(
            "its objective trains a reward model, which has no answers and no KL to weigh: train reward models with "
            "`preftune train`, and compare them with `preftune report RUN1 RUN2`"
        )
    run = Path(str(config.output.path))
    there = (run / "config.yaml").is_file()
    check(config, cell.terms, run, loaded=False, file=file, resumes=there)
    if there and (key := _differs(run, config, cell)):
        raise PreftuneError(
            f"{run} holds a run with another {key}, which would be taken for this one: name another folder with --out"
        )


def _differs(run: Path, config: RunConfig, cell: Cell) -> str:
    """A key in which the run in a folder is not the one that is asked for; empty if there is none."""
    there = yaml_tree.load(RunConfig, run / "config.yaml", tagged=("objective",))
    theirs, ours = _flat(there, registry.terms(there.objective)), _flat(config, cell.terms)
    return next((key for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)), "")


def _flat(config: RunConfig, terms: tuple[registry.Term, ...]) -> dict[str, str]:
    """What decides a run, as dotted keys: where it is kept is no part of it."""
    values = {**config.model_dump(mode="json", exclude={"output"}), "objective": registry.spec_of(terms)}

    def leaves(node: Any, key: str) -> dict[str, str]:
        if isinstance(node, dict) and node:
            return {k: v for name, child in node.items() for k, v in leaves(child, f"{key}.{name}").items()}
        return {key.lstrip("."): json.dumps(node, default=str)}

    return leaves(values, "")


def _check_data(found: Grid) -> None:
    """Read each data set once, and hold the objectives that are to learn from it against it."""
    seen: dict[str, dataset.Records] = {}
    for cell in found.cells:
        data = cell.config.data
        key = json.dumps([data.model_dump(mode="json"), cell.config.seed], default=str)
        if key not in seen:
            seen[key] = dataset.read(data, str(data.path), cell.config.seed)
        records = seen[key]
        try:
            if cell.config.online is None:  # or it asks for prompts, which all data has
                check_kind(cell.terms, records.kind)
                check_columns(cell.terms, records)
            if not records.held_out:
                raise PreftuneError("nothing is held out to measure it on: set data.held_out or data.held_out_path")
        except PreftuneError as error:
            raise PreftuneError(f"run {cell.name} of the sweep: {error}") from None


def _notes(found: Grid) -> list[str]:
    """What to know of the runs' references."""
    needing = [cell for cell in found.cells if registry.needs_reference(cell.terms)]
    free = sorted({"+".join(t.name for t in cell.terms) for cell in found.cells if cell not in needing})
    live = sorted({"+".join(t.name for t in cell.terms) for cell in needing if not cell.stores})
    notes = []
    if free:
        notes.append(f"trained without a reference, and measured against the start all the same: {' and '.join(free)}")
    if live:
        notes.append(f"no log-probs of a reference are stored for {' and '.join(live)}: it is computed in each step")
    return notes

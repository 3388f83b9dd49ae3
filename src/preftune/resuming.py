"""A run that was stopped goes on: its config, what may change in it, and whether what it began with is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from preftune import yaml_tree
from preftune.config import RunConfig
from preftune.errors import PreftuneError
from preftune.policy.reference import weights_hash
from preftune.training import checkpoint
from preftune.training.run_folder import RunFolder

# What may change: it says how a run is carried out, watched or kept; or it is a rate, which takes effect from here on.
FREE = (
    "output.save_every",
    "output.save_minutes",
    "output.keep_last",
    "output.keep_best",
    "output.trackers",
    "train.device",
    "train.strategy",
    "train.compile",
    "train.log_every",
    "train.check_memory",
    "train.grace_seconds",
    "evaluate.every",
    "batch.micro_size",
    "batch.micro_tokens",
    "data.workers",
    "optim.learning_rate",
    "optim.max_grad_norm",
    "doctor.off",
    "doctor.stop",
    "doctor.kl_per_token",
    "doctor.chosen_fall",
    "doctor.length_growth",
)
# Keys that name a file or folder, for a run that goes on from another current folder.
PATHS = (
    ("model", "path"),
    ("model", "tokenizer"),
    ("reference", "path"),
    ("reference", "folder"),
    ("data", "path"),
    ("data", "held_out_path"),
)


def config_of(run: Path, changes: Sequence[str]) -> RunConfig:
    """The config that a run goes on with.

    Args:
        run: its folder.
        changes: overrides, `key=value`, of keys in `FREE`.

    Raises:
        PreftuneError: if the folder holds no run, or a key cannot change any more.
    """
    for change in changes:
        key = change.partition("=")[0]
        if key not in FREE:
            raise PreftuneError(
                f"{key} cannot change when a run goes on, for it decides what the run is: start a new run, which may "
                f"take a checkpoint as model.path; what may change: {', '.join(FREE)}"
            )
    RunFolder.check_run(run)
    values = yaml_tree.read(run / "config.yaml")
    _find_paths(values, run, Path(RunFolder(run).manifest().get("folder", ".")))
    values["output"] = {**values.get("output", {}), "path": str(run), "overwrite": False}
    try:
        yaml_tree.load(RunConfig, run / "config.yaml", tagged=("objective",))
    except PreftuneError as error:
        raise PreftuneError(f"{run / 'config.yaml'} is no config any more: restore it ({error})") from None
    return yaml_tree.load(RunConfig, None, changes, base=values, tagged=("objective",))


def has_ended(run: Path) -> bool:
    """True if there is nothing left to do."""
    return (run / "summary.json").is_file()


def start_hash(lm: nn.Module) -> str:
    """A name for all weights that a run begins with, adapters included."""
    return weights_hash(lm.state_dict())


@dataclass(frozen=True)
class Going:
    """Where a run goes on from.

    Attributes:
        checkpoint: its folder; None: training begins anew.
        step: optimiser steps done.
        sizes: of the files that grow by lines, at that step.
        notes: what a user should know.
    """

    checkpoint: Path | None
    step: int
    sizes: Mapping[str, int]
    notes: list[str]


def go_on(folder: RunFolder, fingerprint: str, start: str) -> Going:
    """Where a run goes on from: its newest whole checkpoint, if what it began with is still the same.

    Args:
        folder: of the run.
        fingerprint: of the records.
        start: `start_hash` of the model.

    Raises:
        PreftuneError: names what has changed, or a checkpoint that another version has written.
    """
    run, manifest = folder.path, folder.manifest()
    if manifest.get("data_sha256") != fingerprint:
        raise PreftuneError(
            f"the data has changed since {run} began (data_sha256 in its manifest.json): restore it, or start a new run"
        )
    if manifest.get("start_sha256") != start:
        raise PreftuneError(
            f"the model that {run} began with has changed (start_sha256 in its manifest.json): restore it, for the "
            "reference is made from it, or start a new run"
        )
    found, notes = checkpoint.newest(run)
    now, then = RunFolder.versions(), manifest.get("versions", {})
    if changed := [f"{name} {then.get(name)} -> {now[name]}" for name in now if now[name] != then.get(name)]:
        notes.append(f"software has changed since the run began, so rounding may differ: {', '.join(changed)}")
    if found is None:
        return Going(None, 0, {}, [*notes, f"{run} has no whole checkpoint: training begins at step 0"])
    position = checkpoint.position_of(found)
    return Going(found, position["position"]["step"], position["files"], [*notes, f"going on from {found}"])


def _find_paths(values: dict[str, Any], run: Path, began: Path) -> None:
    """Find files again that were named relative to the folder in which the run began, or lie in a moved run."""
    moved = Path((values.get("output") or {}).get("path") or ".")
    for block, key in PATHS:
        held = values.get(block) or {}
        path = held.get(key)
        if not isinstance(path, str):
            continue
        if Path(path).is_relative_to(moved) and (run / Path(path).relative_to(moved)).exists():
            held[key] = str(run / Path(path).relative_to(moved))
        elif not Path(path).is_absolute() and not Path(path).exists() and (began / path).exists():
            held[key] = str(began / path)

"""A run folder, read from disk: what training wrote, and what evaluation and inspection added later."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.errors import PreftuneError
from preftune.yaml_tree import read as read_config


@dataclass(frozen=True)
class RunData:
    """What a run folder holds. A file that the run has not written yet is empty here.

    Attributes:
        path: the folder.
        config: config.yaml, as resolved by the run.
        config_text: the same file as it stands.
        manifest: manifest.json: versions, seed, data hash, command, device.
        history: metrics.jsonl, one dictionary a line, in the order written; `kind` is "train", "eval", "round" or
            "doctor".
        samples: samples.jsonl, one dictionary a line; `when` is "start" or "end".
        summary: summary.json, written when the run ends.
        failure: failure.json, written when a batch stopped the run.
        evaluation: evaluation.json, from `preftune evaluate`.
        generations: generations.jsonl, likewise: answers of the policy beside those of the model it is held against.
        credit: credit.jsonl: the credit of each token of some held-out pairs.
        data_doctor: data_doctor.json: what was found in the data at the start.
        rollouts: rollouts.jsonl: some answers of each round, of a run that learns from its own.
    """

    path: Path
    config: dict[str, Any]
    config_text: str
    manifest: dict[str, Any]
    history: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    summary: dict[str, Any]
    failure: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    generations: list[dict[str, Any]] = field(default_factory=list)
    credit: list[dict[str, Any]] = field(default_factory=list)
    data_doctor: dict[str, Any] = field(default_factory=dict)
    rollouts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def known_as(self) -> str:
        """The folder as the run was told to write it, as long as it goes by that name: for commands that name it."""
        output = self.config.get("output")
        told = output.get("path") if isinstance(output, dict) else None
        return told if isinstance(told, str) and Path(told).name == self.name else str(self.path)

    @property
    def own_evaluation(self) -> dict[str, Any]:
        """The evaluation, if it is of the run against its own reference on what it held out; otherwise empty. One that
        does not say so, being older, counts as such."""
        flags = (self.evaluation.get(key) for key in ("own_reference", "own_data"))
        return {} if any(flag is False for flag in flags) else self.evaluation

    @property
    def data_path(self) -> str:
        """What the config says the data is; empty if nothing."""
        data = self.config.get("data")
        told = data.get("path") if isinstance(data, dict) else data
        return told if isinstance(told, str) else ""


def read(run_dir: str | Path) -> RunData:
    """Read a run folder, also one whose run crashed or still goes on.

    Args:
        run_dir: a folder that `preftune train` wrote; it has at least config.yaml.

    Raises:
        PreftuneError: if there is no such folder, it is no run, or one of its files cannot be parsed.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise PreftuneError(f"{path} is no folder: give the folder that a run wrote, the one that holds config.yaml.")
    config = path / "config.yaml"
    if not config.is_file():
        raise PreftuneError(f"{path} is no run folder, it has no config.yaml: give the folder that a run wrote.")
    return RunData(
        path=path,
        config=read_config(config),
        config_text=config.read_text(encoding="utf-8-sig"),
        manifest=_read_object(path / "manifest.json"),
        history=_read_lines(path / "metrics.jsonl"),
        samples=_read_lines(path / "samples.jsonl"),
        summary=_read_object(path / "summary.json"),
        failure=_read_object(path / "failure.json"),
        evaluation=_read_object(path / "evaluation.json"),
        generations=_read_lines(path / "generations.jsonl"),
        credit=_read_lines(path / "credit.jsonl"),
        data_doctor=_read_object(path / "data_doctor.json"),
        rollouts=_read_lines(path / "rollouts.jsonl"),
    )


def _read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PreftuneError(f"{path} is no JSON: restore it, or delete it to go without.") from error
    if not isinstance(content, dict):
        raise PreftuneError(f"{path} holds {_kind(content)}, expected a JSON object: restore or delete it.")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; empty if there is no such file. A last line that a crash cut is skipped."""
    if not path.is_file():
        return []
    # Split the bytes: a crash may cut inside a character, and str.splitlines would split at U+2028 inside a text.
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # a whole line ends with a newline, so that the last piece is empty
                break
            raise PreftuneError(f"{path} line {number} is no JSON: delete that line, or restore the file.") from error
        if not isinstance(row, dict):
            raise PreftuneError(f"{path} line {number} holds {_kind(row)}, expected a JSON object: delete that line.")
        rows.append(row)
    return rows


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
    return "nothing" if value is None else names.get(type(value), "a number")

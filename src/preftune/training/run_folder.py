"""A run is a folder: config, manifest, metrics, samples, model and summary. Nothing of a run lives anywhere else."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from preftune.api_keys import command_line
from preftune.errors import PreftuneError
from preftune.full_disk import cleanly

FILES = {"config.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html"}


class OutputConfig(BaseModel):
    """Where a run is kept."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(None, description="run folder; none: runs/<objective>-<time>")
    overwrite: bool = Field(False, description="replace a run folder that is already there")
    save_every: int | None = Field(None, ge=1, description="optimiser steps between two saved models; none: at the end")
    keep: int = Field(2, ge=1, description="saved models to keep besides the last one")
    trackers: list[str] = Field(default_factory=list, description="also log to these: tensorboard, wandb, mlflow, ...")


class RunFolder:
    """Writes a run's files. Each is whole or absent: written under a temporary name, then renamed."""

    def __init__(self, path: Path, replaced: Path | None = None) -> None:
        """`replaced` is where the run that was there before is kept until `keep` or `discard`."""
        self.path, self.replaced = path, replaced

    @staticmethod
    def check(path: Path, overwrite: bool = False) -> None:
        """Refuse a folder that `create` would refuse, as far as that shows without touching anything.

        Raises:
            PreftuneError: if there is something there already that must not be replaced.
        """
        if path.is_dir() and not any(path.iterdir()):
            return
        if path.exists() and not overwrite:
            unfinished = (path / "config.yaml").is_file() and not (path / "summary.json").is_file()
            what = "holds a run that did not finish" if unfinished else "exists and is not empty"
            raise PreftuneError(
                f"output.path {path} {what}: name another folder, or let it be replaced (output.overwrite=true; in the "
                "demo --overwrite)"
            )
        if path.exists() and not (path / "config.yaml").is_file():
            raise PreftuneError(f"output.path {path} is no run folder, so it is not overwritten: name another folder")
        if path.exists() and (foreign := sorted(one.name for one in path.iterdir() if _is_foreign(one))):
            raise PreftuneError(
                f"output.path {path} would be replaced, but it holds {foreign[0]}, which no run wrote: move it, or "
                "name another folder"
            )
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise PreftuneError(f"cannot write to output.path {path}: {above} is no folder that may be written to")

    @classmethod
    def create(cls, path: Path, overwrite: bool = False) -> RunFolder:
        """A new, empty run folder.

        Raises:
            PreftuneError: if there is something there already, or the folder cannot be made.
        """
        cls.check(path, overwrite)
        replaced = None
        try:
            if path.exists() and any(path.iterdir()):
                replaced = path.with_name(f".{path.name}.replaced-{os.getpid()}")
                path.rename(replaced)
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path):
                pass
        except OSError as error:
            raise PreftuneError(f"cannot write to output.path {path}: {error.strerror}") from error
        return cls(path, replaced)

    def keep(self) -> None:
        """The run has begun: let go of the one that it replaces."""
        if self.replaced is not None:
            shutil.rmtree(self.replaced)
            self.replaced = None

    def discard(self) -> None:
        """Remove the folder, of a run that never began, and put back what was there before."""
        shutil.rmtree(self.path)
        if self.replaced is not None:
            self.replaced.rename(self.path)

    def write_config(self, text: str) -> None:
        """Keep the config as resolved (YAML)."""
        self._write("config.yaml", text)

    def write_manifest(self, **values: Any) -> None:
        """Keep versions, command and what else says how the run came about."""
        packages = ("preftune", "torch", "transformers", "peft", "accelerate", "tokenizers")
        manifest = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command_line([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv[0] else "python",
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": {name: version(name) for name in packages},
            **values,
        }
        self._write("manifest.json", to_json(manifest, indent=2))

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl, on disk when this returns."""
        self._append("metrics.jsonl", [values])

    def append_samples(self, samples: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to samples.jsonl."""
        self._append("samples.jsonl", samples)

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Keep what the run came to."""
        self._write("summary.json", to_json(values, indent=2))

    def replace_folder(self, name: str, source: Path) -> None:
        """Put a finished folder (made beside it) in the place of `name`."""
        target = self.path / name
        old = self.path / f".{name.replace('/', '-')}.old"
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(old)
        source.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    @cleanly
    def _append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(to_json(line) + "\n" for line in lines).encode()
        with (self.path / name).open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while text:
                    text = text[file.write(text) :]
                os.fsync(file.fileno())
            except OSError:  # no half a line stays on a full disk
                file.truncate(before)
                raise

    @cleanly
    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
        temporary.replace(self.path / name)


def _is_foreign(path: Path) -> bool:
    """True for a file that is not a run's; folders may be those of trackers."""
    return path.is_file() and path.name not in FILES and not path.name.startswith(".")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader accepts: NaN and infinities become null."""
    return json.dumps(_finite(value), ensure_ascii=False, indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

"""A run is a folder: config, manifest, metrics, samples, model and summary. Nothing of a run lives anywhere else."""

from __future__ import annotations

import glob
import json
import math
import os
import platform
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from preftune.api_keys import this_command
from preftune.errors import PreftuneError
from preftune.evaluation.credit import PairCredit
from preftune.files import settle, write_whole
from preftune.full_disk import named
from preftune.training import checkpoint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PACKAGES = ("preftune", "torch", "transformers", "peft", "accelerate", "tokenizers")
LINES = ("metrics.jsonl", "samples.jsonl", "rollouts.jsonl")
FILES = {"config.yaml", "manifest.json", *LINES, "summary.json", "report.html", "failure.json", "credit.jsonl"}
FILES |= {"evaluation.json", "generations.jsonl", "verdicts.jsonl", "calls.jsonl", "data_doctor.json", "benchmark.json"}
FILES |= {"calls-policy.jsonl", "calls-against.jsonl"}
BEGINNING = {"manifest.json", "data_doctor.json", "template.yaml", "prompts.json"}  # written before the config
FILES |= BEGINNING


class OutputConfig(BaseModel):
    """Where a run is kept."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(None, description="run folder; none: runs/<objective>-<time>")
    overwrite: bool = Field(False, description="replace a run folder that is already there")
    save_every: int | None = Field(
        None, ge=1, description="optimiser steps between two checkpoints; none: by time alone"
    )
    save_minutes: float | None = Field(
        15.0, gt=0, allow_inf_nan=False, description="minutes between two checkpoints; none: by steps alone"
    )
    keep_last: int = Field(2, ge=1, description="newest checkpoints to keep")
    keep_best: str | None = Field(
        None, description="held-out metric, such as loss or preference_accuracy, whose best checkpoint is kept as well"
    )
    trackers: list[str] = Field(default_factory=list, description="also log to these: tensorboard, wandb, mlflow, ...")


class RunFolder:
    """Writes a run's files. Each is whole or absent: written under a temporary name, then renamed."""

    def __init__(self, path: Path, replaced: Path | None = None) -> None:
        """`replaced` is where the run that was there before is kept until `keep` or `discard`."""
        self.path, self.replaced = path, replaced
        self.above: list[Path] = []  # folders that were made for it, the innermost first
        self._unlock: Callable[[], object] | None = None

    @classmethod
    def check(cls, path: Path, overwrite: bool = False) -> None:
        """Refuse a folder that `create` would refuse, as far as that shows without touching anything.

        Raises:
            PreftuneError: if there is something there already that must not be replaced.
        """
        if path.is_dir() and _never_began(path):
            return
        if path.exists() and not overwrite:
            unfinished = (path / "config.yaml").is_file() and not (path / "summary.json").is_file()
            what = "holds a run that did not finish" if unfinished else "exists and is not empty"
            go_on = f"go on with it (preftune train --resume {path}), " if unfinished else ""
            raise PreftuneError(
                f"output.path {path} {what}: {go_on}name another folder, or let it be replaced (output.overwrite=true; "
                "in the demo --overwrite)"
            )
        if path.exists() and not (path / "config.yaml").is_file():
            raise PreftuneError(f"output.path {path} is no run folder, so it is not overwritten: name another folder")
        if path.exists() and (foreign := sorted(one.name for one in path.iterdir() if _is_foreign(one))):
            raise PreftuneError(
                f"output.path {path} would be replaced, but it holds {foreign[0]}, which no run wrote: move it, or "
                "name another folder"
            )
        if path.exists():
            cls(path).lock().unlock()
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise PreftuneError(f"cannot write to output.path {path}: {above} is no folder that may be written to")

    @classmethod
    def create(cls, path: Path, overwrite: bool = False) -> RunFolder:
        """A new, empty run folder.

        Raises:
            PreftuneError: if there is something there already, or the folder cannot be made.
        """
        _put_back(path)
        cls.check(path, overwrite)
        replaced = None
        above = [folder for folder in path.parents if not folder.exists()]
        try:
            if path.exists() and _never_began(path):
                shutil.rmtree(path)
            elif path.exists():
                replaced = path.with_name(f".{path.name}.replaced-{os.getpid()}")
                path.rename(replaced)
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path):
                pass
        except OSError as error:
            raise PreftuneError(f"cannot write to output.path {path}: {error.strerror}") from error
        folder = cls(path, replaced).lock()
        folder.above = above
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """The folder of a run that is to go on.

        Raises:
            PreftuneError: if it is none, or a process still trains in it.
        """
        cls.check_run(path)
        return cls(path).lock()

    @staticmethod
    def check_run(path: Path) -> None:
        """Refuse a folder that holds no run.

        Raises:
            PreftuneError: names it.
        """
        if not (path / "config.yaml").is_file():
            raise PreftuneError(
                f"{path} is no run folder, it has no config.yaml: name the output.path of a run that was stopped"
            )

    def lock(self) -> RunFolder:
        """Keep other processes from training in this folder; until `unlock`, or the end of this object or process.

        Raises:
            PreftuneError: if another one trains in it.
        """
        if fcntl is not None and self._unlock is None:
            handle = os.open(self.path, os.O_RDONLY)
            self._unlock = weakref.finalize(self, os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.unlock()
                raise PreftuneError(
                    f"another process is training in {self.path}: wait until it has ended, or name another folder"
                ) from None
            except OSError:  # a file system that knows no locks
                self.unlock()
        return self

    def unlock(self) -> None:
        """Let other processes in."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def sizes(self) -> dict[str, int]:
        """How long the files are that grow by lines, in bytes."""
        return {name: (self.path / name).stat().st_size if (self.path / name).exists() else 0 for name in LINES}

    def cut(self, sizes: Mapping[str, int], step: int) -> None:
        """Take away the lines that came after `sizes`, checkpoints after `step`, and what is half-written.

        Raises:
            PreftuneError: if a file is shorter than it was.
        """
        for name in LINES:
            path, size = self.path / name, sizes.get(name, 0)
            if (path.stat().st_size if path.exists() else 0) < size:
                raise PreftuneError(
                    f"{path} is shorter than it was at the checkpoint (by then {size} bytes): restore it, or delete "
                    "the checkpoint to go on from an earlier one"
                )
            if path.exists():
                os.truncate(path, size)
        for left in self.path.glob(".*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        (self.path / "failure.json").unlink(missing_ok=True)
        checkpoint.put_away(self.path, step)

    def keep(self) -> None:
        """The run has begun: let go of the one that it replaces."""
        if self.replaced is not None:
            shutil.rmtree(self.replaced)
            self.replaced = None

    def discard(self) -> None:
        """Remove the folder, of a run that never began, and put back what was there before."""
        self.unlock()
        shutil.rmtree(self.path)
        if self.replaced is not None:
            self.replaced.rename(self.path)
        for folder in self.above:
            with suppress(OSError):  # somebody else uses it by now
                folder.rmdir()

    def write_config(self, text: str) -> None:
        """Keep the config as resolved (YAML)."""
        self._write("config.yaml", text)

    def write_manifest(self, **values: Any) -> None:
        """Keep versions, command and what else says how the run came about."""
        manifest = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "folder": str(Path.cwd()),
            "command": this_command(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": self.versions(),
            **values,
        }
        self._write("manifest.json", to_json(manifest, indent=2))

    def write_data_doctor(self, values: Mapping[str, Any]) -> None:
        """Keep what the data doctor found."""
        self._write("data_doctor.json", to_json(values, indent=2))

    def write_texts(self, texts: Mapping[str, str]) -> None:
        """Keep texts that belong to the run, by file name."""
        for name, text in texts.items():
            self._write(name, text)

    def manifest(self) -> dict[str, Any]:
        """What `write_manifest` kept.

        Raises:
            PreftuneError: if it cannot be read.
        """
        try:
            values: dict[str, Any] = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError(f"expected an object, found {type(values).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise PreftuneError(f"{self.path / 'manifest.json'} cannot be read ({error}): restore it") from error
        return values

    @staticmethod
    def versions() -> dict[str, str]:
        """Of preftune, and of what its numbers depend on."""
        return {name: version(name) for name in PACKAGES}

    def go_on(self, config: str, step: int, sizes: Mapping[str, int], changes: Sequence[str]) -> None:
        """Make ready for a run that goes on.

        Args:
            config: as resolved now.
            step: optimiser steps done.
            sizes: how long the files were then that grow by lines.
            changes: keys that have changed, for the manifest.

        Raises:
            PreftuneError: if a file is shorter than it was.
        """
        try:
            self.cut(sizes, step)
        except OSError as error:
            raise PreftuneError(
                f"cannot go on in {self.path} ({error.strerror}): it must be possible to write there"
            ) from error
        again = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "changes": list(changes)}
        again |= {"command": this_command(), "versions": self.versions()}
        values = self.manifest()
        self._write("manifest.json", to_json({**values, "resumed": [*values.get("resumed", []), again]}, indent=2))
        self.write_config(config)

    def write_failure(self, **values: Any) -> None:
        """Keep what is known of the batch that stopped the run."""
        self._write("failure.json", to_json(values, indent=2))

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl, on disk when this returns."""
        self._append("metrics.jsonl", [values])

    def append_samples(self, samples: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to samples.jsonl."""
        self._append("samples.jsonl", samples)

    def append_rollouts(self, rollouts: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to rollouts.jsonl."""
        self._append("rollouts.jsonl", rollouts)

    def write_credit(self, pairs: Iterable[PairCredit]) -> None:
        """Keep the credit per token of pairs."""
        self._write("credit.jsonl", "".join(to_json(pair.as_json()) + "\n" for pair in pairs))

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
        settle(target.parent)
        shutil.rmtree(old, ignore_errors=True)

    @named
    def _append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(to_json(line) + "\n" for line in lines).encode()
        begins = not (self.path / name).exists()
        with (self.path / name).open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while text:
                    text = text[file.write(text) :]
                os.fsync(file.fileno())
            except OSError:  # no half a line stays on a full disk
                file.truncate(before)
                raise
        if begins:
            settle(self.path)

    @named
    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, (text + ("" if text.endswith("\n") else "\n")).encode())


def _put_back(path: Path) -> None:
    """Put back a run that a process was about to replace when it was killed: before the new one began, the old one
    stays. One that has been replaced goes."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.replaced-*") if path.parent.is_dir() else ():
        if _lives(left.name.rpartition("-")[2]):
            continue
        if path.exists() and not _never_began(path):
            shutil.rmtree(left, ignore_errors=True)
            continue
        if path.exists():
            shutil.rmtree(path)
        left.rename(path)


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except OSError:
        return True
    return True


def _never_began(path: Path) -> bool:
    """True for an empty folder, and for one that a process was killed in before its run began."""
    names = {one.name for one in path.iterdir()}
    names = {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))}
    return not names or ("manifest.json" in names and names <= BEGINNING | {"data"})


class Onlooker(RunFolder):
    """The run folder as processes see it that write nothing: the main process does."""

    def keep(self) -> None:  # noqa: D102
        pass

    def discard(self) -> None:  # noqa: D102
        pass

    def lock(self) -> RunFolder:  # noqa: D102
        return self

    def cut(self, sizes: Mapping[str, int], step: int) -> None:  # noqa: D102
        pass

    def replace_folder(self, name: str, source: Path) -> None:  # noqa: D102
        pass

    def _append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        for _ in lines:  # what they are made by may have to run on all processes
            pass

    def _write(self, name: str, text: str) -> None:
        pass


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

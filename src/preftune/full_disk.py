"""A disk that is full, as an error that says what could not be written and what to do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from safetensors import SafetensorError

from preftune.errors import PreftuneError

P = ParamSpec("P")
R = TypeVar("R")


class Folder(Protocol):
    """A run folder, as far as it matters here."""

    @property
    def path(self) -> Path:
        """Where it lies."""


F = TypeVar("F", bound=Folder)
Writer = Callable[Concatenate[F, str, P], R]


def cleanly(write: Writer[F, P, R]) -> Writer[F, P, R]:
    """Makes a failure of `write(folder, name, ...)`, which writes `name` into a run folder, a PreftuneError, and
    removes what it left under its temporary name."""

    @wraps(write)
    def wrapped(folder: F, name: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return write(folder, name, *args, **kwargs)
        except (OSError, SafetensorError) as error:
            remove(folder.path / f".{name.replace('/', '-')}.tmp")
            raise cannot_write(folder.path / name, error) from error

    return wrapped


def cannot_write(path: Path, error: Exception) -> PreftuneError:
    """The error of a file that a system refused to write."""
    return PreftuneError(
        f"cannot write {path} ({_reason(error)}): make room there, or name another folder; what was written before is "
        "as it was"
    )


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there and can be."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """What the system says. Libraries that are written in other languages give its number inside a text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number:
        return os.strerror(int(number[1]))
    return getattr(error, "strerror", None) or str(error)

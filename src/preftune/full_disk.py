"""A disk that is full: seen before training where it can be, else an error that says what could not be written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from safetensors import SafetensorError
from torch import nn

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


def check_room(folder: Path, lm: nn.Module, copies: int) -> None:
    """Refuse a run whose models will not fit on the disk: before it trains, not after.

    Args:
        folder: of the run.
        lm: the model; of one with adapters, they alone are saved.
        copies: models that the disk must hold at once.

    Raises:
        PreftuneError: says how much room there is, and how much is needed.
    """
    adapted = hasattr(lm, "peft_config")
    needed = copies * sum(each.nbytes for each in lm.parameters() if each.requires_grad or not adapted)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PreftuneError(
            f"{folder} has room for {free / 1e6:,.1f} MB, but saving the model takes {needed / 1e6:,.1f} MB "
            f"({copies} at once): make room, name a folder on another disk, or set output.keep lower"
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

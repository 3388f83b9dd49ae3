"""A disk that is full: seen before training where it can be, else an error that says what could not be written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from torch import nn

    from preftune.training.run_folder import OutputConfig

P = ParamSpec("P")
R = TypeVar("R")


class Folder(Protocol):
    """A run folder, as far as it matters here."""

    @property
    def path(self) -> Path:
        """Where it lies."""


F = TypeVar("F", bound=Folder)
Writer = Callable[Concatenate[F, str, P], R]


def named(write: Writer[F, P, R]) -> Writer[F, P, R]:
    """Makes a failure of `write(folder, name, ...)`, which writes `name` into a run folder, a PreftuneError."""

    @wraps(write)
    def wrapped(folder: F, name: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return write(folder, name, *args, **kwargs)
        except OSError as error:
            raise PreftuneError(
                f"cannot write {folder.path / name} ({error.strerror or error}): make room there, or name another "
                "folder; what was written before is as it was"
            ) from error

    return wrapped


def check_room(folder: Path, lm: nn.Module, output: OutputConfig) -> None:
    """Refuse a run whose models will not fit on the disk: before it trains, not after.

    Args:
        folder: of the run.
        lm: the model; of one with adapters, they alone are saved.
        output: says how many checkpoints are kept; each holds the model, the weights that train, and their two moments.

    Raises:
        PreftuneError: says how much room there is, and how much is needed.
    """
    adapted = hasattr(lm, "peft_config")
    model = sum(each.nbytes for each in lm.parameters() if each.requires_grad or not adapted)
    state = 3 * sum(each.nbytes for each in lm.parameters() if each.requires_grad)
    regular = output.save_every is not None  # those by time alone may never fall due
    kept = (output.keep_last + 1 if regular else 0) + (output.keep_best is not None)  # and one that is being written
    needed, free = model + kept * (model + state), shutil.disk_usage(folder).free
    if free < needed:
        checkpoints = f" and {kept} checkpoints" if kept else ""
        raise PreftuneError(
            f"{folder} has room for {free / 1e6:,.1f} MB, but the model{checkpoints} will take {needed / 1e6:,.1f} MB: "
            "make room, or name a folder on another disk" + (", or keep fewer (output.keep_last)" if regular else "")
        )

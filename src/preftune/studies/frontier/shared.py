"""Things that several cells need, made by whichever process needs them first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """A file or folder that is there in the end, whole, whoever made it.

    Args:
        path: where it is to lie.
        make: writes it to the path that it is given; where processes cannot lock files it may be called by several, and
            the first result is kept.

    Returns:
        The path.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return path
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            make(temporary)
            temporary.replace(path)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, or its process killed
        yield

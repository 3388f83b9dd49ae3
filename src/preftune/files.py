"""Files that are whole or not there, after a kill and after a power cut."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def write_whole(path: Path, payload: bytes) -> None:
    """Write a file under a temporary name of its own, then rename it: readers see all of it or nothing.

    Raises:
        OSError: if it cannot be written; nothing is left of it then.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)  # as any other file: others may share the folder
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    settle(path.parent)


def settle(path: Path) -> None:
    """Have the disk keep a file's bytes, or the names in a folder.

    Raises:
        OSError: if it does not.
    """
    if path.is_dir() and os.name == "nt":
        return  # where folders cannot be opened, renaming is as durable as it gets
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def settle_all(folder: Path) -> None:
    """Have the disk keep everything in a folder, before it is renamed.

    Raises:
        OSError: if it does not.
    """
    for path in (*folder.rglob("*"), folder):
        settle(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

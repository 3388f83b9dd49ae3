"""Entries of the cache: folders that are whole or not there, found again by what they were made from.

An entry is made under a temporary name and renamed, so a process that is killed leaves nothing half made, and of two
that make the same one the first wins. What is read back is held against its checksum: damaged entries are made anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preftune.cache import VARIABLE, cache_folder
from preftune.errors import PreftuneError

ABOUT = "about.json"
TEMPORARY = "making-"
ABANDONED = 2 * 24 * 3600.0  # seconds after which what a killed process left is swept away
BLOCK = 2**20  # bytes read at once
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

About = dict[str, Any]


class Entry:
    """A folder with what was made.

    Attributes:
        folder: its files are complete and as they were written.
        about: what its maker said of it.
        notes: what a user should know of how it came about.
    """

    def __init__(self, folder: Path, about: About, notes: list[str], kept: bool) -> None:
        self.folder, self.about, self.notes = folder, about, notes
        if not kept:  # it goes with this object, or with the process
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)


def fetch(kind: str, key: str | None, make: Callable[[Path], About], keep: Callable[[], bool] = lambda: True) -> Entry:
    """The entry of this key, made if it is not there.

    Args:
        kind: entries of one kind lie in one folder.
        key: of all that decides the content; None if it cannot be told, so that the entry serves this process alone.
        make: fills an empty folder, and says what is worth knowing besides (as JSON).
        keep: False if after making it is clear that the key is wrong.

    Raises:
        PreftuneError: if the disk is full.
    """
    notes: list[str] = []
    target = None
    try:
        root = cache_folder("data") / kind
        root.mkdir(parents=True, exist_ok=True)
        target = None if key is None else root / key
        if target is not None and target.exists():
            about = _read(target)
            if about is not None:
                return Entry(target, about, notes, kept=True)
            notes.append(f"the cache entry {target} was damaged: it is made anew")
            shutil.rmtree(target, ignore_errors=True)
        _sweep(root)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=root))
    except (OSError, RuntimeError) as error:  # no right to write, or no home folder
        reason = getattr(error, "strerror", None) or error
        notes.append(f"the cache folder cannot be written to ({reason}), so data is tokenised for this run alone")
        folder, target = Path(tempfile.mkdtemp(prefix=f"preftune-{TEMPORARY}")), None
    try:
        about = make(folder)
        if target is not None and keep():
            _write_about(folder, about)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (*FULL, None):  # numpy gives no number
            reason = os.strerror(error.errno or errno.ENOSPC)
            raise PreftuneError(
                f"cannot write to {folder.parent} ({reason}): make room there, or name another folder in the "
                f"environment variable {VARIABLE}"
            ) from None
        raise
    if (folder / ABOUT).exists() and target is not None:
        try:
            return Entry(folder.rename(target), about, notes, kept=True)
        except OSError:  # another process has made the same meanwhile: what was made here serves this one
            pass
    return Entry(folder, about, notes, kept=False)


def key_of(*parts: Any) -> str:
    """A name for all that decides an entry's content, the code that makes it included."""
    return hashlib.sha256(json.dumps([_code(), *parts], sort_keys=True).encode()).hexdigest()[:40]


@cache
def _code() -> str:
    """Hash of the code of this room, and of the libraries that it renders with: other code may read data otherwise."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    for package in ("preftune", "transformers", "tokenizers", "jinja2"):
        digest.update(f"{package} {version(package)}\n".encode())
    return digest.hexdigest()


def _write_about(folder: Path, about: About) -> None:
    files = {file.name: _checksum(file) for file in sorted(folder.iterdir())}
    text = json.dumps({"about": about, "files": files})
    (folder / ABOUT).write_text(json.dumps({"crc": zlib.crc32(text.encode()), "text": text}), encoding="utf-8")


def _read(folder: Path) -> About | None:
    """What was said of an entry, or None if it is not as it was written."""
    try:
        outer = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        text = outer["text"]
        if zlib.crc32(text.encode()) != outer["crc"]:
            return None
        inner = json.loads(text)
        if any(_checksum(folder / name) != expected for name, expected in inner["files"].items()):
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    about: About = inner["about"]
    return about


def _checksum(file: Path) -> list[int]:
    """Size and CRC-32. Read in blocks: pages of a memory map would count as this process's memory."""
    size, crc = 0, 0
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _sweep(root: Path) -> None:
    """Remove what killed processes left. Who still reads it has its files open, which keeps their content."""
    for left in root.glob(f"{TEMPORARY}*"):
        if time.time() - left.stat().st_mtime > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)

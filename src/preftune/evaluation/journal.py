"""Lines of JSON that are on disk for good once they are written, and are there again after any kill."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preftune.errors import PreftuneError
from preftune.files import settle

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Journal:
    """A file that grows by lines. Threads may share it, processes may not.

    What a kill left of a last line is taken away when the file is opened again.

    Args:
        path: the file; its folder is made if it is not there.

    Attributes:
        lines: what the file held when it was opened.

    Raises:
        PreftuneError: if it cannot be read or written, holds something else, or another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise PreftuneError(f"cannot write {path} ({error.strerror}): name another folder") from None
        try:
            self._lock_out_others()
            self.lines = self._read()
            settle(path.parent)
        except BaseException:
            self.close()
            raise

    def add(self, *lines: Mapping[str, Any]) -> None:
        """Write lines; they are on disk when this returns.

        Raises:
            PreftuneError: if the disk does not take them; the file is as it was then.
        """
        payload = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(errors="replace")
        with self._lock:
            before = os.fstat(self._handle).st_size
            try:
                while payload:
                    payload = payload[os.write(self._handle, payload) :]
                os.fsync(self._handle)
            except OSError as error:
                os.truncate(self._handle, before)
                raise PreftuneError(
                    f"cannot write {self.path} ({error.strerror}): make room there; the same command goes on"
                ) from None

    def close(self) -> None:
        """Let other processes write."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _lock_out_others(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreftuneError(
                f"another process writes to {self.path}: wait until it has ended, or name another folder"
            ) from None
        except OSError:  # a file system that knows no locks
            return

    def _read(self) -> list[dict[str, Any]]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._handle, whole)
        return list(self._parsed(content[:whole].splitlines()))

    def _parsed(self, lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise PreftuneError(
                    f"{self.path} line {number} is no JSON object, so it cannot be gone on from: delete the line, or "
                    "name another folder"
                )
            yield value

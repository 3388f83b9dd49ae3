"""One bad input, and how it is met: in this process, in a folder of its own."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import resource
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from preftune.cache import cache_folder

Make = Callable[[Path], Any]
Row = dict[str, Any]

PLACE = 3  # row at which a file of good rows holds a bad one


@dataclass(frozen=True)
class BadInput:
    """What a user may hand over by mistake.

    Attributes:
        name: what it is, in a few words.
        make: puts it into an empty folder.
        command: what the user types there.
        says: parts of what is said about it.
        trl: what TRL 1.16.0 does with the same, where that was measured.
        code: the exit code; 0 for what looks bad and works.
        leaves: names that may be in the folder afterwards besides what was there: of a run that had begun.
        largest: bytes that a file may have, which is how a full disk is met here; None: any number.
    """

    name: str
    make: Make
    command: str
    says: tuple[str, ...]
    trl: str = ""
    code: int = 2
    leaves: tuple[str, ...] = ()
    largest: int | None = None


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines but the notes, and what the training doctor says."""
        return [line for line in self.err.splitlines() if not line.startswith(("note: ", "doctor: "))]

    @property
    def shown(self) -> str:
        """What the table shows; figures and hashes that differ between machines are left out."""
        said = " / ".join(self.err.splitlines()).replace(str(cache_folder("")), "~/.cache/preftune")
        return re.sub(r"-?\d+\.\d{2,}|[0-9a-f]{32}", "...", said).removeprefix("error: ")


def carry_out(case: BadInput, folder: Path) -> Said:
    """Make the input in an empty folder, and run the command there."""
    case.make(folder)
    return run(case.command, folder, case.largest)


def run(command: str, folder: Path, largest: int | None = None) -> Said:
    """Run a `preftune` command in a folder, as the installed program does. A traceback comes out as an exception."""
    from preftune import cli

    words, code = shlex.split(command), 0
    out, err, argv, path = io.StringIO(), io.StringIO(), sys.argv, [*sys.path]
    try:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _files_no_larger_than(largest),
        ):
            sys.argv = words
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
    finally:
        sys.argv, sys.path[:] = argv, path  # a user's own modules are looked for in the current folder
    return Said(code, out.getvalue(), err.getvalue().replace(f"{folder.resolve()}/", ""))


@contextlib.contextmanager
def _files_no_larger_than(size: int | None) -> Iterator[None]:
    """Writing beyond this many bytes fails, as on a full disk. (Python ignores the signal that comes with it.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def snapshot(folder: Path) -> dict[str, str]:
    """Everything in a folder, and what each file holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "a folder" if path.is_dir() else "special"
    return found


# --- making things ----------------------------------------------------------------------------------------------------


@cache
def good_rows(count: int = 16) -> tuple[Row, ...]:
    """Pairs of the built-in world."""
    from preftune.sandbox.preferences import rows

    return tuple(rows(count))


def lines(rows: list[Row] | tuple[Row, ...]) -> bytes:
    """Rows as a jsonl file's bytes."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def nothing(folder: Path) -> None:
    """Nothing is needed."""


def file(name: str, content: bytes | str) -> Make:
    """A file of this content."""
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def pairs(folder: Path) -> None:
    """Good data."""
    (folder / "d.jsonl").write_bytes(lines(good_rows()))


def row(change: Mapping[str, Any], *without: str) -> Make:
    """Good data but for one row, which these fields are changed in, or missing from."""

    def make(folder: Path) -> None:
        rows = list(good_rows())
        rows[PLACE] = {key: value for key, value in {**rows[PLACE], **change}.items() if key not in without}
        (folder / "d.jsonl").write_bytes(lines(rows))

    return make


def both(*makes: Make) -> Make:
    """One after the other."""

    def make(folder: Path) -> None:
        for each in makes:
            each(folder)

    return make

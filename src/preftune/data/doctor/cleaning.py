"""The rows that are good, as they were read, in one file; the others with their reasons in another. Both or neither."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from preftune.data.doctor.findings import DoctorConfig, Finding, Places
from preftune.data.lines import Reading, all_rows
from preftune.data.records import Drops, Row, Where, records, without_identical
from preftune.errors import PreftuneError
from preftune.files import settle

SUFFIX = ".jsonl"


def check_target(path: Path) -> Path:
    """The file of what is left out, beside the one to write; to call before anything is read.

    Raises:
        PreftuneError: if the name does not end in .jsonl, or one of the two is there already.
    """
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise PreftuneError(f"--write {path}: rows are written as jsonl, so the name must end in {SUFFIX}")
    dropped = path.with_name(path.name.removesuffix(SUFFIX) + ".dropped" + SUFFIX)
    for file in (path, dropped):
        if file.exists():
            raise PreftuneError(f"--write would replace {file}: name another file, or move that one")
    if not path.parent.is_dir():
        raise PreftuneError(f"--write {path}: there is no folder {path.parent}")
    return dropped


def clean_rows(
    path: Path,
    source: str,
    reading: Reading,
    places: Places,
    count: int,
    findings: Sequence[Finding],
    doctor: DoctorConfig,
) -> tuple[int, int]:
    """Read the source again and write what is good, and what is left out and why.

    Args:
        path: file to write; what is left out goes to NAME.dropped.jsonl beside it.
        source: the data.
        reading: how it was read.
        places: of its records.
        count: of its records.
        findings: errors, and those whose policy is "drop" decide what is left out.
        doctor: the policies.

    Returns:
        Rows written, and rows left out.

    Raises:
        PreftuneError: if a file cannot be written, or the source has changed meanwhile.
    """
    targets = (path, check_target(path))
    deciding = [one for one in findings if one.level == "error" or getattr(doctor, one.name, None) == "drop"]
    partial = [target.with_name(f".{target.name}.{os.getpid()}.partial") for target in targets]
    try:
        with partial[0].open("wb") as kept, partial[1].open("wb") as dropped:
            numbers = _write(kept, dropped, source, reading, count, _Reasons(deciding, places))
            for file in (kept, dropped):
                file.flush()
                os.fsync(file.fileno())
        for one, target in zip(reversed(partial), reversed(targets), strict=True):
            one.rename(target)
        settle(path.parent)
    except OSError as error:
        raise PreftuneError(f"cannot write {path} ({error.strerror}): name a file in another folder") from None
    finally:
        for one in partial:
            with suppress(OSError):
                one.unlink(missing_ok=True)
    return numbers


class _Reasons:
    """Why a record is left out."""

    def __init__(self, findings: Iterable[Finding], places: Places) -> None:
        self._places = places
        self._findings = [finding for finding in findings if len(finding.drop)]

    def of(self, number: int) -> str | None:
        """The first reason, None for a record that stays."""
        for finding in self._findings:
            place = int(np.searchsorted(finding.drop, number))
            if place < len(finding.drop) and finding.drop[place] == number:
                return finding.reason + self._other(finding, place)
        return None

    def _other(self, finding: Finding, place: int) -> str:
        if finding.outside:
            return f" {finding.outside[place]}"
        other = int(finding.against[place]) if len(finding.against) else -1
        return f" {self._places[other]}" if other >= 0 else ""


class _Rejected(Drops):
    """Rows that are no records, handed on as they come."""

    def __init__(self, tell: Callable[[Where, str], None]) -> None:
        super().__init__("drop")
        self._tell = tell

    def add(self, where: Where, reason: str) -> None:
        self.counts["left out"] += 1
        self._tell(where, reason)


def _write(
    kept: IO[bytes], dropped: IO[bytes], source: str, reading: Reading, count: int, reasons: _Reasons
) -> tuple[int, int]:
    numbers = [0, 0]
    current: dict[Where, Mapping[str, Any]] = {}

    def reject(where: Where, reason: str) -> None:
        numbers[1] += 1
        row = current.get(where)
        about = {"file": where.source, "row": where.row, "reason": reason}
        dropped.write(_line(about if row is None else {**about, "content": row}))

    def remembered(rows: Iterable[Row]) -> Iterator[Row]:
        for where, row in rows:
            current.clear()
            current[where] = row
            yield where, row

    drops = _Rejected(reject)
    rows = remembered(all_rows(source, reading, drops))
    found = islice(records(rows, reading.layout, drops), reading.limit)
    number = -1
    for number, record in enumerate(without_identical(found, drops)):
        reason = reasons.of(number)
        if reason is not None:
            reject(record.where, reason)
        else:
            numbers[0] += 1
            kept.write(_line(current[record.where]))
    if number + 1 != count:
        raise PreftuneError(f"{source} has changed while it was checked: run preftune validate again")
    return numbers[0], numbers[1]


def _line(row: Mapping[str, Any]) -> bytes:
    """One row of JSON; what JSON does not know (dates, bytes) as text, half a surrogate pair escaped."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, default=str).encode() + b"\n"

"""Records of one source, read once and kept on disk a line each, so that their number costs no memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, compress, islice
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preftune.data import sources
from preftune.data.entries import About, Entry, fetch, key_of
from preftune.data.fields import shown
from preftune.data.records import (
    WEIGHT,
    Drops,
    Record,
    Row,
    Where,
    from_line,
    is_weight,
    records,
    to_line,
    without_identical,
)
from preftune.errors import PreftuneError
from preftune.files import hash_file

Mask = NDArray[np.bool_]
FILE = "records.txt"  # of lines "<number of the source> <row> <record as JSON>"


@dataclass(frozen=True)
class Reading:
    """What decides which records come out of a source, besides the source."""

    layout: str | None = None
    split: str | None = None
    limit: int | None = None
    bad_rows: Literal["error", "drop"] = "error"


class Lines:
    """The records of a source but those that hold no preference.

    Args:
        source: what `sources.rows` takes, or records.
        reading: how to read it.
        drops: where to count what is left out, unreadable rows and pairs without a preference, for who wants to know
            more of them; the lines are then read anew, and not kept in the cache.

    Attributes:
        key: of what the files hold that the source is read from, their names and `reading`; None if it is not files.
    """

    def __init__(self, source: str | Iterable[Any], reading: Reading, drops: tuple[Drops, Drops] | None = None) -> None:
        self.source, self.reading, self._drops = source, reading, drops
        self._stamps = _stamps(source, reading.split)
        self.key: str | None = None
        with suppress(OSError):  # reading the files says what is wrong
            if self._stamps is not None and drops is None:
                hashes = [(str(path), hash_file(path)) for path, *_ in self._stamps]
                self.key = key_of("records", source, hashes, vars(reading))

    @cached_property
    def entry(self) -> Entry:
        """The lines on disk. The source is read when they are first needed, if the cache does not have them."""
        return fetch("records", self.key, self._make, self.unchanged)

    def unchanged(self) -> bool:
        """True if the source's files are still those that `key` stands for, as far as size and time tell."""
        return self._stamps == _stamps(self.source, self.reading.split)

    @property
    def notes(self) -> list[str]:
        """What to say of how the lines came about, if they were needed."""
        return self.entry.notes if "entry" in vars(self) else []

    @property
    def count(self) -> int:
        """Number of records."""
        return int(self.entry.about["count"])

    @property
    def digest(self) -> str:
        """SHA-256 of the records and their places."""
        return str(self.entry.about["digest"])

    def drops(self, name: Literal["unreadable", "identical"]) -> Drops:
        """What was left out while reading, and why."""
        counts, places = self.entry.about[name]
        return Drops("drop", Counter(counts), {reason: [Where(*w) for w in found] for reason, found in places.items()})

    def raw(self, mask: Mask | None = None) -> Generator[bytes, None, None]:
        """The lines, or those of them where the mask is true."""
        with (self.entry.folder / FILE).open("rb") as file:
            yield from file if mask is None else compress(file, mask)

    def records(self, mask: Mask | None = None) -> Iterator[Record]:
        """The same as records."""
        names = self.sources
        return (read_line(line, names) for line in self.raw(mask))

    @property
    def sources(self) -> list[str]:
        """Names of the places that the records came from, as lines count them."""
        return list(self.entry.about["sources"])

    def _make(self, folder: Path) -> About:
        reading = self.reading
        unreadable, identical = self._drops or (Drops(reading.bad_rows), Drops("drop"))
        found, source = _as_records(self.source)
        if found is None:
            rows = all_rows(source, reading, unreadable) if self._drops else sources.rows(source, split=reading.split)
            found = records(rows, reading.layout, unreadable)
        names: dict[str, int] = {}
        digest, count = hashlib.sha256(), 0
        with (folder / FILE).open("wb") as file:
            for record in without_identical(islice(found, reading.limit), identical):
                if not (isinstance(record.weight, Real) and is_weight(record.weight)):
                    # rows cannot have such weights, but records can
                    raise PreftuneError(f"{record.where}: weight is {shown(record.weight)}, expected {WEIGHT}")
                number = names.setdefault(record.where.source, len(names))
                line = b"%d %d %b" % (number, record.where.row, to_line(record))
                file.write(line)
                digest.update(line)
                count += 1
        return {
            "count": count,
            "digest": hashlib.sha256(digest.digest() + repr([*names]).encode()).hexdigest(),
            "sources": [*names],
            "unreadable": _plain(unreadable),
            "identical": _plain(identical),
        }


def all_rows(source: str | Iterable[Any], reading: Reading, drops: Drops) -> Iterator[Row]:
    """The rows of a source, all that can be had: broken ones are counted, and so is the place from which on nothing can
    be read (in a cut archive, say).

    Raises:
        PreftuneError: if that is before the first row.
    """
    last = None
    try:
        for row in sources.rows(source, split=reading.split, broken=drops.add):
            last = row[0]
            yield row
    except PreftuneError as error:
        if last is None:
            raise
        drops.add(Where(last.source, last.row + 1), f"{error}; it was not read any further")


def read_line(line: bytes, names: Sequence[str]) -> Record:
    """The record of a line; `names` are those of the sources."""
    number, row, rest = line.split(b" ", 2)
    return from_line(rest, Where(names[int(number)], int(row)))


def content(line: bytes) -> bytes:
    """What of a line `records.to_line` has written."""
    return line.split(b" ", 2)[2]


def _plain(drops: Drops) -> list[Any]:
    places = {reason: [[where.source, where.row] for where in found] for reason, found in drops.places.items()}
    return [drops.counts, places]


def _stamps(source: str | Iterable[Any], split: str | None) -> list[tuple[Path, int, int]] | None:
    """The files of a source with their sizes and times; None if it has none, or if they cannot be looked at."""
    if not isinstance(source, str):
        return None
    try:
        paths = sources.files(source, split)
        return None if paths is None else [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    except (OSError, RuntimeError, PreftuneError):  # reading it says what is wrong
        return None


def _as_records(source: str | Iterable[Any]) -> tuple[Iterator[Record] | None, str | Iterable[Any]]:
    """The source as records, if that is what it holds already; and the source, none of it lost."""
    if isinstance(source, str) or not isinstance(source, Sequence | Iterator):
        return None, source
    whole = iter(source)
    first = list(islice(whole, 1))
    if first and isinstance(first[0], Record):
        return chain(first, whole), source
    return None, chain(first, whole) if isinstance(source, Iterator) else source

"""What the doctor finds, and what becomes of it: the words that its checks, its config and its report share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from preftune.data.records import Drops, Where

Numbers = NDArray[np.int64]
Level = Literal["error", "warning"]
Policy = Literal["error", "drop", "warn", "ignore"]
WholePolicy = Literal["error", "warn", "ignore"]  # what concerns all rows together: there is none to drop
LISTED = 1000  # places that a finding keeps for the report, of each kind
NAMED = 3  # of which a sentence names so many


class DoctorConfig(BaseModel):
    """What becomes of a finding at the start of training: stop, leave its rows out, say it, or do not look for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identical: Literal["error", "drop"] = Field(
        "drop", description="chosen equals rejected, or all responses of a ranking have one score: error, drop"
    )
    tokens: Literal["error", "drop"] = Field(
        "drop",
        description="too long, empty or identical as tokens, or control tokens in the text: error, drop",
    )
    duplicates: Policy = Field(
        "warn", description="rows that repeat another; drop keeps the first: error, drop, warn, ignore"
    )
    near_duplicates: Policy = Field(
        "ignore",
        description="rows nearly the same as another (MinHash); drop keeps the first: error, drop, warn, ignore",
    )
    contradictions: Policy = Field(
        "warn", description="A over B and B over A for one prompt; drop keeps the majority: error, drop, warn, ignore"
    )
    cycles: Policy = Field(
        "warn", description="A over B, B over C, C over A; drop leaves out all of them: error, drop, warn, ignore"
    )
    contamination: Policy = Field(
        "ignore", description="rows that hold most of a held-out prompt, by word 8-grams: error, drop, warn, ignore"
    )
    confidence: Policy = Field("warn", description="confidence below one half: error, drop, warn, ignore")
    templated: Policy = Field("warn", description="text that a chat template has written: error, drop, warn, ignore")
    length_bias: WholePolicy = Field(
        "warn", description="length alone tells chosen from rejected in more than 60%: error, warn, ignore"
    )
    markers: WholePolicy = Field("ignore", description="words that tell chosen from rejected: error, warn, ignore")
    formats: WholePolicy = Field(
        "ignore", description="code, lists, headings and the like on one side: error, warn, ignore"
    )
    language: WholePolicy = Field("ignore", description="a script of writing on one side: error, warn, ignore")

    def passed(self) -> DoctorConfig:
        """For data that has gone through these checks, and is to stay as it is."""
        names = (name for name, _ in self if name not in ("identical", "tokens"))
        return self.model_copy(update=dict.fromkeys(names, "ignore"))


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the data.

    Attributes:
        name: key of `DoctorConfig`, or what an error is about.
        level: "error" for what cannot be trained on, "warning" for the rest.
        text: what it is, in one sentence without its rows.
        count: rows that it concerns; 0 if it concerns all of them together.
        places: of the first rows, each with the one that it is held against, if there is one, and the reason.
        drop: numbers of the records to leave out.
        against: the record that each of them is held against; empty if there are none, or if they are not of this data.
        outside: the same for records that are not of this data; empty if there are none.
        reason: why they are left out; the record held against follows it, if there is one.
        signs: what stands on one side, instead of rows: each with its name and its count on the better and worse side.
        details: figures, for --json.
    """

    name: str
    level: Level
    text: str
    count: int = 0
    places: Sequence[tuple[Where, Where | None, str]] = ()
    drop: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    against: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    reason: str = ""
    outside: Sequence[Where] = ()
    signs: Sequence[Mapping[str, Any]] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def sentence(self) -> str:
        """The text with its first rows."""
        named = self.shown(NAMED)
        more = ", ..." if max(self.count, len(self.signs)) > len(named) else ""
        return self.text + (f" ({', '.join(named)}{more})" if named else "")

    def shown(self, most: int, known: str | None = None) -> list[str]:
        """The first rows, or signs, in words; the source that is `known` is not named."""
        if self.signs:
            return [f"{one['sign']} {one['better']:,}:{one['worse']:,}" for one in self.signs[:most]]
        return [told(*place, self.reason, known) for place in self.places[:most]]


def told(where: Where, other: Where | None, why: str, reason: str, known: str | None = None) -> str:
    """One row of a finding in words: why it stands there, or what relates it to the other row.

    Args:
        where: the row.
        other: the row that it is held against.
        why: of this row alone.
        reason: of all rows of the finding.
        known: a source that need not be named.
    """
    place = f"row {where.row}" if where.source == known else str(where)
    if other is None:
        return f"{place}: {why}" if why else place
    near = other.source in (where.source, known)
    return f"{place} {reason} {f'row {other.row}' if near else other}" + (f" ({why})" if why else "")


class Places:
    """Where each record of a source came from, in 12 bytes a record."""

    def __init__(self, sources: Sequence[str], source: NDArray[np.int32], row: NDArray[np.int64]) -> None:
        self._sources, self._source, self._row = sources, source, row

    def __getitem__(self, number: int) -> Where:
        return Where(self._sources[self._source[number]], int(self._row[number]))

    def listed(self, records: Iterable[int], against: Iterable[int]) -> list[tuple[Where, Where | None, str]]:
        """The places of records and of those that they are held against (-1: none)."""
        pairs = zip(records, against, strict=True)
        return [(self[one], self[other] if other >= 0 else None, "") for one, other in pairs]


class Listing(Drops):
    """Drops that keep the places of more rows, each with its reason, and what is wrong with all of them."""

    def __init__(self, name: str, do: str, does: str) -> None:
        super().__init__("drop")
        self.name, self.do, self.does = name, do, does
        self.listed: list[tuple[Where, Where | None, str]] = []

    def add(self, where: Where, reason: str) -> None:
        """Count a row, and list it if it is one of the first."""
        self.counts[self.name] += 1  # not by reason: a million bad rows may have a million of those
        if len(self.listed) < LISTED:
            self.listed.append((where, None, reason))

    def finding(self) -> Finding | None:
        """An error, if there were any."""
        if not self.total:
            return None
        return Finding(self.name, "error", rows(self.total, self.do, self.does), self.total, self.listed)

    def summary(self) -> str:
        """As `Drops` has it."""
        first = "; ".join(f"{where}: {reason}" for where, _, reason in self.listed[:NAMED])
        return f"{self.total} left out ({first})"


def rows(count: int, do: str = "", does: str = "") -> str:
    """So many rows, and what they do: in the plural, and in the singular if that is not the same with an s.

    Example:
        >>> rows(1, "repeat an earlier one", "repeats an earlier one"), rows(2000)
        ('1 row repeats an earlier one', '2,000 rows')
    """
    return f"{f'{count:,} rows' if count != 1 else '1 row'} {does if count == 1 and does else do}".rstrip()

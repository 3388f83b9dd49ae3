"""Rows of any known layout -> one normal form: Preference, Judged, Ranking, Demonstration or PromptOnly."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from preftune.data.layouts import Layout


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: role is "system", "user", "assistant" or "tool"."""

    role: str
    content: str


# Plain text, or turns of a conversation. A response in turns ends with an assistant turn.
Text = str | tuple[Message, ...]


# In files that runs write, the column of the number that a row had where it came from: draws follow from it.
ROW = "_row"


@dataclass(frozen=True, slots=True)
class Where:
    """Where a record came from, for messages: "pairs.jsonl row 12". Rows count from 0, as in Python."""

    source: str
    row: int

    def __str__(self) -> str:
        return f"{self.source} row {self.row}"


@dataclass(frozen=True, slots=True)
class Preference:
    """A pair: two responses to one prompt, of which `chosen` is the better.

    Attributes:
        confidence: probability in [0, 1] that chosen is better; None if the data does not say.
        gap: rated difference, score of chosen minus score of rejected; None if the data does not say.
        weight: weight of the pair in the loss, >= 0.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    where: Where
    weight: float = 1.0
    confidence: float | None = None
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """An unpaired response with a verdict: good (True) or bad (False).

    Attributes:
        confidence: probability in [0, 1] that the verdict holds; None if the data does not say.
    """

    prompt: Text
    response: Text
    good: bool
    where: Where
    weight: float = 1.0
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Several responses to one prompt, each with a score.

    Attributes:
        responses: two or more.
        scores: one for each response, finite; higher is better, and equal means that neither is the better.
        weight: weight of the ranking in the loss, >= 0.
    """

    prompt: Text
    responses: tuple[Text, ...]
    scores: tuple[float, ...]
    where: Where
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A good example: a prompt and the answer to imitate."""

    prompt: Text
    response: Text
    where: Where
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PromptOnly:
    """A prompt to which answers are yet to be written.

    Attributes:
        answer: the right answer, for a judge that checks answers; it is never learned from.
    """

    prompt: Text
    where: Where
    weight: float = 1.0
    answer: str | None = None


Record = Preference | Judged | Ranking | Demonstration | PromptOnly
Row = tuple[Where, Mapping[str, Any]]
DropPolicy = Literal["error", "drop"]
WEIGHT = "0 or a number from 1e-30 to 1e+30"
LONGEST = 120  # characters of a reason in a summary of several
SHOWN = 3  # reasons, and places of each, that a summary names


def is_weight(value: float) -> bool:
    """True for a weight that float32 holds, in which losses are weighed: it, its sums and its products with losses
    neither vanish nor become infinite."""
    return value == 0 or 1e-30 <= value <= 1e30


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that was left out, and why."""

    where: Where
    reason: str


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST else f"{reason[: LONGEST - 3]}..."


@dataclass
class Drops:
    """What becomes of records that cannot be used: with "error" the first one stops the run, with "drop" they are
    counted by reason, and the first places of each are kept to be shown.

    A reason that does not vary from row to row ("the prompt is longer than 512 tokens") is counted as one.

    Example:
        >>> drops = Drops("drop")
        >>> drops.add(Where("pairs.jsonl", 3), "chosen and rejected are identical")
        >>> drops.add(Where("pairs.jsonl", 7), "chosen and rejected are identical")
        >>> drops.summary()
        '2 left out: 2 because chosen and rejected are identical (pairs.jsonl row 3, pairs.jsonl row 7)'
    """

    policy: DropPolicy = "error"
    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[Where]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many were left out."""
        return self.counts.total()

    def add(self, where: Where, reason: str) -> None:
        """Leave the record at `where` out, for this reason.

        Raises:
            PreftuneError: if the policy is "error".
        """
        if self.policy == "error":
            raise PreftuneError(f"{where}: {reason}")
        self.counts[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < SHOWN:
            places.append(where)

    def joined(self, other: Drops) -> Drops:
        """These, and the others after them."""
        places = {reason: [*found] for reason, found in self.places.items()}
        for reason, found in other.places.items():
            places[reason] = [*places.get(reason, []), *found][:SHOWN]
        return Drops(self.policy, self.counts + other.counts, places)

    def summary(self) -> str:
        """One line: how many, each reason with its count, most frequent first, and the first places."""
        reasons = self.counts.most_common()
        parts = [f"{count} because {_short(reason)} ({self._places(reason)})" for reason, count in reasons[:SHOWN]]
        if len(reasons) > SHOWN:
            parts.append(f"and {sum(count for _, count in reasons[SHOWN:])} for other reasons")
        return f"{self.total} left out" + (f": {', '.join(parts)}" if parts else "")

    def _places(self, reason: str) -> str:
        places = self.places[reason]
        return ", ".join(map(str, places)) + (", ..." if self.counts[reason] > len(places) else "")


def records(rows: Iterable[Row], layout: str | None = None, drops: Drops | None = None) -> Iterator[Record]:
    """Read rows, as `sources.rows` gives them, into the normal form.

    Args:
        rows: each with the place it came from.
        layout: name of a layout in `layouts.LAYOUTS`; if None it is recognised from the first row of each source (each
            file of a folder).
        drops: what becomes of rows that cannot be read; the first one is an error if not given. Pairs whose chosen
            equals rejected are not bad rows: see `without_identical`.

    Raises:
        PreftuneError: at once for an unknown layout name; while iterating for a row that fits no layout or has a bad
            field (names source, row and field, what was found, what was expected), and if no record is left.
    """
    # Imported here, because layouts build on the classes of this file.
    from preftune.data import layouts

    given = None if layout is None else layouts.by_name(layout)
    return _read(rows, given, Drops("error") if drops is None else drops)


def _read(rows: Iterable[Row], given: Layout | None, drops: Drops) -> Iterator[Record]:
    from preftune.data import layouts
    from preftune.data.fields import Unfit

    source, layout, read = None, given, 0
    for where, row in rows:
        try:
            if layout is None or (given is None and where.source != source):
                layout, source = layouts.recognise(row), where.source
            record = layout.read(row, where)
        except Unfit as unfit:
            reason = str(unfit)
        else:
            read += 1
            yield record
            continue
        drops.add(where, reason)  # outside of `except`, lest its error drags the inner one along
    if not read:
        raise PreftuneError(f"no usable row in the data ({drops.summary()}), expected at least one")


def without_identical(records: Iterable[Record], drops: Drops) -> Iterator[Record]:
    """All records but those that hold no preference: pairs whose chosen equals rejected, rankings of one score."""
    for record in records:
        if isinstance(record, Preference) and record.chosen == record.rejected:
            drops.add(record.where, "chosen and rejected are identical")
        elif isinstance(record, Ranking) and len(set(record.scores)) == 1:
            drops.add(record.where, "all responses have the same score")
        else:
            yield record


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256 (hex) of the records in their order: what a run was given, for its manifest.

    It covers prompts, responses, verdicts, scores, weights, confidences and gaps in the normal form, so it does not
    depend on the name, format or layout of the source, nor on a later split. It does depend on the order of the rows,
    because the order in which a run sees them does: equal fingerprints and equal seeds mean equal runs.

    Example:
        >>> row = Demonstration("2 + 2 =", " 4", Where("sums.csv", 0))
        >>> fingerprint([row])[:12]
        '5e99d0988077'
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(to_line(record))
    return digest.hexdigest()


def to_line(record: Record) -> bytes:
    """All that a record holds but its place, as one line of JSON."""
    values = [_plain(getattr(record, name)) for name in NAMES[type(record).__name__]]
    return json.dumps([type(record).__name__, *values]).encode() + b"\n"


def from_line(line: bytes, where: Where) -> Record:
    """The record that `to_line` wrote."""
    kind, *values = json.loads(line)
    fields = {name: _READ.get(name, _as_is)(value) for name, value in zip(NAMES[kind], values, strict=True)}
    return KINDS[kind](where=where, **fields)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [[each.role, each.content] if isinstance(each, Message) else _plain(each) for each in value]
    return value


def _as_is(value: Any) -> Any:
    return value


def _text(value: str | list[list[str]]) -> Text:
    return value if isinstance(value, str) else tuple(Message(role, content) for role, content in value)


KINDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (Preference, Judged, Ranking, Demonstration, PromptOnly)
}
NAMES = {name: [f.name for f in fields(kind) if f.name != "where"] for name, kind in KINDS.items()}
_READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("prompt", "chosen", "rejected", "response"), _text),
    "responses": lambda texts: tuple(map(_text, texts)),
    "scores": tuple,
}

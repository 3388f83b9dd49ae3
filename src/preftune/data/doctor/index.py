"""What the doctor keeps of every record: hashes and lengths, about a hundred bytes, gathered in one reading."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.data.doctor.findings import LISTED, Numbers, Places
from preftune.data.doctor.words import Hashes, answer, plain
from preftune.data.lines import Lines, Mask
from preftune.data.records import Judged, Preference, PromptOnly, Ranking, Record, Text
from preftune.data.split import text_key

# What chat templates write and people hardly do.
TEMPLATED = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|begin_of_text|end_of_text|endoftext|user|assistant|"
    r"system|end|start|message|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN)\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|"
    "<\uff5c(?:User|Assistant|(?:begin|end)\u2581of\u2581sentence)\uff5c>"
)


@dataclass(frozen=True)
class Comparisons:
    """Each "better over worse" that a record holds: one of a pair, several of a ranking.

    Attributes:
        record: number of the record, shape (comparisons,).
        better: hash of prompt and better response.
        worse: hash of prompt and worse response.
        longer: length of the better response minus the worse one's, in characters.
    """

    record: Numbers
    better: Hashes
    worse: Hashes
    longer: NDArray[np.int32]


@dataclass(frozen=True)
class Verdicts:
    """Each judged response: number of the record, hash of prompt and response, the verdict, length in characters."""

    record: Numbers
    node: Hashes
    good: Mask
    length: NDArray[np.int32]


@dataclass(frozen=True)
class Index:
    """Of all records of a source, in order.

    Attributes:
        places: where they came from.
        kinds: how many records there are of each kind.
        prompt: hash of each prompt.
        content: hash of each record: prompt, responses, and which is the better. Weights and confidences do not count.
        doubtful: records whose confidence is below one half.
        templated: records with text that a chat template has written.
        marks: what gave the first of them away.
        confidence: sum of all confidences below one, and their number, as (sum of 1 - confidence, number).
    """

    places: Places
    kinds: Counter[str]
    prompt: Hashes
    content: Hashes
    comparisons: Comparisons
    verdicts: Verdicts
    doubtful: Numbers
    templated: Numbers
    marks: list[str]
    confidence: tuple[float, int]

    def __len__(self) -> int:
        return len(self.prompt)


def index(lines: Lines) -> Index:
    """Read all records once."""
    names = {name: number for number, name in enumerate(lines.sources)}
    source, row, prompts, contents = array("i"), array("q"), array("Q"), array("Q")
    compared, judged = [array(kind) for kind in "qQQi"], [array(kind) for kind in "qQbi"]
    doubtful, templated, doubt, rated = array("q"), array("q"), 0.0, 0
    kinds, marks = Counter[str](), list[str]()
    for number, record in enumerate(lines.records()):
        source.append(names[record.where.source])
        row.append(record.where.row)
        kinds[type(record).__name__] += 1
        key = text_key(record.prompt)
        parts, texts = zip(*sides(record), strict=True) if sides(record) else ((), ())
        nodes = [_hash(key, text_key(text, "assistant")) for text in texts]
        prompts.append(_hash(key))
        contents.append(_hash(type(record).__name__, *(map("{} {}".format, parts, nodes) if nodes else [str(key)])))
        lengths = [len(answer(text)) for text in texts]
        if isinstance(record, Judged):
            _append(judged, number, nodes[0], record.good, lengths[0])
        for one, other in _ordered(parts):
            if nodes[one] == nodes[other]:  # they differ in blanks alone
                continue
            _append(compared, number, nodes[one], nodes[other], lengths[one] - lengths[other])
        confidence = getattr(record, "confidence", None)
        if confidence is not None:
            doubt, rated = doubt + 1 - confidence, rated + 1
            if confidence < 0.5:
                doubtful.append(number)
        mark = next(filter(None, (TEMPLATED.search(plain(text)) for text in (record.prompt, *texts))), None)
        if mark:
            templated.append(number)
            if len(marks) < LISTED:
                marks.append(mark[0])
    return Index(
        Places(lines.sources, _view(source, np.int32), _view(row, np.int64)),
        kinds,
        _view(prompts, np.uint64),
        _view(contents, np.uint64),
        Comparisons(*map(_view, compared, (np.int64, np.uint64, np.uint64, np.int32))),
        Verdicts(*map(_view, judged, (np.int64, np.uint64, np.bool_, np.int32))),
        _view(doubtful, np.int64),
        _view(templated, np.int64),
        marks,
        (doubt, rated),
    )


def sides(record: Record) -> list[tuple[str, Text]]:
    """The responses of a record, each with its part in it."""
    if isinstance(record, Preference):
        return [("chosen", record.chosen), ("rejected", record.rejected)]
    if isinstance(record, Ranking):
        ranked = sorted(zip(record.scores, record.responses, strict=True), key=lambda pair: -pair[0])
        levels = {score: level for level, score in enumerate(dict.fromkeys(score for score, _ in ranked))}
        return [(f"rank {levels[score]}", text) for score, text in ranked]
    if isinstance(record, Judged):
        return [("good" if record.good else "bad", record.response)]
    return [] if isinstance(record, PromptOnly) else [("response", record.response)]


def extremes(record: Record) -> Iterator[tuple[bool, Text]]:
    """The better response (True) and the worse (False); of a verdict the one there is, of a demonstration none."""
    if isinstance(record, Judged):
        yield record.good, record.response
    elif isinstance(record, Preference | Ranking):
        found = sides(record)
        yield True, found[0][1]
        yield False, found[-1][1]


def _ordered(parts: Sequence[str]) -> Iterable[tuple[int, int]]:
    """Which of these responses, best first, are better than which."""
    return ((one, other) for one, other in combinations(range(len(parts)), 2) if parts[one] != parts[other])


def _hash(*parts: str) -> int:
    """64 bits: among a million texts, chances that any two share them are 1 in 40 million."""
    digest = blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _append(columns: Sequence[Any], *values: Any) -> None:
    for column, value in zip(columns, values, strict=True):
        column.append(value)


def _view(values: Any, kind: type) -> NDArray[Any]:
    return np.frombuffer(values, dtype=kind) if len(values) else np.empty(0, dtype=kind)

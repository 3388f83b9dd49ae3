"""What tells better responses from worse ones without reading them: length, and signs such as a word or a list.

Length is compared on all records, signs on up to 20,000 of them, evenly spread. A sign is counted where it stands on
one side alone: a model that follows it would be right in `better / (better + worse)` of those rows. It is told if it
stands so in at least 1% of the rows, and if that share is further than 0.2 from chance, by five standard errors: of a
million signs that mean nothing, none is. Chance is one half for pairs (and the best against the worst of a ranking);
verdicts on single responses are held against the share of good ones.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.data.doctor.findings import Finding
from preftune.data.doctor.index import Index, extremes
from preftune.data.doctor.words import TOKEN, Hashes, answer, numbered, runs
from preftune.data.lines import Lines, Mask
from preftune.evaluation.intervals import auc, auc_interval, grouped_interval

SAMPLE = 20_000
LONGEST = 8_000  # characters of a response whose words are counted
APART = 0.1  # of the length's accuracy, from one half
FAR = 0.2  # of a sign's share, from chance
ERRORS = 5.0
COVERAGE = 0.01
SHOWN = 12  # signs of one kind
RUNS = (1, 2, 3)  # words
BEGIN, END = "\x02", "\x03"  # before and after a response, so that its first and last words are signs too
BUCKETS = 2**20

FORMATS = {
    "a code block": re.compile(r"```"),
    "a bullet list": re.compile(r"^\s*[-*\u2022] ", re.M),
    "a numbered list": re.compile(r"^\s*\d+[.)] ", re.M),
    "a heading": re.compile(r"^#{1,6} ", re.M),
    "bold text": re.compile(r"\*\*[^*\n]+\*\*"),
    "a table": re.compile(r"^\|.*\|\s*$", re.M),
    "a link": re.compile(r"https?://"),
    "a formula": re.compile(r"\$[^$\n]+\$|\\\[|\\\("),
    "an emoji": re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]"),
    "a line break": re.compile(r"\S\s*\n\s*\S"),
    "no punctuation at the end": re.compile(r"\w\s*\Z"),
    "white space at the start": re.compile(r"\A\s"),
    "white space at the end": re.compile(r"\s\Z"),
}

Response = tuple[bool, str]  # True for the better one or a good one, and its text


@dataclass(frozen=True)
class Sign:
    """Something that stands on one side alone: in how many rows on the better one, in how many on the worse."""

    name: str
    better: int
    worse: int


def length_bias(index: Index) -> tuple[Finding | None, dict[str, Any]]:
    """How often the longer response is the better one (ties count one half), with its 95% interval, by prompt."""
    compared, judged = index.comparisons, index.verdicts
    if len(compared.record):
        scores = (np.sign(compared.longer) + 1) / 2
        prompts = np.unique(index.prompt[compared.record], return_inverse=True)[1]
        share, (low, high) = float(scores.mean()), grouped_interval(scores, prompts)
    elif judged.good.any() and not judged.good.all():
        good, bad = judged.length[judged.good], judged.length[~judged.good]
        share, (low, high) = float(auc(good, bad)[0].mean()), auc_interval(good, bad)
    else:
        return None, {}
    figures = {"longer_wins": share, "longer_wins_ci95": [low, high]}
    if low <= 0.5 + APART and high >= 0.5 - APART:
        return None, figures
    which, ends = ("longer", (share, low, high)) if share > 0.5 else ("shorter", (1 - share, 1 - high, 1 - low))
    text = (
        f"the {which} response is the better one in {ends[0]:.1%} of comparisons (95% interval {ends[1]:.1%} to "
        f"{ends[2]:.1%}): a model can win by length alone"
    )
    return Finding("length_bias", "warning", text, details=figures), figures


def sample(index: Index) -> Mask:
    """Up to SAMPLE records, evenly spread."""
    mask = np.zeros(len(index), dtype=np.bool_)
    mask[np.linspace(0, max(0, len(index) - 1), min(SAMPLE, len(index))).astype(np.int64)] = True
    return mask


def markers(lines: Lines, mask: Mask) -> Finding | None:
    """Words, and runs of two or three, that stand in better responses or in worse ones."""
    counts, chance = np.zeros((2, BUCKETS), dtype=np.int32), _Chance()
    for responses in _responses(lines, mask):
        chance.add(responses)
        for good, alone in _alone(responses, lambda text: np.unique(_runs(_tokens(text))), _less):
            np.add.at(counts[int(good)], _bucket(alone), 1)
    told = _tells(counts[1], counts[0], chance)
    return _finding("markers", "words", _named(lines, mask, told), chance) if told.any() else None


def formats(lines: Lines, mask: Mask) -> Finding | None:
    """Code, lists, headings and the like that stand on one side."""
    return _by_name(lines, mask, "formats", "forms", _forms)


def language(lines: Lines, mask: Mask) -> Finding | None:
    """Scripts of writing that stand on one side."""
    return _by_name(lines, mask, "language", "scripts", _scripts)


def _responses(lines: Lines, mask: Mask) -> Iterator[list[Response]]:
    for record in lines.records(mask):
        found = [(good, answer(text)) for good, text in extremes(record)]
        if found:
            yield found


class _Chance:
    """Counts rows, and in how many of them a sign that means nothing stands on the better side."""

    def __init__(self) -> None:
        self.rows, self._pairs, self._good = 0, 0, 0

    def add(self, responses: list[Response]) -> None:
        self.rows += 1
        self._pairs += len(responses) == 2
        self._good += len(responses) == 1 and responses[0][0]

    @property
    def share(self) -> float:
        return (self._pairs / 2 + self._good) / max(1, self.rows)


def _alone(responses: list[Response], find: Callable[[str], Any], less: Callable[[Any, Any], Any]) -> Iterator[Any]:
    """For each response, whether it is the better one, and the signs that stand in it and not in the other."""
    found = [find(text) for _, text in responses]
    if len(found) == 1:
        yield responses[0][0], found[0]
    else:
        yield responses[0][0], less(found[0], found[1])
        yield responses[1][0], less(found[1], found[0])


def _tells(better: NDArray[Any], worse: NDArray[Any], chance: _Chance) -> NDArray[np.bool_]:
    """Whether signs with these counts tell better from worse: see above."""
    together = np.maximum(better + worse, 1)
    share, expected = better / together, chance.share
    surely = np.abs(share - expected) > FAR + ERRORS * np.sqrt(expected * (1 - expected) / together)
    told: NDArray[np.bool_] = surely & (together >= max(COVERAGE * chance.rows, 1))
    return told


def _by_name(lines: Lines, mask: Mask, name: str, what: str, find: Callable[[str], set[str]]) -> Finding | None:
    counts: dict[str, list[int]] = {}
    chance = _Chance()
    for responses in _responses(lines, mask):
        chance.add(responses)
        for good, alone in _alone(responses, find, set.difference):
            for sign in alone:
                counts.setdefault(sign, [0, 0])[int(good)] += 1
    return _finding(name, what, [Sign(sign, better, worse) for sign, (worse, better) in counts.items()], chance)


def _finding(name: str, what: str, signs: Iterable[Sign], chance: _Chance) -> Finding | None:
    told = [one for one in signs if _tells(np.array(one.better), np.array(one.worse), chance)]
    told.sort(key=lambda one: (-abs(one.better - chance.share * (one.better + one.worse)), one.name))
    kept: list[Sign] = []
    for sign in told:
        if len(kept) < SHOWN and not any(_repeats(sign, other) for other in kept):
            kept.append(sign)
    if not kept:
        return None
    return Finding(
        name,
        "warning",
        f"{what} tell better responses from worse ones in {chance.rows:,} rows (on the better side : on the worse)",
        signs=[{"sign": one.name, "better": one.better, "worse": one.worse} for one in kept],
        details={"rows": chance.rows, "chance": chance.share},
    )


def _repeats(sign: Sign, other: Sign) -> bool:
    """True for part of a phrase, or a phrase around a word, that stands in much the same rows."""
    alike = abs(sign.better - other.better) + abs(sign.worse - other.worse) < 0.2 * (other.better + other.worse)
    return alike and (sign.name.strip("'") in other.name or other.name.strip("'") in sign.name)


# --- words ------------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[str]:
    half = LONGEST // 2
    text = text if len(text) <= LONGEST else f"{text[:half]} {text[-half:]}"
    return [BEGIN, *TOKEN.findall(text.lower()), END]


def _runs(tokens: list[str]) -> Hashes:
    numbers = numbered(tokens)
    return np.concatenate([runs(numbers, n) for n in RUNS if n <= len(tokens)])


def _less(own: Hashes, others: Hashes) -> Hashes:
    return np.setdiff1d(own, others, assume_unique=True)


def _bucket(found: Hashes) -> NDArray[np.int64]:
    return (found % np.uint64(BUCKETS)).astype(np.int64)


def _named(lines: Lines, mask: Mask, told: NDArray[np.bool_]) -> Iterator[Sign]:
    """The runs of words in these buckets, counted one by one: several may share a bucket."""
    counts: dict[int, list[int]] = {}
    names: dict[int, str] = {}

    def find(text: str) -> Hashes:
        tokens = _tokens(text)
        found = _runs(tokens)
        hits = np.flatnonzero(told[_bucket(found)])
        for hit in hits.tolist():
            if int(found[hit]) not in names:
                names[int(found[hit])] = _name(tokens, hit)
        return np.unique(found[hits])

    for responses in _responses(lines, mask):
        for good, alone in _alone(responses, find, _less):
            for run in alone.tolist():
                counts.setdefault(run, [0, 0])[int(good)] += 1
    return (Sign(names[run], better, worse) for run, (worse, better) in counts.items() if names[run])


def _name(tokens: list[str], place: int) -> str:
    """The run at a place of `_runs`, as people read it; empty for the marks of begin and end alone."""
    for n in RUNS:
        if place < len(tokens) - n + 1:
            break
        place -= len(tokens) - n + 1
    run = tokens[place : place + n]
    said = " ".join(word for word in run if word not in (BEGIN, END))
    begin, end = ("begins with " if run[0] == BEGIN else ""), ("ends with " if run[-1] == END else "")
    return f"{(begin and end and 'is ') or begin or end}'{said}'" if said else ""


# --- forms and scripts ------------------------------------------------------------------------------------------------


def _forms(text: str) -> set[str]:
    return {name for name, pattern in FORMATS.items() if pattern.search(text)}


def _scripts(text: str) -> set[str]:
    letters = Counter(_script(letter) for letter in text[:LONGEST] if letter.isalpha())
    return {f"{name} letters" for name, count in letters.items() if count >= 0.2 * letters.total()}


@lru_cache(maxsize=2**16)
def _script(letter: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK, ARABIC, ..."""
    return unicodedata.name(letter, "UNNAMED").split()[0].title()

"""One of several options, by letter or by text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from preftune.data.fields import Unfit
from preftune.prompting.benchmarks.marks import HASHES, after_mark, bare, boxed, last_line
from preftune.prompting.benchmarks.scoring import Scorer

if TYPE_CHECKING:
    from preftune.prompting.benchmarks.base import BenchmarkQuestion

LETTER = re.compile(r"[A-Z]")
WITH_MARK = r"(?:\(([A-Za-z])\)|([A-Za-z])\)|([A-Z])(?=[.:,;]|\s*$|\n)|\[([A-Z])\])"
LEADING = re.compile(rf"(?:(?:option|choice)\s+)?{WITH_MARK}", re.IGNORECASE)
NAMED = re.compile(r"(?:option|choice)?\s*(?:\(([A-Za-z])\)|([A-Z])\b(?!['\u2019]))")
MENTIONED = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice)\s+([A-Z])\b")
MORE = re.compile(r"\W*(?:or|and|and/or|/|&)\W*(?:option\s+)?\(?([A-Z])\b\)?", re.IGNORECASE)


class Choice(Scorer):
    """One option: "B", "(b)", "The answer is (B)", or its text. Two at once are no answer.

    The right answer is a letter, where the options have letters, and else the option itself (Yes, No).
    """

    def read(self, question: BenchmarkQuestion, response: str) -> str | None:  # noqa: D102
        if LETTER.fullmatch(question.gold):
            return letter_in(response, question.options)
        return option_in(response, question.options)

    def gold(self, question: BenchmarkQuestion) -> str:  # noqa: D102
        options = question.options
        if LETTER.fullmatch(question.gold) and (not options or ord(question.gold) - ord("A") < len(options)):
            return question.gold
        if question.gold not in options:
            raise Unfit(f"the answer {question.gold!r} is none of the options {', '.join(options)}")
        return question.gold


def letter_in(response: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a response chooses; None if it chooses none, or two.

    Args:
        response: what a generator wrote.
        options: texts of A, B, and so on.

    Example:
        >>> letter_in("It is cold, so the answer is (B).", ["fire", "snow"]), letter_in("(A) or (B)", ["fire", "snow"])
        ('B', None)
    """
    hashes = HASHES.findall(response)
    for place in (hashes[-1] if hashes else None, boxed(response), after_mark(response), response):
        if place is None:
            continue
        found, ambiguous = _begins(bare(place), options, place is not response)
        if found or ambiguous:
            return None if ambiguous else found
    for place in (last_line(response), response):
        found, ambiguous = _mentions(place, options)
        if found or ambiguous:
            return None if ambiguous else found
    return None


def option_in(response: str, options: Sequence[str]) -> str | None:
    """The option that a response chooses, of those without letters; "not valid" is "invalid" where these two are all.

    Example:
        >>> option_in("No, because it rains.", ["Yes", "No"]), option_in("It is not valid.", ["valid", "invalid"])
        ('No', 'invalid')
    """
    hashes = HASHES.findall(response)
    for place in (hashes[-1] if hashes else None, boxed(response), after_mark(response)):
        if place is not None and (found := _word(re.split(r"\n|[.;!?](?=\s|$)", bare(place))[0], options)):
            return found
    start = bare(response)
    for option in options:
        if re.match(rf"{re.escape(option)}(?!\w)", start, re.IGNORECASE) and not _hedged(start, option, options):
            return option
    return _word(last_line(response), options) or _word(response, options)


def _begins(place: str, options: Sequence[str], marked: bool) -> tuple[str | None, bool]:
    """The option that a place begins with, and whether another follows at once."""
    last = chr(ord("A") + (len(options) or 26) - 1)
    by_text = sorted(range(len(options)), key=lambda i: -len(options[i]))
    for i in by_text:
        text = options[i].strip()
        if text and re.match(rf"{re.escape(text)}(?!\w)", place, re.IGNORECASE) and not LETTER.fullmatch(text):
            return chr(ord("A") + i), False
    found = (NAMED if marked else LEADING).match(place)
    if found is None:
        found = LEADING.match(place)
    if found is None:
        return None, False
    letter = next(group for group in found.groups() if group).upper()
    if letter > last:
        return None, False
    more = MORE.match(place, found.end())
    return letter, more is not None and more[1].upper() <= last and more[1].upper() != letter


def _mentions(place: str, options: Sequence[str]) -> tuple[str | None, bool]:
    """The one option that a place mentions, by letter or else by text, and whether there are several."""
    last = chr(ord("A") + (len(options) or 26) - 1)
    letters = {(a or b) for a, b in MENTIONED.findall(place)}
    letters = {letter for letter in letters if letter <= last}
    if not letters:
        letters = {chr(ord("A") + i) for i in _texts_in(place, options)}
    return (letters.pop(), False) if len(letters) == 1 else (None, len(letters) > 1)


def _texts_in(place: str, options: Sequence[str]) -> list[int]:
    """Options whose text stands in a place, but for those that are part of a longer one that does."""
    found: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: -len(options[i])):
        text = options[i].strip()
        pattern = rf"(?<!\w){re.escape(text)}(?!\w)"
        if text and re.search(pattern, place, re.IGNORECASE):
            found.append(i)
            place = re.sub(pattern, " | ", place, flags=re.IGNORECASE)
    return found


def _word(place: str, options: Sequence[str]) -> str | None:
    """The one option that a place says."""
    found = {
        _other(option, options) if match[1] else option
        for option in options
        for match in re.finditer(rf"(?<!\w)(not\s+)?{re.escape(option)}(?!\w)", place, re.IGNORECASE)
    }
    return found.pop() if len(found) == 1 else None


def _other(option: str, options: Sequence[str]) -> str | None:
    """What "not" makes of an option, if there are two."""
    return next((other for other in options if other != option), None) if len(options) == 2 else None


def _hedged(start: str, option: str, options: Sequence[str]) -> bool:
    """True for "Yes or no"."""
    rest = start[len(option) :]
    return any(re.match(rf"\W*(?:or|and|/)\W*{re.escape(other)}(?!\w)", rest, re.IGNORECASE) for other in options)

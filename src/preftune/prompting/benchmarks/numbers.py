"""Numbers in responses, however they are written."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from preftune.data.builders.gsm8k import ANNOTATION, read_number
from preftune.data.fields import Unfit
from preftune.prompting.benchmarks.marks import HASHES, after_mark, boxed
from preftune.prompting.benchmarks.scoring import Scorer

if TYPE_CHECKING:
    from preftune.prompting.benchmarks.base import BenchmarkQuestion

NUMBER = re.compile(
    r"""(?<![\w.,/])                                      # no part of a word or a number
    (?P<number>[-+]?[$\u20ac\u00a3]?[-+]?
      (?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)
      (?:[ ]?/[ ]?\d+)?)
    (?:[ ]*(?P<times>thousand|million|billion)\b)?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
TIMES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
FRACTION = re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}")


class Number(Scorer):
    """One number, compared exactly: 18, 18.00 and $18 are one answer."""

    def read(self, question: BenchmarkQuestion, response: str) -> str | None:  # noqa: D102
        number = number_in(response)
        return None if number is None else shown(number)

    def gold(self, question: BenchmarkQuestion) -> str:  # noqa: D102
        number = read_number(question.gold)
        if number is None:
            raise Unfit(f"the answer {question.gold[:80]!r} is no number, expected one such as 72, -3.5 or 1,200")
        return shown(number)


def shown(number: Fraction) -> str:
    """A number as text: 18, 18.5 or 1/3.

    Example:
        >>> [shown(Fraction(number)) for number in ("18", "37/2", "1/3")]
        ['18', '18.5', '1/3']
    """
    if number.denominator == 1:
        return str(number.numerator)
    rest = number.denominator
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    return f"{float(number):.12g}" if rest == 1 and abs(number) < 10**9 else str(number)


def number_in(response: str) -> Fraction | None:
    r"""The number that a response answers; None if it has none.

    It is looked for on the last line "#### N", then in the last \boxed{N}, then after the last "the answer is" or
    "Answer:", and else the last number of the response is taken; a number in words counts if there are no digits.

    Example:
        >>> number_in("She has 3+4 = 7, so the answer is $7.00 for 2 days."), number_in("Three of them.")
        (Fraction(7, 1), Fraction(3, 1))
    """
    text = _plain(response)
    hashes = HASHES.findall(text)
    places = [hashes[-1] if hashes else None, boxed(text), after_mark(text)]
    for place in places:
        if place is not None and (found := _first(place)) is not None:
            return found
    numbers = numbers_in(text)
    if numbers:
        return numbers[-1]
    words = WORD.findall(text)
    return Fraction(WORDS.index(words[-1].lower())) if words else None


def _first(place: str) -> Fraction | None:
    """The number that a place begins with or comes to: "48 + 24 = 72 clips" says 72."""
    sentence = re.split(r"\n|[.;!?](?=\s|$)|\(", place, maxsplit=1)[0]
    if "=" in sentence:
        sentence = sentence.rpartition("=")[2]
    numbers = numbers_in(sentence) or numbers_in(place)
    if numbers:
        return numbers[0]
    words = WORD.findall(sentence)
    return Fraction(WORDS.index(words[0].lower())) if words else None


def numbers_in(text: str) -> list[Fraction]:
    """All numbers that a text has in digits, in its order."""
    found = []
    for match in NUMBER.finditer(text):
        number = read_number(re.sub("[\u20ac\u00a3]", "", match["number"]))
        if number is not None:
            found.append(number * TIMES.get((match["times"] or "").lower(), 1))
    return found


def _plain(response: str) -> str:
    text = ANNOTATION.sub("", response).replace("\u2212", "-").replace("\\$", "$").replace("{,}", ",")
    return FRACTION.sub(r"\1/\2", text.replace("\\!", "").replace("\\,", "").replace("**", ""))

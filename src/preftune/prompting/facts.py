"""Why a rewrite may not be used: what a prompt says must still stand there, byte for byte and in its order.

There is no repair: a rewrite that fails is not used, and the original comes back with the reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from preftune.prompting.atoms import atoms, items
from preftune.prompting.language import language_change
from preftune.prompting.number_words import NUMBER_WORD
from preftune.prompting.spans import Kind, Mark, Span, merged, numbers, options, spans
from preftune.prompting.template import words_in

__all__ = ["Mark", "NewNumbers", "Span", "problem", "protected"]

NewNumbers = Literal["none", "counters", "any"]
SHOWN = 40  # characters of a span in a message
_DIGITS = re.compile(r"\d+(?:[.,:/'\u2019-]\d+)*")
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
STEM, FEWEST_WORDS = 5, 3  # letters of a word that are looked for, and words of a prompt that has a subject
_SEARCHED: tuple[Kind, ...] = ("quotation", "code", "formula", "slot", "mark", "option", "link")


def protected(text: str, marks: Iterable[Mark] = ()) -> list[Span]:
    """What a rewrite of this text may not touch: numbers (with signs, separators, currencies, units; also as words),
    quotations, code and markup, answer options, links and addresses, formulas, slots ({name}), [[...]], and marks.
    Stretches that overlap are one.

    Args:
        text: a prompt.
        marks: what else is protected: texts, patterns, or stretches (first character, one after the last).

    Raises:
        ValueError: if a stretch lies outside the text.

    Example:
        >>> [span.text for span in protected('Add 1,200.50 and 5% to "x1", see {table}.')]
        ['1,200.50', '5%', '"x1"', '{table}']
    """
    return list(_protected(text, tuple(marks)))


@lru_cache(maxsize=32)  # a prompt is held against all of its candidates
def _protected(text: str, marks: tuple[Mark, ...]) -> tuple[Span, ...]:
    return tuple(merged(spans(text, marks), text))


def problem(
    original: str,
    rewrite: str,
    marks: Iterable[Mark] = (),
    limit: int | None = None,
    *,
    new_numbers: NewNumbers = "counters",
    order: bool = True,
) -> str | None:
    """Why a rewrite may not take the place of a prompt; None if it may.

    Args:
        original: the prompt.
        rewrite: what an optimiser made of it.
        marks: what else is protected, as `protected` takes it; stretches are those of the original.
        limit: most words of the rewrite.
        new_numbers: which numbers may stand in the rewrite alone. "counters": those that count list items or steps from
            1 on ("1.", "(2)", "Step 3"); a number elsewhere may be an answer, or a fact that nobody gave.
        order: what is protected must come in the original's order, so that two numbers cannot change places. Else it
            must only be there as often. Options keep their order always. Nothing that is exact may be added to it.

    Example:
        >>> problem("Tom has 3 apples and 12 pears.", "Tom has 3 apples and 312 pears. How many?")
        "'12' is missing or altered"
        >>> problem("Add 2 and 3", "Add 2 and 3. Step 1: write down the sum. Step 2: check it.")
    """
    marks = tuple(marks)
    if not rewrite.strip():
        return "it is empty"
    if rewrite.strip() == original.strip():
        return "it is the same as the prompt"
    if limit is not None and (words := words_in(rewrite)) > limit:
        return f"it has {words:,} words, more than {limit:,}"
    if odd := _odd_character(original, rewrite):
        return f"it has the character {odd}, which is no text"
    return (
        _lost(original, rewrite, marks, order)
        or _other_options(original, rewrite)
        or _other_items(original, rewrite)
        or _new_number(original, rewrite, new_numbers)
        or _new_spans(original, rewrite, marks)
        or _other_atoms(original, rewrite, new_numbers, order)
        or _other_language(original, rewrite, marks)
        or _other_subject(original, rewrite, marks)
    )


def _lost(original: str, rewrite: str, marks: Sequence[Mark], order: bool) -> str | None:
    wanted = protected(original, marks)
    found = _Places(original, rewrite)
    if order:
        place = 0
        for span in wanted:
            at = found.next(span, place)
            if at is None:
                return _missing(span, found)
            place = at + len(span.text)
        return None
    taken: list[tuple[int, int]] = []
    for span in sorted(wanted, key=lambda span: span.start - span.end):  # longest first: it may hold the shorter ones
        place = 0
        while (at := found.next(span, place)) is not None:
            end = at + len(span.text)
            if not any(start < end and at < stop for start, stop in taken):
                taken.append((at, end))
                break
            place = at + 1
        else:
            return _missing(span, found)
    return None


def _missing(span: Span, found: _Places) -> str:
    told = "is there fewer times, or in another order" if found.next(span, 0) is not None else "is missing or altered"
    return f"{_shown(span.text)} {told}"


class _Places:
    """Where in a rewrite a span stands as what it was: 12 is not found in 312, nor in 12.5 or -12."""

    def __init__(self, original: str, rewrite: str) -> None:
        self._original, self._text = original, rewrite
        self._whole: dict[str, list[Span]] = {}
        for span in [*numbers(rewrite), *_number_words(rewrite)]:
            self._whole.setdefault(span.text, []).append(span)

    def next(self, span: Span, place: int) -> int | None:
        """The first character of the first one from a place on."""
        if span.kind in _SEARCHED:
            before, after = _cuts(self._original, span.start), _cuts(self._original, span.end)
            while (at := self._text.find(span.text, place)) >= 0:
                end = at + len(span.text)
                # a mark may stand inside of a word, but only if it did
                if _cuts(self._text, at) <= before and _cuts(self._text, end) <= after:
                    return at
                place = at + 1
            return None
        for each in self._whole.get(span.text, ()):
            if each.start >= place and each.kind == span.kind:
                return each.start
        return None


def _cuts(text: str, place: int) -> bool:
    """True if a word, a number or a row of marks goes on beyond this place."""
    return _joined(text[max(0, place - 2) : place], text[place : place + 2])


def _joined(before: str, after: str) -> bool:
    """True if the two texts were one word or one number where they met."""
    if not before or not after:
        return False
    last, first = before[-1], after[0]
    if last == first and last in "`\"'$*~{}[]":
        return True
    if _wordy(last) and _wordy(first) and not (_spaceless(last) or _spaceless(first)):
        return True
    digit_before, digit_after = last.isnumeric(), first.isnumeric()
    if digit_before and first in ".,:/-%" and len(after) > 1 and (after[1].isnumeric() or first == "%"):
        return True
    if digit_before and first == "%":
        return True
    return digit_after and last in "+-\u2212.,$\u20ac\u00a3" and (len(before) < 2 or before[-2] != " " or last != ".")


def _wordy(char: str) -> bool:
    return char.isalnum() or char == "_"


def _spaceless(char: str) -> bool:
    return unicodedata.name(char, "").partition(" ")[0] in ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER")


def _number_words(text: str) -> list[Span]:
    return [Span(match.start(), match.end(), "number", match[0]) for match in NUMBER_WORD.finditer(text)]


def _other_options(original: str, rewrite: str) -> str | None:
    before = [span.text for span in options(original)]
    after = [span.text for span in options(rewrite)]
    if before == after:
        return None
    if not before:
        return f"the answer option {_shown(after[0])} is new"
    if Counter(before) == Counter(after):
        return "the answer options are in another order"
    new = next((each for each in after if each not in before), None)
    if new is not None:
        return f"the answer option {_shown(new)} is new or altered"
    return "the answer options are not those of the prompt"


def _other_items(original: str, rewrite: str) -> str | None:
    """A list that the prompt has stays as it is, line by line, and beside options there is no other; else there may be
    one, of steps."""
    before, after = items(original), items(rewrite)
    if before == after or not (before or options(original)):
        return None
    lost = next((item for item in before if item not in after), None)
    if lost is not None:
        return f"{_shown(lost)} is missing or altered"
    new = next((item for item in after if item not in before), None)
    return "the items of a list are in another order" if new is None else f"the item {_shown(new)} is new"


def _new_number(original: str, rewrite: str, allowed: NewNumbers) -> str | None:
    if allowed == "any":
        return None
    known = {span.text for span in numbers(original)} | set(_DIGITS.findall(original))
    count = 0
    for span in numbers(rewrite):
        if span.text in known or (_DIGITS.findall(span.text) and known.issuperset(_DIGITS.findall(span.text))):
            count = int(span.text) if span.kind == "counter" else count
            continue
        counts = span.kind == "counter" and int(span.text) in (1, count + 1)
        if not counts or allowed == "none":
            return f"the number {_shown(span.text)} is new"
        count = int(span.text)
    return None


def _other_atoms(original: str, rewrite: str, new_numbers: NewNumbers, order: bool) -> str | None:
    """Everything that is no plain word must be there as often as before, in its order, and nothing else."""
    for word in ("one", "once"):  # which may be added, as it mostly counts nothing, and must not be lost
        if len(_word(word).findall(rewrite)) < len(_word(word).findall(original)):
            return f"{word!r} is there fewer times"
    wanted, found = [atom.text for atom in atoms(original)], [atom.text for atom in atoms(rewrite)]
    if new_numbers == "any":
        known = set(wanted)
        found = [atom.text for atom in atoms(rewrite) if not atom.number or atom.text in known]
    if wanted == found or (not order and Counter(wanted) == Counter(found)):
        return None
    if lost := next(iter((Counter(wanted) - Counter(found)).elements()), None):
        return f"{_shown(lost)} is missing or altered"
    if new := next(iter((Counter(found) - Counter(wanted)).elements()), None):
        return f"{_shown(new)} is new, or there more often"
    moved = next(there for here, there in zip(wanted, found, strict=True) if here != there)
    return f"{_shown(moved)} is in another place"


@lru_cache
def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?i)\b{word}\b")


def _new_spans(original: str, rewrite: str, marks: Sequence[Mark]) -> str | None:
    """A quotation, code, a link, a formula or a slot that nobody gave, or that grew."""
    kinds = ("quotation", "code", "link", "formula", "slot")
    before = Counter(span.text for span in protected(original, marks))
    for span in protected(rewrite, ()):
        if span.kind in kinds and span.text not in before and not any(span.text in text for text in before):
            return f"{_shown(span.text)} is new"
    return None


def _other_language(original: str, rewrite: str, marks: Sequence[Mark]) -> str | None:
    changed = language_change(_unprotected(original, marks), _unprotected(rewrite, ()))
    return f"its language changed ({changed})" if changed else None


def _other_subject(original: str, rewrite: str, marks: Sequence[Mark]) -> str | None:
    """Of three longer words or more, one at least must still be there, if only its beginning; unless facts tell that it
    is about the same."""
    if protected(original, marks):
        return None
    words = {word[:STEM].lower() for word in _LONG_WORD.findall(original)}
    rest = rewrite.lower()
    if len(words) < FEWEST_WORDS or any(word in rest for word in words):
        return None
    return "it has none of the prompt's words"


def _unprotected(text: str, marks: Iterable[Mark]) -> str:
    """What is said around what is protected: quotations may be in any language."""
    rest, place = [], 0
    for span in protected(text, marks):
        if span.kind != "option":
            rest.append(text[place : span.start])
            place = span.end
    return " ".join([*rest, text[place:]])


def _odd_character(original: str, rewrite: str) -> str | None:
    """A character of control, an invisible one, half a pair or the sign of broken text that the original has not."""
    for char in rewrite:
        odd = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or char == "\ufffd"
        # emoji and Persian join letters
        if odd and char not in "\n\r\t\u200c\u200d" and char not in original:
            return f"U+{ord(char):04X}"
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")

"""Two texts, word by word: what stands in one and not in the other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MOST = 1500  # words and spaces of one text, beyond which comparing would cost seconds


@dataclass(frozen=True)
class Piece:
    """A stretch of a text, and whether the other text lacks it."""

    text: str
    differs: bool


def differences(one: str, other: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts as pieces, marked where they differ; the pieces of each add up to it.

    Args:
        one: a text.
        other: a text to hold against it; if either has more than 1,500 words and spaces, nothing is marked.

    Example:
        >>> differences("a dull film", "a fine film")[1]
        [Piece(text='a ', differs=False), Piece(text='fine', differs=True), Piece(text=' film', differs=False)]
    """
    words = WORDS.findall(one), WORDS.findall(other)
    if max(map(len, words)) > MOST:
        return _whole(one), _whole(other)
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for kind, *ends in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for side, given, start, end in zip(sides, words, ends[::2], ends[1::2], strict=True):
            if start < end:
                _append(side, "".join(given[start:end]), kind != "equal")
    return sides


def _append(side: list[Piece], text: str, differs: bool) -> None:
    """Add a piece; a space between two pieces that differ differs as well, so that marks do not fray."""
    if not text.strip() and side and differs is False and side[-1].differs and text == " ":
        differs = True
    if side and side[-1].differs == differs:
        side[-1] = Piece(side[-1].text + text, differs)
    else:
        side.append(Piece(text, differs))


def _whole(text: str) -> list[Piece]:
    return [Piece(text, False)] if text else []

"""A second reading of what a prompt says exactly: pieces between white space that are no plain words, in their order.

Spans are looked for in a rewrite; atoms are read from both texts in the same way and held against each other, so that
nothing can be put before or behind a number, a link or a formula, and none can be added: 5 is not in 5!, nor in 16 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from preftune.prompting.number_words import NUMBER_WORD
from preftune.prompting.spans import numbers

_PIECE = re.compile(r"\S+")
# Characters of scripts without spaces, but for the signs of numbers.
_SPACELESS = r"\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_RUN = re.compile(rf"(?P<run>[^{_SPACELESS}]*[^\W{_SPACELESS}][^{_SPACELESS}]*)(?P<unit>[{_SPACELESS}]?)")
_AROUND = ".,;:?()[]\"'\u201c\u201d\u2018\u2019\u2026*\u3002\uff0c\uff1f\uff1b\u3001"
_OPERATORS = set("+*/=<>^\u00d7\u00f7\u00b1\u2260\u2264\u2265\u2227\u2228\u00ac|&%")
# Paths, names in programs, links, markup.
_TECHNICAL = re.compile(r"[_/\\#$=<>{}@~^|]|://|\w\(|[^\W_]\.[^\W_]{2}|[a-z][A-Z]")
_DATE = re.compile(
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day)\b"
)
_SIGN = re.compile(r"(?<!\S)[-\u2212\u2013](?=\s+[\d(])")  # a minus with a space behind it
# Items of a list, a line each: "- red", "1) red", "a. red", "[A] red", "(ii) red", "A - red".
_ITEM = re.compile(
    r"(?m)^[ \t]*(?:[-*\u2022+>|][ \t]+(?=\S)|\(?\d{1,2}[.)][ \t]|[(\[\uff08<]?[^\W\d_][\])\uff09>.:|][ \t]*(?=\S)"
    r"|\([ivx]{1,4}\)[ \t]|[A-Z][ \t]*[-\u2013|][ \t])[^\r\n]+"
)
_LETTER = re.compile(r"[(\[\uff08]\s*([A-Za-z])\s*[)\]\uff09]")  # "(B)", wherever it stands
_CURRENCY = re.compile(r"(?:[A-Z]{3}|[$\u20ac\u00a3\u00a5\u20b9])")
ONE = "\u4e00"  # the Chinese sign for one, which is part of many words that count nothing


@dataclass(frozen=True)
class Atom:
    """A piece of a text.

    Attributes:
        text: itself.
        start: its first character.
        end: the one after its last.
        number: True if it is a number.
    """

    text: str
    start: int
    end: int
    number: bool


def atoms(text: str) -> list[Atom]:
    """All pieces that hold a digit or another sign of a number, number words, letters in brackets, operators, links,
    paths and whatever looks like code. Numbers with nothing but a space in between are one. Those that count items or
    steps are left out."""
    counters = [(span.start, span.end) for span in numbers(text) if span.kind == "counter"]
    found: list[Atom] = []
    for piece in _PIECE.finditer(text):
        if any(piece.start() < end and start < piece.end() for start, end in counters):
            continue
        found += _of_piece(piece[0], piece.start())
    found += [Atom(match[0].lower(), match.start(), match.end(), True) for match in NUMBER_WORD.finditer(text)]
    for pattern in (_SIGN, _DATE):
        found += [Atom(match[0], match.start(), match.end(), False) for match in pattern.finditer(text)]
    found += [Atom(match[1], match.start(), match.end(), False) for match in _LETTER.finditer(text)]
    return _joined(sorted(found, key=lambda atom: (atom.start, atom.end)), text)


def items(text: str) -> list[str]:
    """Lines that are items of a list, if there are two or more."""
    found = [match[0].strip() for match in _ITEM.finditer(text)]
    return found if len(found) > 1 else []


def _of_piece(piece: str, start: int) -> list[Atom]:
    if any(char in _OPERATORS for char in piece) and not any(char.isalnum() for char in piece):
        return [Atom(piece, start, start + len(piece), False)]
    if re.search(rf"[{_SPACELESS}]", piece):
        return _of_spaceless(piece, start)
    is_number = any(char.isnumeric() for char in piece)
    technical = _TECHNICAL.search(piece)
    core = piece.strip(".,;:?\"'\u201c\u201d\u2018\u2019*" if technical and not is_number else _AROUND)
    if not core or not (is_number or technical):
        return []
    start += piece.index(core)
    return [Atom(core, start, start + len(core), is_number)]


def _of_spaceless(piece: str, start: int) -> list[Atom]:
    """Numbers with the character behind them, which may be a unit, and numbers in signs of their own."""
    found = []
    for match in _RUN.finditer(piece):
        core = match["run"].strip(_AROUND)
        if any(char.isnumeric() for char in core):
            found.append(Atom(core + match["unit"], start + match.start(), start + match.end(), True))
        elif core and _TECHNICAL.search(core):
            found.append(Atom(core, start + match.start("run"), start + match.end("run"), False))
    for place, char in enumerate(piece):
        if char.isnumeric() and char != ONE and re.match(f"[{_SPACELESS}]", char):
            found.append(Atom(char, start + place, start + place + 1, True))
    return found


def _joined(some: list[Atom], text: str) -> list[Atom]:
    """Numbers that stand side by side are one, with the currency before them."""
    found: list[Atom] = []
    for atom in some:
        before = found[-1] if found else None
        between = text[before.end : atom.start] if before is not None else ""
        if (
            before is not None
            and before.number
            and atom.number
            and atom.start >= before.end
            and not between.strip(" ,")
        ):
            found[-1] = Atom(before.text + between + atom.text, before.start, atom.end, True)
            continue
        if atom.number:
            word = text[max(0, atom.start - 4) : atom.start].rstrip(" ")
            if (money := _CURRENCY.search(word)) and money.end() == len(word):
                atom = Atom(f"{money[0]} {atom.text}", atom.start, atom.end, True)
        found.append(atom)
    return found

"""What a rewrite may not touch, found in a text: numbers, quotations, code, answer options, links, formulas, slots.

Whatever is in doubt counts as protected: a rewrite that is refused costs an improvement, one that changes a fact costs
the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from preftune.prompting.number_words import NUMBER_WORD, UNIT

Kind = Literal["number", "counter", "quotation", "code", "option", "link", "formula", "slot", "mark"]


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of a text.

    Attributes:
        start: its first character.
        end: the one after its last.
        kind: what it is. A counter is the number of a list item or of a step.
        text: itself.
    """

    start: int
    end: int
    kind: Kind
    text: str


Mark = str | re.Pattern[str] | tuple[int, int]  # a text, a pattern, or first character and the one after the last

_DIGIT = r"\d\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u2089\u2150-\u2189\u2460-\u249b"
_LETTER = "A-Za-z_\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u0400-\u04ff"  # of scripts with word spaces
_MONEY = "$\u20ac\u00a3\u00a5\u20b9"
NUMBER = re.compile(
    rf"""
    (?:(?<![\w)\]}}.,])[+\u2212-])?                        # a sign, which follows no operand
    (?:[{_MONEY}][ ]?)?
    (?:(?<![{_LETTER}{_DIGIT}])[{_LETTER}]+-?)?            # Catch-22, x2
    [{_DIGIT}]
    (?:[{_DIGIT}{_LETTER}]                                 # 5am, 3rd
      |[.,:/'\u2019\u066b\u066c\u2013-](?=[{_DIGIT}])      # 1,200.50  12:30  3/4  7/9/1972  2026-11-22  10-12
      |[\u00a0\u202f\u2009](?=\d\d\d(?!\d))                # 1 200 with a space that does not break
    )*
    (?:[ \u00a0\u202f]?(?:[%\u2030{_MONEY}]|\u00b0[ ]?[CFK]?|(?:{UNIT}))(?![{_LETTER}{_DIGIT}]))?
    """,
    re.VERBOSE,
)
# A number that counts items or steps: "2." at the begin of a line, "(2)", "Step 2".
COUNTER = re.compile(
    r"(?m)(?:^[ \t]*(?:[-*#>]+[ \t]*)*(?:\*\*)?|\b(?:steps?|part|point|phase|rule|schritt|\u00e9tape|etape|paso|passo|"
    r"\u0448\u0430\u0433)[ ]#?|\u7b2c|\u6b65\u9aa4)(?P<line>\d{1,2})(?=[.):\u3001](?:\s|\*\*|$)|[:,]?(?:\s|$)|\u6b65)|"
    r"(?<![\w)])\((?P<round>\d{1,2})\)(?=\s)",
    re.IGNORECASE,
)
_AT_LINE = re.compile(r"[.):\u3001]")

_QUOTES = (
    "\u201c[^\u201c\u201d]*\u201d",
    "\u201e[^\u201c\u201d\u201e]*[\u201c\u201d]",
    "(?<!\\w)\u201a[^\u2018\u2019\u201a\\n]*[\u2018\u2019](?!\\w)",
    "\u00ab[^\u00ab\u00bb]*\u00bb",
    "(?<!\\w)(?<!\\S\\s)\u00bb(?=\\S)[^\u00ab\u00bb]*\u00ab(?!\\w)",
    "\u2039[^\u2039\u203a]*\u203a",
    "[\u300c\uff62][^\u300c\u300d\uff63]*[\u300d\uff63]",
    "\u300e[^\u300e\u300f]*\u300f",
    "\u300a[^\u300a\u300b]*\u300b",
    "\u2018[^\u2018\n]*?\u2019(?!\\w)",
    '(?<![\\w"])"(?=[^\\s"])[^"]*"(?!\\w)',
    "(?<![\\w'])'(?=[^\\s'])(?:[^'\\n]|(?<=\\w)'(?=\\w))*(?<=\\S)'(?!\\w)",
)
_QUOTATION = re.compile("|".join(_QUOTES))
_CODE = re.compile(
    r"(?ms)^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*\n.*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*\r?$|\Z)"
    r"|(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)(?P=ticks)(?!`)"
    r"|</?[A-Za-z][^<>\n]*>"  # markup
)
_LINK = re.compile(
    r"(?i)\b(?:https?|ftp|file)://[^\s<>\"`]+|(?<![\w@.])www\.[^\s<>\"`]+|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
)
_LINK_END = ".,;:!?'\u2019\u201d*_"
_SLOT = re.compile(
    r"\{\{[^{}\n]{1,200}\}\}|\$?\{[^{}\s][^{}\n]{0,200}\}|%\(\w+\)[sdfr]|%[sd]\b"
    r"|<<[^<>\n]{1,200}>>|\[[A-Z][A-Z0-9_ ]+\]"
    r"|\b[DMYdmyh]{1,4}([/.-])[DMYdmy]{1,4}\1[DMYdmy]{2,4}\b"  # MM/DD/YYYY
)
_MARKED = re.compile(r"(?s)\[\[(?:(?!\[\[).)+?\]\]")
_LATEX = re.compile(
    r"(?s)\$\$.+?\$\$|\\\((?:(?!\\\().)+?\\\)|\\\[(?:(?!\\\[).)+?\\\]"
    r"|\\begin\{(?P<name>\w+\*?)\}(?:(?!\\begin\{(?P=name)\}).)*?\\end\{(?P=name)\}"
    r"|(?<![\\$\w])\$(?=[^\s$])[^$\n]*(?<![\s\\])\$(?![\d$\w])|\\[A-Za-z]+(?:\{[^{}\n]*\})+"
)
# A run of numbers, brackets, operators, or of logical words, with spaces in between.
_OPERATOR = (
    r"[-+*/^=<>\u00d7\u00f7\u00b7\u2264\u2265\u2260\u2248\u00b1\u2212\u2208\u222a\u2229\u2227\u2228\u00ac\u2192|&]+"
)
_TERM = rf"(?:[{_DIGIT}]+(?:[.,][{_DIGIT}]+)*[a-z]?|(?<![\w'])[b-zB-HJ-Z](?![\w'])|[()\[\]{{}}]|{_OPERATOR})"
_FORMULA = re.compile(rf"{_TERM}(?:[ \t]*{_TERM})+")
_COMPUTES = re.compile(rf"(?=[^\d]*\d)(?s:.*?)[\w)\]}}][ \t]*{_OPERATOR}[ \t]*[(\[{{-]*[ \t]*\w")
_BRACKETS = re.compile(r"[()\[\]{}<>]")
_LOGIC_WORD = r"(?:\b(?:True|False|not|and|or|xor|implies)\b|[()])"
_LOGIC = re.compile(rf"{_LOGIC_WORD}(?:[ \t]*{_LOGIC_WORD})+")

_HEADER = re.compile(
    r"(?im)^[ \t]*(?:\*\*)?(?:answer )?(?:options?|choices|alternatives|candidates|optionen|antwortm\u00f6glichkeiten|"
    r"auswahl|opciones|opzioni|choix|op\u00e7\u00f5es|r\u00e9ponses possibles|"
    r"\u0432\u0430\u0440\u0438\u0430\u043d\u0442\u044b(?: \u043e\u0442\u0432\u0435\u0442\u0430)?|"
    r"\u9009\u9879|\u9078\u9805|\u9078\u629e\u80a2)(?:\*\*)?"
    r"[ \t]*[:\uff1a](?:\*\*)?"
)
_LETTERED = re.compile(  # also with the full-width brackets and stops of East Asian texts
    r"(?m)(?<![\w(\uff08])(?:[(\uff08](?P<both>[A-Za-z])[)\uff09]|(?P<close>[A-Za-z])[)\uff09]|"
    r"(?:^[ \t]*)(?:\*\*)?(?P<begin>[A-Z])[.:\uff0e\uff1a\u3001])(?=[ \t\u3000]*\S)"
)
_LINE = re.compile(r"[^\r\n]+")


def spans(text: str, marks: Iterable[Mark] = ()) -> list[Span]:
    """All that is protected, by what was found; stretches may overlap."""
    found = [*_of(_QUOTATION, "quotation", text), *_of(_CODE, "code", text), *_links(text)]
    found += [*_of(_SLOT, "slot", text), *_of(_MARKED, "mark", text), *_of(_LATEX, "formula", text), *_formulas(text)]
    found += [*options(text), *numbers(text), *_of(NUMBER_WORD, "number", text), *_marked(text, marks)]
    return sorted(found)


def merged(found: Sequence[Span], text: str) -> list[Span]:
    """Stretches that overlap as one, of the kind of the one that holds all others; a mark if none does."""
    together: list[list[Span]] = []
    end = -1
    for span in sorted(found):
        if span.start < end:
            together[-1].append(span)
        else:
            together.append([span])
        end = max(end, span.end)
    whole = []
    for some in together:
        start, end = some[0].start, max(span.end for span in some)
        longest = max(some, key=lambda span: (span.end - span.start, span.kind == "option", span.kind == "counter"))
        kind = longest.kind if longest.end - longest.start == end - start else "mark"
        whole.append(Span(start, end, kind, text[start:end]))
    return whole


def numbers(text: str) -> list[Span]:
    """Numbers with their signs, currencies and units, and those that only count items or steps."""
    counted = set()
    for match in COUNTER.finditer(text):
        place = match.start("line") if match["line"] else match.start("round")
        line = text[text.rfind("\n", 0, place) + 1 : place].strip(" \t-*#>")
        # at the begin of a line, only punctuation tells an item from a sentence that begins with a number
        if match["round"] or line or _AT_LINE.match(text, match.end("line")):
            counted.add(place)
    found = []
    for match in NUMBER.finditer(text):
        kind: Kind = "counter" if match.start() in counted and match[0].isdecimal() else "number"
        found.append(Span(match.start(), match.end(), kind, match[0]))
    return found


def options(text: str) -> list[Span]:
    """Answer options: (A) ... (B) ..., A) ..., A. ..., a list after "Options:", or what follows it on its line."""
    found = []
    for run in _lettered(text):
        for match, following in pairwise([*run, None]):
            assert match is not None
            begin = match.start() + len(match[0]) - len(match[0].lstrip())
            line = _LINE.match(text, match.start())
            end = line.end() if line else len(text)
            if following is not None and following.start() < end:
                end = following.start()
            found.append(_stripped(begin, end, text))
    known = [(span.start, span.end) for span in found]
    for header in _HEADER.finditer(text):
        for span in _listed(text, header.end()):
            if not any(start < span.end and span.start < end for start, end in known):
                found.append(span)
    return sorted(found)


def _lettered(text: str) -> Iterator[list[re.Match[str]]]:
    """Runs of two or more letters in one style, from A on."""
    for style in ("both", "close", "begin"):
        run: list[re.Match[str]] = []
        for match in _LETTERED.finditer(text):
            letter = match[style]
            if letter is None:
                continue
            first = letter in "Aa"
            if run and ord(letter) == ord(run[-1][style]) + 1:
                run.append(match)
            else:
                if len(run) > 1:
                    yield run
                run = [match] if first else []
        if len(run) > 1:
            yield run


def _listed(text: str, start: int) -> Iterator[Span]:
    """What follows "Options:" on its line; else the lines below it, up to an empty one."""
    end = text.find("\n", start)
    rest = text[start : end if end >= 0 else len(text)]
    if rest.strip():
        yield _stripped(start, start + len(rest), text)
        return
    place = end + 1
    while end >= 0 and place < len(text):
        end = text.find("\n", place)
        stop = end if end >= 0 else len(text)
        if not text[place:stop].strip():
            return
        yield _stripped(place, stop, text)
        place = stop + 1


def _stripped(start: int, end: int, text: str) -> Span:
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    end = start + len(inside.strip())
    return Span(start, end, "option", text[start:end])


def _of(pattern: re.Pattern[str], kind: Kind, text: str) -> Iterator[Span]:
    for match in pattern.finditer(text):
        blank_line = kind == "quotation" and re.search(r"\n[ \t\r]*\n", match[0])
        if match[0] and not blank_line:  # a mark that was left open does not quote paragraphs
            yield Span(match.start(), match.end(), kind, match[0])


def _links(text: str) -> Iterator[Span]:
    for match in _LINK.finditer(text):
        link = match[0].rstrip(_LINK_END)
        while link.endswith((")", "]", "}")) and link.count(link[-1]) > link.count(
            {")": "(", "]": "[", "}": "{"}[link[-1]]
        ):
            link = link[:-1].rstrip(_LINK_END)
        yield Span(match.start(), match.start() + len(link), "link", link)


def _formulas(text: str) -> Iterator[Span]:
    for match in _FORMULA.finditer(text):
        run = match[0].strip(" \t+*/^<>|&-")
        brackets = len(_BRACKETS.findall(run))
        only_brackets = brackets > 1 and brackets == len("".join(run.split()))
        if only_brackets or brackets > 3 or _COMPUTES.match(run) or ("=" in run and len(run) > 2):
            start = match.start() + match[0].index(run)
            yield Span(start, start + len(run), "formula", run)
    for match in _LOGIC.finditer(text):
        if "True" in match[0] or "False" in match[0]:
            yield Span(match.start(), match.end(), "formula", match[0])


def _marked(text: str, marks: Iterable[Mark]) -> Iterator[Span]:
    for mark in marks:
        if isinstance(mark, tuple):
            start, end = mark
            if not 0 <= start < end <= len(text):
                raise ValueError(f"the marked span {mark} lies outside a text of {len(text)} characters")
            yield Span(start, end, "mark", text[start:end])
        elif mark:
            pattern = re.compile(re.escape(mark)) if isinstance(mark, str) else mark
            yield from _of(pattern, "mark", text)

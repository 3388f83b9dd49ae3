"""Answers that are a sequence: words in their order, brackets in theirs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from preftune.data.fields import Unfit
from preftune.prompting.benchmarks.marks import after_mark, last_line
from preftune.prompting.benchmarks.scoring import Scorer

if TYPE_CHECKING:
    from preftune.prompting.benchmarks.base import BenchmarkQuestion

BRACKETS = "()[]{}<>"
SORTED = re.compile(r"\b(?:sorted|order(?:ed)?|list|sequence|alphabetically)\b[^\n:]{0,60}:", re.IGNORECASE)
COUNT = re.compile(r"\(?\d+[.):]")  # "1." of a numbered list


class Words(Scorer):
    """The words of a sorted list, in their order and no others, with any marks between them."""

    def read(self, question: BenchmarkQuestion, response: str) -> str | None:  # noqa: D102
        wanted = self.gold(question).split()
        place = after_mark(response)
        if place is None:
            marks = list(SORTED.finditer(response))
            place = response[marks[-1].end() :] if marks and response[marks[-1].end() :].strip() else response
        said = [word for word in map(_word, place.split()) if word]
        at = [i for i, word in enumerate(said) if word in wanted]
        if not at:
            return None
        found = said[at[0] : at[-1] + 1]
        if len(found) >= 2 * len(wanted):  # the list is said twice, unsorted first
            found = found[-len(wanted) :]
        return " ".join(found)

    def gold(self, question: BenchmarkQuestion) -> str:  # noqa: D102
        words = [word for word in map(_word, question.gold.split()) if word]
        if not words:
            raise Unfit(f"the answer {question.gold!r} has no words")
        return " ".join(words)


class Brackets(Scorer):
    """The brackets that close a sequence, in their order, with or without the sequence itself before them."""

    def read(self, question: BenchmarkQuestion, response: str) -> str | None:  # noqa: D102
        opened = _brackets(question.prompt.rpartition("Input:")[2])
        place = after_mark(response)
        for text in [place.split("\n")[0] if place else "", last_line(response), response]:
            found = _brackets(re.sub(r"\((?=\w)|(?<=\w)\)", "", text))  # "(1)" and "(a word)" are no brackets
            if found:
                return found.removeprefix(opened) or None
        return None

    def gold(self, question: BenchmarkQuestion) -> str:  # noqa: D102
        brackets = _brackets(question.gold)
        if not brackets:
            raise Unfit(f"the answer {question.gold!r} has no brackets")
        return brackets


def _word(text: str) -> str:
    """A word of a list, without the marks around it; empty for "1." and "-"."""
    if COUNT.fullmatch(text):
        return ""
    text = COUNT.sub("", text, count=1) if COUNT.match(text) and len(text) > 3 else text
    return text.lower().strip(".,;:!?*_`\"'()[]{}<>-\u2013\u2014\u2018\u2019\u201c\u201d\u2022")


def _brackets(text: str) -> str:
    return "".join(character for character in text if character in BRACKETS)

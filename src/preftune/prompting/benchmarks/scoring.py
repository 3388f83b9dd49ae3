"""A response -> the answer in it -> right or wrong, exactly.

exact                     the response is the answer, but for white space around and within
number                    the last line "#### N", \\boxed{N}, "the answer is N", or else the last number
choice                    one of the options, by letter or by text
contains                  the answer stands somewhere in the response, as whole words
regex                     the answer is a pattern that must be found
words                     the answer's words in their order (a sorted list)
brackets                  the answer's brackets in their order
package.module:function   takes response and answer; gives true, false, or None where there is no answer
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from preftune.data.fields import Unfit
from preftune.errors import PreftuneError
from preftune.importing import imported

if TYPE_CHECKING:
    from preftune.prompting.benchmarks.base import BenchmarkQuestion


@dataclass(frozen=True)
class Scored:
    """What became of a response.

    Attributes:
        right: whether it answers rightly.
        answer: what it answers; None if no answer was found, which is wrong too.
    """

    right: bool
    answer: str | None


class Scorer(ABC):
    """Compares the answer in a response with the right one."""

    @abstractmethod
    def read(self, question: BenchmarkQuestion, response: str) -> str | None:
        """The answer in a response, in one form for like answers; None if there is none."""

    def gold(self, question: BenchmarkQuestion) -> str:
        """The right answer in that form.

        Raises:
            Unfit: if it is no answer that this scorer can read.
        """
        return question.gold

    def check(self, question: BenchmarkQuestion) -> None:
        """Raises Unfit for a question that it cannot score."""
        self.gold(question)

    def score(self, question: BenchmarkQuestion, response: str) -> Scored:
        """What became of a response."""
        answer = self.read(question, response)
        return Scored(answer is not None and answer == self.gold(question), answer)


class Exact(Scorer):
    """The response is the answer; upper and lower case differ."""

    def read(self, question: BenchmarkQuestion, response: str) -> str | None:  # noqa: D102
        return " ".join(response.split()) or None

    def gold(self, question: BenchmarkQuestion) -> str:  # noqa: D102
        return " ".join(question.gold.split())


class Contains(Scorer):
    """The answer stands in the response, as whole words; upper and lower case are alike."""

    def read(self, question: BenchmarkQuestion, response: str) -> str | None:  # noqa: D102
        return " ".join(response.split()) or None

    def score(self, question: BenchmarkQuestion, response: str) -> Scored:  # noqa: D102
        answer = self.read(question, response)
        gold = " ".join(question.gold.split())
        return Scored(answer is not None and said(gold, answer), gold if answer and said(gold, answer) else answer)


class Regex(Scorer):
    """The answer is a regular expression, which must be found in the response."""

    def read(self, question: BenchmarkQuestion, response: str) -> str | None:  # noqa: D102
        found = re.search(question.gold, response)
        return None if found is None else found[0]

    def check(self, question: BenchmarkQuestion) -> None:  # noqa: D102
        try:
            re.compile(question.gold)
        except re.error as error:
            raise Unfit(f"the answer {question.gold!r} is no regular expression ({error}): mend it") from None

    def score(self, question: BenchmarkQuestion, response: str) -> Scored:  # noqa: D102
        answer = self.read(question, response)
        return Scored(answer is not None, answer)


class ByFunction(Scorer):
    """A user's function of response and answer.

    Args:
        name: package.module:function.
    """

    def __init__(self, name: str) -> None:
        self.name, self.function = name, _function(name)

    def read(self, question: BenchmarkQuestion, response: str) -> str | None:  # noqa: D102
        return response.strip() or None

    def score(self, question: BenchmarkQuestion, response: str) -> Scored:  # noqa: D102
        try:
            right = self.function(response, question.gold)
        except PreftuneError:
            raise
        except Exception as error:  # whatever a user's function does
            problem = " ".join(str(error).split())[:200]
            raise PreftuneError(
                f"scorer {self.name} failed on the response to {question.where} ({type(error).__name__}: {problem})"
            ) from error
        if right is not None and (not isinstance(right, bool | int | float) or right not in (0, 1)):
            raise PreftuneError(f"scorer {self.name} gave {right!r}, expected true, false or None")
        return Scored(bool(right), None if right is None else self.read(question, response))


def said(text: str, response: str) -> bool:
    """True if a text stands in a response as whole words, whatever the case.

    Example:
        >>> said("valid", "It is Valid."), said("valid", "It is invalid.")
        (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", response, re.IGNORECASE) is not None


def known() -> list[str]:
    """Names of the built-in scorers."""
    return list(_scorers())


@cache
def scorer_named(name: str) -> Scorer:
    """A scorer by its name.

    Raises:
        PreftuneError: if there is none.
    """
    scorers = _scorers()
    if name in scorers:
        return scorers[name]()
    if ":" in name:
        return ByFunction(name)
    near = difflib.get_close_matches(name, scorers, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise PreftuneError(f"there is no scorer {name!r}, expected {', '.join(scorers)} or package.module:function{hint}")


def _scorers() -> dict[str, Callable[[], Scorer]]:
    from preftune.prompting.benchmarks.choices import Choice
    from preftune.prompting.benchmarks.numbers import Number
    from preftune.prompting.benchmarks.sequences import Brackets, Words

    return {
        "exact": Exact,
        "number": Number,
        "choice": Choice,
        "contains": Contains,
        "regex": Regex,
        "words": Words,
        "brackets": Brackets,
    }


def _function(name: str) -> Callable[[str, str], Any]:
    module, _, thing = name.partition(":")
    try:
        found = getattr(imported(module), thing, None)
    except (Exception, SystemExit) as error:  # whatever a user's module does while it is imported
        problem = " ".join(str(error).split())
        raise PreftuneError(f"scorer {name}: cannot import {module} ({type(error).__name__}: {problem})") from error
    if not callable(found):
        raise PreftuneError(f"scorer {name}: {module} has no function {thing!r}: define it there")
    function: Callable[[str, str], Any] = found
    return function

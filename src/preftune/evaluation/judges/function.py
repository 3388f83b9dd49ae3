"""Judges written in Python: a function that scores one answer or compares two, and known truths."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preftune.data.builders.base import Question, Task
from preftune.data.fields import shown
from preftune.errors import PreftuneError
from preftune.evaluation.judges.base import Comparison, Judge, ScoringJudge, Tell, Verdict, by_orders, digest

SCORES, COMPARES = ("prompt", "response", "row"), ("prompt", "a", "b", "row")
SAYS = {"a": 1.0, "b": 0.0, "tie": 0.5}
REFERENCES = ("answer", "reference", "ground_truth", "chosen")  # fields that hold a right answer, best first


class ScoringFunction(ScoringJudge):
    """A function of `prompt`, `response` and `row` (those of them that it names) that gives a number.

    Args:
        name: as on the command line.
        function: what scores.
        fingerprint: of its code.
    """

    def __init__(self, name: str, function: Callable[..., Any], fingerprint: str) -> None:
        self.name, self.function, self.fingerprint = name, function, fingerprint
        self.wants = named(function, SCORES, name)

    def scores(self, answers: Sequence[tuple[Comparison, str]]) -> Sequence[float | None]:  # noqa: D102
        found: list[float | None] = []
        for comparison, text in answers:
            given = {"prompt": comparison.prompt, "response": text, "row": comparison.row}
            found.append(called(self.name, comparison, self.function, {name: given[name] for name in self.wants}))
        return found


class ComparingFunction(Judge):
    """A function of `prompt`, `a`, `b` and `row` (those of them that it names) that gives "a", "b" or "tie"; it is
    asked in both orders.

    Arguments as of `ScoringFunction`.
    """

    def __init__(self, name: str, function: Callable[..., Any], fingerprint: str) -> None:
        self.name, self.function, self.fingerprint = name, function, fingerprint
        self.wants = named(function, COMPARES, name)

    def verdicts(self, comparisons: Sequence[Comparison], tell: Tell = lambda _: None) -> list[Verdict]:  # noqa: D102
        found = []
        for each in comparisons:
            first, second = self._said(each, each.a, each.b), self._said(each, each.b, each.a)
            of_a = None if second is None else 1 - second
            found.append(by_orders(first, of_a, reason="the judge gave no verdict"))
            tell(1)
        return found

    def _said(self, comparison: Comparison, a: str, b: str) -> float | None:
        given = {"prompt": comparison.prompt, "a": a, "b": b, "row": comparison.row}
        said = called(self.name, comparison, self.function, {name: given[name] for name in self.wants})
        if said is None:
            return None
        if not isinstance(said, str) or said.strip().lower() not in SAYS:
            raise PreftuneError(
                f"judge {self.name} gave {shown(said)} on {comparison.key}, expected 'a', 'b' or 'tie', or None for no "
                "verdict"
            )
        return SAYS[said.strip().lower()]


class TaskJudge(ScoringJudge):
    """Right answers over wrong ones, by a task's exact checker (GSM8K: the final number).

    The right answer is taken from the row: its `answer`, `reference` or `ground_truth`, else `chosen`.

    Args:
        name: as on the command line.
        task: checks answers.
    """

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.task, self.fingerprint = name, task, digest("task", name, code_of(type(task)))

    def scores(self, answers: Sequence[tuple[Comparison, str]]) -> Sequence[float | None]:  # noqa: D102
        return [float(self._right(comparison, text)) for comparison, text in answers]

    def _right(self, comparison: Comparison, text: str) -> bool:
        row = comparison.row
        reference = next((row[name] for name in REFERENCES if isinstance(row.get(name), str)), None)
        if reference is None:
            raise PreftuneError(
                f"{comparison.key} has no right answer for judge {self.name}: expected one of the fields "
                f"{', '.join(REFERENCES)}"
            )
        question = Question(comparison.key, comparison.prompt, reference)
        if not self.task.check(question, reference):
            raise PreftuneError(
                f"the right answer of {comparison.key} is {shown(reference)}, which judge {self.name} cannot read: is "
                "it data of this task?"
            )
        return called(self.name, comparison, self.task.check, {"question": question, "response": text}) is True


def by_function(name: str, function: Callable[..., Any]) -> Judge:
    """The judge that a function is: it compares if it takes `a` and `b`, else it scores.

    Raises:
        PreftuneError: if it asks for arguments that a judge does not get.
    """
    parameters = inspect.signature(function).parameters
    fingerprint = digest("function", name, code_of(function))
    kind = ComparingFunction if {"a", "b"} <= parameters.keys() else ScoringFunction
    return kind(name, function, fingerprint)


def named(function: Callable[..., Any], known: Sequence[str], name: str) -> tuple[str, ...]:
    """Which of the known arguments a function takes.

    Raises:
        PreftuneError: if it takes none of them, or needs others.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return tuple(known)
    wants = tuple(each.name for each in parameters if each.name in known)
    needs = [each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_POSITIONAL]
    strange = next((each for each in needs if each not in known), None)
    if strange is not None or not wants:
        found = f"the argument {strange!r}" if strange is not None else "none of these"
        raise PreftuneError(
            f"judge {name} takes {found}, expected a function of {', '.join(SCORES)} that gives a number, or of "
            f"{', '.join(COMPARES)} that gives 'a', 'b' or 'tie' (any of them may be left out)"
        )
    return wants


def called(name: str, comparison: Comparison, function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What a user's function gives.

    Raises:
        PreftuneError: if it fails.
    """
    try:
        return function(**given)
    except PreftuneError:
        raise
    except Exception as error:  # whatever a user's function does
        problem = " ".join(str(error).split())[:200]
        raise PreftuneError(f"judge {name} failed on {comparison.key} ({type(error).__name__}: {problem})") from error


def code_of(thing: Any) -> str:
    """A name for the code of a function or class: that of its whole file, whose other parts it may use."""
    try:
        file = inspect.getsourcefile(thing)
        return hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()
    except (TypeError, OSError):  # built in, or not from a file
        return repr(thing)

"""Exact checkers of responses: who says that an answer is right.

number, choice, exact, contains, ...     a scorer of the benchmarks (see `benchmarks.scoring`)
gsm8k                                    a task whose answers can be checked (see `data.builders`)
package.module:Class                     such a task of one's own
package.module:function                  of a response and the right answer; gives true or false
benchmark                                each question's own scorer, where the prompts are those of a benchmark
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from preftune.data import builders
from preftune.data.builders.base import Question, Task
from preftune.data.fields import Unfit, shown
from preftune.errors import PreftuneError
from preftune.importing import imported
from preftune.prompting.benchmarks.base import BenchmarkQuestion, scorer_of
from preftune.prompting.benchmarks.scoring import Scorer, known, scorer_named
from preftune.prompting.naive import NaivePrompt, final_answer

OWN = "benchmark"


class Checker(ABC):
    """Says whether a response is right.

    Attributes:
        name: as on the command line.
    """

    name: str

    def ready(self, prompt: NaivePrompt) -> None:
        """Refuse a prompt whose right answer is missing, or cannot be read.

        Raises:
            PreftuneError: says which.
        """
        if prompt.ground_truth is None:
            raise PreftuneError(
                f"{prompt.where} has no right answer for checker {self.name}: add a column ground_truth, or "
                "name a judge"
            )
        why = self._unreadable(prompt)
        if why:
            raise PreftuneError(f"{prompt.where}: {why}")

    @abstractmethod
    def right(self, prompt: NaivePrompt, response: str) -> bool:
        """True if a response is right; False if it is wrong or holds no answer."""

    @abstractmethod
    def _unreadable(self, prompt: NaivePrompt) -> str:
        """Why the right answer cannot be read, if it cannot."""


def open_checker(name: str, questions: Sequence[BenchmarkQuestion] = ()) -> Checker:
    """A checker by its name on the command line.

    Args:
        name: one of those above.
        questions: of the benchmark that the prompts are of, if they are.

    Raises:
        PreftuneError: if there is none.
    """
    if name == OWN:
        if not questions:
            raise PreftuneError(
                f"checker {OWN} is for prompts of a benchmark, such as gsm8k=train.jsonl: name another one"
            )
        return BenchmarkChecker(questions)
    if name in builders.names():
        return TaskChecker(name, builders.get(name))
    if _is_task(name):
        return TaskChecker(name, builders.get(name))
    if ":" not in name and name not in known():
        names = [*known(), *builders.names(), OWN]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PreftuneError(
            f"there is no checker {name!r}, expected one of {', '.join(names)} or package.module:function{hint}"
        )
    return ScorerChecker(name, scorer_named(name))


class TaskChecker(Checker):
    """By a task's own check.

    Args:
        name: as on the command line.
        task: checks answers.
    """

    def __init__(self, name: str, task: Task) -> None:
        self.name, self._task = name, task

    def right(self, prompt: NaivePrompt, response: str) -> bool:  # noqa: D102
        return self._called(prompt, response) is True

    def _unreadable(self, prompt: NaivePrompt) -> str:
        if self._called(prompt, str(prompt.ground_truth)) is True:
            return ""
        return f"the right answer is {shown(prompt.ground_truth)}, which checker {self.name} cannot read"

    def _called(self, prompt: NaivePrompt, response: str) -> Any:
        question = Question(prompt.id, prompt.prompt, str(prompt.ground_truth))
        try:
            return self._task.check(question, response)
        except PreftuneError:
            raise
        except Exception as error:  # whatever a user's task does
            problem = " ".join(str(error).split())[:200]
            raise PreftuneError(
                f"checker {self.name} failed on {prompt.where} ({type(error).__name__}: {problem})"
            ) from error


class ScorerChecker(Checker):
    """By a scorer of the benchmarks.

    Args:
        name: as on the command line.
        scorer: compares answers.
    """

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name, self._scorer = name, scorer

    def right(self, prompt: NaivePrompt, response: str) -> bool:  # noqa: D102
        return self._scorer.score(self._question(prompt), response).right

    def _unreadable(self, prompt: NaivePrompt) -> str:
        try:
            self._scorer.check(self._question(prompt))
        except Unfit as unfit:
            return str(unfit)
        return ""

    def _question(self, prompt: NaivePrompt) -> BenchmarkQuestion:
        return BenchmarkQuestion(
            id=prompt.id,
            task=prompt.task or "",
            prompt=prompt.prompt,
            gold=final_answer(str(prompt.ground_truth)),
            scorer=self.name,
            where=prompt.where,
            options=prompt.options,
        )


class BenchmarkChecker(Checker):
    """By the scorer of each question.

    Args:
        questions: of a benchmark; prompts are known by their ids.
    """

    name = OWN

    def __init__(self, questions: Sequence[BenchmarkQuestion]) -> None:
        self._questions = {question.id: question for question in questions}

    def right(self, prompt: NaivePrompt, response: str) -> bool:  # noqa: D102
        question = self._questions[prompt.id]
        return scorer_of(question).score(question, response).right

    def _unreadable(self, prompt: NaivePrompt) -> str:
        return "" if prompt.id in self._questions else f"the prompt is no question of the benchmark (id {prompt.id!r})"


def _is_task(name: str) -> bool:
    module, colon, thing = name.partition(":")
    if not colon:
        return False
    try:
        found = getattr(imported(module), thing, None)
    except (Exception, SystemExit):  # whatever a user's module does: who opens it says what is wrong
        return False
    return isinstance(found, type) and issubclass(found, Task)

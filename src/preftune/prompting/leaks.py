"""What a rewritten prompt says that it should not know: the right answer, or text of worked answers.

Only what a rewrite adds counts: a question that names its own answer among the options leaks nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from preftune.data.doctor.words import Hashes, grams, words
from preftune.prompting.benchmarks.base import BenchmarkQuestion, letter, scorer_of
from preftune.prompting.benchmarks.choices import LETTER
from preftune.prompting.benchmarks.marks import HASHES, after_mark, boxed
from preftune.prompting.benchmarks.numbers import numbers_in, shown
from preftune.prompting.benchmarks.scoring import said

RUN = 8  # words


@dataclass(frozen=True)
class Leak:
    """What was found in one rewrite.

    Attributes:
        gold: it states the right answer, which the naive prompt does not.
        worked: it has a run of eight words of the question's own worked answer.
        training: of a training question or its answer.
        shot: of an example that stands before the question.
    """

    gold: bool = False
    worked: bool = False
    training: bool = False
    shot: bool = False

    @property
    def any(self) -> bool:
        """True if there is something."""
        return self.gold or self.worked or self.training or self.shot


class Training:
    """Runs of eight words of training questions and their answers.

    Args:
        questions: those that examples are taken from.
    """

    def __init__(self, questions: Iterable[BenchmarkQuestion]) -> None:
        self._id_of: dict[int, str] = {}
        for question in questions:
            for run in _runs(f"{question.prompt}\n{question.shown or question.gold}").tolist():
                # a run of several questions is a phrase of the benchmark
                self._id_of[run] = question.id if self._id_of.get(run, question.id) == question.id else ""

    def found(self, added: Hashes, question: BenchmarkQuestion) -> bool:
        """True if words that a rewrite added stand in one training question, other than the one that is asked."""
        return any(self._id_of.get(run, "") not in ("", question.id) for run in added.tolist())


def leak(
    question: BenchmarkQuestion,
    rewrite: str,
    shots: Iterable[BenchmarkQuestion] = (),
    training: Training | None = None,
) -> Leak:
    """What a rewrite of a question's prompt gives away.

    Args:
        question: the one that is asked.
        rewrite: the wording to look at.
        shots: the examples before it.
        training: what else it might have learned by heart.
    """
    if rewrite.strip() == question.prompt.strip():
        return Leak()
    added = np.setdiff1d(_runs(rewrite), _runs(question.prompt))
    own = _runs(question.shown) if len(words(question.shown)) >= RUN else np.empty(0, np.uint64)
    examples = [_runs(f"{one.prompt}\n{one.shown or one.gold}") for one in shots]
    return Leak(
        gold=states_gold(question, rewrite),
        worked=bool(len(np.intersect1d(added, own))),
        training=training is not None and training.found(added, question),
        shot=any(len(np.intersect1d(added, some)) for some in examples),
    )


def states_gold(question: BenchmarkQuestion, rewrite: str) -> bool:
    """True if a rewrite states the right answer more often than the naive prompt does, and not all options alike.

    Example:
        >>> from preftune.data.records import Where
        >>> question = BenchmarkQuestion(id="1", task="t", prompt="What is 2 + 5?", gold="7", scorer="number",
        ...                              where=Where("q", 0))
        >>> states_gold(question, "Add 2 and 5, which makes 7."), states_gold(question, "Add 2 and 5, step by step.")
        (True, False)
    """
    gold = scorer_of(question).gold(question)
    grown = _times(question, gold, rewrite) - _times(question, gold, question.prompt)
    others = [other for other in _answers(question) if other != gold]
    most = max(
        (_times(question, other, rewrite) - _times(question, other, question.prompt) for other in others), default=0
    )
    return grown > max(0, most)


def _answers(question: BenchmarkQuestion) -> list[str]:
    """What may be answered, in the form of the right answer."""
    if question.scorer != "choice":
        return []
    if LETTER.fullmatch(question.gold):
        return [letter(i) for i in range(len(question.options))]
    return list(question.options)


def _times(question: BenchmarkQuestion, answer: str, text: str) -> int:
    """How often a text states an answer."""
    if question.scorer == "number":
        return sum(shown(number) == answer for number in numbers_in(text))
    if question.scorer == "choice" and LETTER.fullmatch(answer):
        option = question.options[ord(answer) - ord("A")] if question.options else ""
        marked = [place for place in (boxed(text), after_mark(text), *HASHES.findall(text)) if place is not None]
        return (
            len(re.findall(rf"\({answer}\)|\boption {answer}\b", text))
            + sum(bool(re.match(rf"\W*{answer}\b", place)) for place in marked)
            + (_count(option, text) if option else 0)
        )
    if question.scorer == "brackets":
        squeezed = re.sub(r"\s", "", text)
        return squeezed.count(answer) if len(answer) > 1 else 0
    if question.scorer == "regex":
        return len(re.findall(answer, text))
    return _count(answer, text)


def _count(answer: str, text: str) -> int:
    if not said(" ".join(answer.split()), " ".join(text.split())):
        return 0
    return len(
        re.findall(rf"(?<!\w){re.escape(' '.join(answer.split()))}(?!\w)", " ".join(text.split()), re.IGNORECASE)
    )


def _runs(text: str) -> Hashes:
    found = words(text)
    return np.unique(grams(found, RUN)) if len(found) >= RUN else np.empty(0, np.uint64)

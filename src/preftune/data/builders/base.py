"""The contract of verifiable tasks: questions, and an exact checker of answers. No model is known here."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from preftune.data.sources import Source


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a task.

    Attributes:
        id: the same for the same question in any file; draws of pairs are functions of it.
        text: the question as the source has it.
        reference: the right answer, in the form that the task's checker reads.
    """

    id: str
    text: str
    reference: str


class Task(ABC):
    """A task whose answers can be checked. One file in this folder each; the file's stem is the task's name.

    Attributes:
        source: where questions come from if the user names no source; empty if the user must.
    """

    source: ClassVar[str] = ""

    @abstractmethod
    def questions(self, source: Source) -> Iterator[Question]:
        """The questions of a source (all that `sources.rows` reads), in its order.

        Raises:
            PreftuneError: if the source cannot be read or a row is no question of this task.
        """

    @abstractmethod
    def prompt(self, question: Question) -> str:
        """The prompt for a base model. A response to it must begin with a space, so that no token spans both."""

    @abstractmethod
    def instruction(self, question: Question) -> str:
        """The user's turn for a chat model."""

    @abstractmethod
    def check(self, question: Question, response: str) -> bool:
        """True if the response answers the question rightly; False if it is wrong or gives no answer."""


def right_over_wrong(
    right: Sequence[str], wrong: Sequence[str], max_pairs: int, seed: int, question: str
) -> list[tuple[str, str]]:
    """Pairs (chosen, rejected) of one question: all combinations, or `max_pairs` of them drawn with a seed.

    Texts that are equal up to surrounding space count once. The draw depends on the seed and the question's id alone,
    never on its place in a file.
    """
    combinations = list(product(_distinct(right), _distinct(wrong)))
    if len(combinations) > max_pairs:
        combinations = random.Random(f"{seed} {question}").sample(combinations, max_pairs)
    return combinations


def _distinct(texts: Sequence[str]) -> list[str]:
    """The first of each group of texts that are equal up to surrounding space, in order."""
    return list({text.strip(): text for text in reversed(texts)}.values())[::-1]

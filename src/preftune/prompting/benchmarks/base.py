"""The contract of benchmarks: questions with right answers, n-shot prompts around any wording, and exact scores."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from preftune.data.fields import Unfit
from preftune.data.records import Where
from preftune.data.sources import Row, Source, rows
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks.scoring import Scored, Scorer, scorer_named

NEXT = "\nQuestion:"  # where a model that knows no end goes on to ask itself


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkQuestion:
    """A question with its right answer.

    Attributes:
        id: the same for the same question in any file.
        task: what it belongs to: a subject, or the benchmark itself.
        prompt: the naive prompt: the question with its options, as the benchmark has it.
        gold: the right answer, in the form that its scorer compares: "72", "B", "Yes".
        scorer: who compares: a name of `scoring.SCORERS`, or package.module:function.
        options: what may be answered; for letters, the texts of A, B, and so on.
        listed: the part of the prompt that lists the options, as it stands there; empty if it lists none.
        shown: how the answer is written where the question is an example to another; empty: as gold.
        where: where it came from, for messages.
    """

    id: str
    task: str
    prompt: str
    gold: str
    scorer: str
    where: Where
    options: tuple[str, ...] = ()
    listed: str = ""
    shown: str = ""


@dataclass(frozen=True)
class Benchmark(ABC):
    """Questions of one kind, from the hub or from files. One file in this folder each; the class says its name.

    Attributes:
        source: all that `data.sources.rows` reads; None: from the hub.
        limit: most questions, drawn with the seed, tasks in turn; None: all.
        seed: of the questions drawn, and of the examples.
        name: on the command line.
        shots: examples before each question in the paper (FIPO, arXiv 2402.11811).
        hub: where the questions are if no source is given.
    """

    source: Source | None = None
    limit: int | None = None
    seed: int = 0
    name: ClassVar[str]
    shots: ClassVar[int] = 0
    hub: ClassVar[str] = ""

    @abstractmethod
    def _tests(self) -> list[BenchmarkQuestion]:
        """All questions that are asked, in the source's order."""

    @abstractmethod
    def _examples(self) -> list[BenchmarkQuestion]:
        """Questions that examples are taken from. They may be those that are asked: a question is never its own
        example."""

    @property
    def title(self) -> str:
        """The name in tables."""
        return self.name

    def counted_as(self, task: str) -> str:
        """The task that scores by task count a question's task to."""
        return task

    @cached_property
    def questions(self) -> list[BenchmarkQuestion]:
        """What is asked. What stands twice in the source is asked twice, as its published scores count it.

        Raises:
            PreftuneError: if the source cannot be read, or a row is no question of this benchmark.
        """
        found = self._tests()
        if self.limit is None or self.limit >= len(found):
            return found
        by_task: dict[str, list[int]] = {}
        for number in _shuffled(found, f"{self.seed} questions"):
            by_task.setdefault(found[number].task, []).append(number)
        turns = [(place, task, number) for task, some in by_task.items() for place, number in enumerate(some)]
        return [found[number] for number in sorted(number for _, _, number in sorted(turns)[: self.limit])]

    @cached_property
    def _pool(self) -> Mapping[str, list[BenchmarkQuestion]]:
        """Examples of each task, in the order in which they are taken."""
        pool: dict[str, list[BenchmarkQuestion]] = {}
        for question in {question.id: question for question in self._examples()}.values():
            pool.setdefault(question.task, []).append(question)
        return {task: [some[i] for i in _shuffled(some, f"{self.seed} examples {task}")] for task, some in pool.items()}

    @property
    def training(self) -> list[BenchmarkQuestion]:
        """All questions that examples are taken from."""
        return [question for some in self._pool.values() for question in some]

    def examples(self, question: BenchmarkQuestion, shots: int | None = None) -> list[BenchmarkQuestion]:
        """Examples to put before a question: of its task, and never itself. The same for all questions of a task, but
        for those that are examples themselves.

        Args:
            question: the one that is asked.
            shots: how many; None: as the paper.

        Raises:
            PreftuneError: if there are not so many.
        """
        wanted = self.shots if shots is None else shots
        if wanted == 0:
            return []
        some = [one for one in self._pool.get(question.task, []) if one.id != question.id][:wanted]
        if len(some) < wanted:
            raise PreftuneError(
                f"benchmark {self.title} has {len(some)} examples for task {question.task}, and {wanted} were asked "
                "for: name a source with more questions, or fewer shots"
            )
        return some

    def ask(self, question: BenchmarkQuestion, prompt: str | None = None, shots: int | None = None) -> str:
        """The text that is put to a generator: examples in their naive form, then the prompt.

        Args:
            question: the one that is asked.
            prompt: its wording: naive (None) or optimised. Options that it lost are put after it.
            shots: examples; None: as the paper. With none, the text is the prompt and nothing else.

        Raises:
            PreftuneError: as `examples`.
        """
        asked = with_options(question, question.prompt if prompt is None else prompt)
        examples = self.examples(question, shots)
        if not examples:
            return asked
        blocks = [f"Question: {one.prompt}\nAnswer: {one.shown or one.gold}" for one in examples]
        return "\n\n".join([*blocks, f"Question: {asked}\nAnswer:"])

    def score(self, question: BenchmarkQuestion, response: str) -> Scored:
        """What a response answers, and whether that is right. What a model wrote after an answer, when it went on to
        ask itself the next question, does not count."""
        return scorer_of(question).score(question, response.split(NEXT)[0])


def with_options(question: BenchmarkQuestion, prompt: str) -> str:
    """A prompt that lists all options of its question: as it is, or with the question's own list after it."""
    if not question.listed or all(option in prompt for option in question.options):
        return prompt
    return f"{prompt.rstrip()}\n{question.listed}"


def scorer_of(question: BenchmarkQuestion) -> Scorer:
    """Who scores a question."""
    return scorer_named(question.scorer)


def checked(question: BenchmarkQuestion) -> BenchmarkQuestion:
    """The same question, whose right answer its scorer can read.

    Raises:
        PreftuneError: if it cannot.
    """
    try:
        scorer_of(question).check(question)
    except Unfit as unfit:
        raise PreftuneError(f"{question.where}: {unfit}") from None
    return question


def read_rows(source: Source, split: str | None) -> list[Row]:
    """Rows of one split; all rows of a file and of a list, which have none."""
    without = Path(source).expanduser().is_file() if isinstance(source, str | Path) else not isinstance(source, Mapping)
    return list(rows(source, split=None if without else split))


def has_splits(source: Source) -> bool:
    """False for one file or a list: examples come from the same questions then."""
    if isinstance(source, str | Path):
        return not Path(source).expanduser().is_file()
    return isinstance(source, Mapping)


def lettered(options: Sequence[str]) -> str:
    """Options as a prompt lists them.

    Example:
        >>> print(lettered(["red", "blue"]))
        Options:
        (A) red
        (B) blue
    """
    return "\n".join(["Options:", *(f"({letter(i)}) {option}" for i, option in enumerate(options))])


def letter(number: int) -> str:
    """A for 0, B for 1."""
    return chr(ord("A") + number)


def _shuffled(some: Sequence[BenchmarkQuestion], seed: str) -> list[int]:
    """Their places in a random order, which is the same in whatever order they come."""
    found = sorted(range(len(some)), key=lambda i: some[i].id)
    random.Random(seed).shuffle(found)
    return found

"""The built-in tasks: chains of steps that small generators answer if they are asked for the steps."""

from __future__ import annotations

from typing import ClassVar

from preftune.data.records import Where
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks.base import Benchmark, BenchmarkQuestion
from preftune.prompting.naming import prompt_id

SIZES = {"test": 500, "train": 2000}
SEEDS = {"test": 1, "train": 0}


class Tasks(Benchmark):
    """Questions of five families for the built-in generators (`sandbox:north` and its like), each in a naive wording.
    `tasks` are 500 that no optimiser should learn from, `tasks=train` are 2,000 others."""

    name: ClassVar[str] = "tasks"
    shots: ClassVar[int] = 0

    def _tests(self) -> list[BenchmarkQuestion]:
        split = "test" if self.source is None else str(self.source)
        if split not in SIZES:
            raise PreftuneError(f"the built-in tasks have no part {split!r}, expected tasks=test or tasks=train")
        return _questions(split)

    def _examples(self) -> list[BenchmarkQuestion]:
        return _questions("train")


def _questions(split: str) -> list[BenchmarkQuestion]:
    from preftune.sandbox.tasks.asking import asked

    return [
        BenchmarkQuestion(
            id=prompt_id(one.prompt),
            task=one.question.family,
            prompt=one.prompt,
            gold=one.question.answer,
            scorer="preftune.sandbox.tasks.families:score",
            shown=one.question.worked,
            where=Where(f"built-in tasks, {split}", number),
        )
        for number, one in enumerate(asked(SIZES[split], SEEDS[split], held_out=split == "test"))
    ]

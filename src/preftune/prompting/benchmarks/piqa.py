"""PiQA: which of two ways reaches a goal in the physical world (Bisk et al. 2020, arXiv 1911.11641)."""

from __future__ import annotations

from typing import ClassVar

from preftune.data.sources import Source
from preftune.prompting.benchmarks.base import Benchmark, BenchmarkQuestion, has_splits, read_rows
from preftune.prompting.benchmarks.multiple_choice import number, question, texts


class PiQA(Benchmark):
    """A goal and two ways; 1,838 questions in its validation split (the answers of its test split are not public)."""

    name: ClassVar[str] = "piqa"
    shots: ClassVar[int] = 3
    hub: ClassVar[str] = "baber/piqa"  # the same data as ybisk/piqa, without a script to run

    def _tests(self) -> list[BenchmarkQuestion]:
        return self._read("validation")

    def _examples(self) -> list[BenchmarkQuestion]:
        return self._read("train")

    def _read(self, split: str) -> list[BenchmarkQuestion]:
        source: Source = self.source or self.hub
        found = []
        for where, row in read_rows(source, split if has_splits(source) else None):
            goal, *ways = texts(row, where, "PiQA", "goal", "sol1", "sol2")
            found.append(question(where, self.name, goal, ways, number(row, where, "PiQA", "label")))
        return found

"""CosmosQA: what is likely behind an everyday story (Huang et al. 2019, arXiv 1909.00277)."""

from __future__ import annotations

from typing import ClassVar

from preftune.data.sources import Source
from preftune.prompting.benchmarks.base import Benchmark, BenchmarkQuestion, has_splits, read_rows
from preftune.prompting.benchmarks.multiple_choice import number, question, texts


class CosmosQA(Benchmark):
    """A story, a question and four answers; 2,985 questions in its validation split (those of its test split have no
    public answers)."""

    name: ClassVar[str] = "cosmosqa"
    shots: ClassVar[int] = 5
    hub: ClassVar[str] = "Samsoup/cosmos_qa"  # the same data as allenai/cosmos_qa, without a script to run

    def _tests(self) -> list[BenchmarkQuestion]:
        return self._read("validation")

    def _examples(self) -> list[BenchmarkQuestion]:
        return self._read("train")

    def _read(self, split: str) -> list[BenchmarkQuestion]:
        source: Source = self.source or self.hub
        names = ("context", "question", "answer0", "answer1", "answer2", "answer3")
        found = []
        for where, row in read_rows(source, split if has_splits(source) else None):
            story, asked, *answers = texts(row, where, "CosmosQA", *names)
            label = number(row, where, "CosmosQA", "label")
            found.append(question(where, self.name, f"{story}\n{asked}", answers, label))
        return found

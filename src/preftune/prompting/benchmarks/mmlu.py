"""MMLU: exam questions of 57 subjects (Hendrycks et al. 2021, arXiv 2009.03300)."""

from __future__ import annotations

from typing import Any, ClassVar

from preftune.data.records import Where
from preftune.data.sources import Source
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks.base import Benchmark, BenchmarkQuestion, has_splits, letter, read_rows
from preftune.prompting.benchmarks.multiple_choice import question, texts

CHOICES = 4


class MMLU(Benchmark):
    """Four answers each; 14,042 questions in its test split, five examples to each subject in its dev split."""

    name: ClassVar[str] = "mmlu"
    shots: ClassVar[int] = 5
    hub: ClassVar[str] = "cais/mmlu:all"

    def _tests(self) -> list[BenchmarkQuestion]:
        return self._read("test")

    def _examples(self) -> list[BenchmarkQuestion]:
        return self._read("dev")

    def _read(self, split: str) -> list[BenchmarkQuestion]:
        source: Source = self.source or self.hub
        found = []
        for where, row in read_rows(source, split if has_splits(source) else None):
            (asked,) = texts(row, where, "MMLU", "question")
            subject = row.get("subject") or self.name
            found.append(question(where, str(subject), asked, _choices(row, where), _label(row, where)))
        return found


def _choices(row: dict[str, Any], where: Where) -> list[str]:
    choices = row.get("choices")
    if choices is None:  # as in the authors' own tables
        choices = [row.get(letter(i)) for i in range(CHOICES)]
    if not isinstance(choices, list) or len(choices) != CHOICES or any(choice is None for choice in choices):
        raise PreftuneError(f"{where}: expected choices, a list of four texts, or A, B, C and D, got {choices!r}")
    return [str(choice).strip() for choice in choices]


def _label(row: dict[str, Any], where: Where) -> int:
    answer = row.get("answer")
    letters = [letter(i) for i in range(CHOICES)]
    if isinstance(answer, str) and answer.strip() in letters:
        return letters.index(answer.strip())
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    raise PreftuneError(f"{where}: answer must be 0 to 3 or A to D, got {answer!r}")

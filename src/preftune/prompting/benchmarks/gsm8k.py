"""GSM8K: grade-school math word problems (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

from typing import ClassVar

from preftune.data.builders import gsm8k
from preftune.data.sources import Source
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks.base import Benchmark, BenchmarkQuestion, checked, has_splits, read_rows
from preftune.prompting.benchmarks.numbers import shown
from preftune.prompting.naming import prompt_id


class GSM8K(Benchmark):
    """Word problems that one number answers; 1,319 in its test split, examples from its training split."""

    name: ClassVar[str] = "gsm8k"
    shots: ClassVar[int] = 3
    hub: ClassVar[str] = "openai/gsm8k:main"

    def _tests(self) -> list[BenchmarkQuestion]:
        return self._read("test")

    def _examples(self) -> list[BenchmarkQuestion]:
        return self._read("train")

    def _read(self, split: str) -> list[BenchmarkQuestion]:
        source: Source = self.source or self.hub
        found = []
        for where, row in read_rows(source, split if has_splits(source) else None):
            question, answer = row.get("question"), row.get("answer")
            if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
                raise PreftuneError(f"{where}: expected the texts question and answer, as the files of GSM8K have them")
            number = gsm8k.final_number(answer)
            if number is None:
                raise PreftuneError(f"{where}: the answer must end in a line '#### N' with a number N")
            text = question.strip()
            found.append(
                checked(
                    BenchmarkQuestion(
                        id=prompt_id(text),
                        task=self.name,
                        prompt=text,
                        gold=shown(number),
                        scorer="number",
                        shown=gsm8k.response(answer).strip(),
                        where=where,
                    )
                )
            )
        return found

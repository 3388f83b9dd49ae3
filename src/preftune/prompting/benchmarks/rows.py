"""Questions of one's own: rows with a prompt and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from preftune.data.fields import Unfit, get, get_optional, read_text, shown
from preftune.data.records import Where
from preftune.data.sources import Source, rows
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks.base import Benchmark, BenchmarkQuestion, checked, has_splits, letter, lettered
from preftune.prompting.benchmarks.scoring import known
from preftune.prompting.naming import prompt_id

PROMPT = "prompt|question|input|instruction"
ANSWER = "answer|gold|target|label|ground_truth|output|response"


@dataclass(frozen=True)
class Rows(Benchmark):
    """A file (or anything that `data.sources.rows` reads) with a prompt and an answer in each row.

    A row has `prompt` (or question, input, instruction), `answer` (or gold, target, label, ground_truth, output), and
    may have `options` (a list; the answer is then a letter, a text, or a number from 0), `task`, `scorer`, `shown` (the
    answer as it stands in an example) and `id`. Where a prompt does not list its options, they are put below it.
    Examples are other rows of the same task; of a folder with a file train.*, those.

    Attributes:
        title: its name.
        scorer: who compares answers, where a row does not say.
    """

    title: str = "rows"
    scorer: str | None = None
    name: ClassVar[str] = "rows"

    def _tests(self) -> list[BenchmarkQuestion]:
        return self._read("test")

    def _examples(self) -> list[BenchmarkQuestion]:
        return self._read("train")

    def _read(self, split: str) -> list[BenchmarkQuestion]:
        if self.source is None:
            raise PreftuneError(f"benchmark {self.title} is not built in: name its file, {self.title}=questions.jsonl")
        source: Source = self.source
        return [self._question(row, where) for where, row in _rows(source, split)]

    def _question(self, row: Mapping[str, Any], where: Where) -> BenchmarkQuestion:
        try:
            return checked(self._made(row, where))
        except Unfit as unfit:
            reason = str(unfit)
        raise PreftuneError(f"{where}: {reason}")

    def _made(self, row: Mapping[str, Any], where: Where) -> BenchmarkQuestion:
        asked = read_text(*get(row, PROMPT)).strip()
        options = _options(row)
        scorer = get_optional(row, "scorer") or self.scorer or ("choice" if options else None)
        if not isinstance(scorer, str):
            raise Unfit(
                f"nobody says how answers are scored: name a scorer ({', '.join(known())} or package.module:function) "
                f"as in --benchmark {self.title}:number=FILE, or in the key scorer"
            )
        gold = _gold(*get(row, ANSWER), options)
        task = str(get_optional(row, "task") or self.title)
        listed = ""
        if options and scorer == "choice":
            listed = lettered(options)
            if any(option not in asked for option in options):
                asked = f"{asked}\n{listed}"
        say = get_optional(row, "shown")
        return BenchmarkQuestion(
            id=str(get_optional(row, "id") or prompt_id(f"{task}\n{asked}")),
            task=task,
            prompt=asked,
            gold=gold,
            scorer=scorer,
            options=options,
            listed=listed,
            shown="" if say is None else read_text(say, "shown").strip(),
            where=where,
        )


def _rows(source: Source, split: str) -> list[tuple[Where, dict[str, Any]]]:
    """Rows of a split, where the source has it; else all of them."""
    if has_splits(source):
        try:
            return list(rows(source, split=split))
        except PreftuneError as error:
            if "split" not in str(error):
                raise
    return list(rows(source))


def _options(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = row.get("options", row.get("choices"))
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) < 2 or any(not isinstance(one, str | int | float) for one in value):
        raise Unfit(f"options is {shown(value)}, expected a list of at least two texts")
    return tuple(str(one).strip() for one in value)


def _gold(value: Any, field: str, options: tuple[str, ...]) -> str:
    """The answer as text; of options, its letter."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unfit(f"{field} is {shown(value)}, expected a text or a number")
    text = str(value).strip()
    if not text:
        raise Unfit(f"{field} is empty, expected the right answer")
    if not options:
        return text
    letters = [letter(i) for i in range(len(options))]
    if isinstance(value, int) and 0 <= value < len(options) and text not in options:
        return letters[value]
    if text.strip("() .") in letters:
        return text.strip("() .")
    if text in options:
        return letters[options.index(text)]
    raise Unfit(f"{field} is {shown(value)}, expected one of the options, its letter, or its number from 0")

"""What an evaluation of prompts came to: scores of the same questions side by side, leaks, and cost."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from preftune.api_keys import this_command
from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.prompting.benchmarks import Benchmark, BenchmarkQuestion, Scored
from preftune.prompting.collected import Spent
from preftune.prompting.generators import Reply
from preftune.prompting.leaks import Leak, Training, leak
from preftune.prompting.paired import Average, Paired, average, paired
from preftune.prompting.template import words_in

if TYPE_CHECKING:
    from preftune.prompting.evaluate import EvaluateSettings

FIGURES, QUESTIONS, TABLE = "evaluation.json", "questions.jsonl", "table.csv"
NAIVE = "naive"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Asking:
    """A question, and the examples before it."""

    question: BenchmarkQuestion
    shots: tuple[BenchmarkQuestion, ...] = ()


@dataclass(frozen=True)
class Wording:
    """How a question is put.

    Attributes:
        text: the prompt that is used: a rewrite, or the naive one.
        refused: why the naive prompt stands in place of a rewrite; empty for a rewrite that is used.
        rewrite: what was refused.
    """

    text: str
    refused: str = ""
    rewrite: str = ""


@dataclass(frozen=True)
class Answered:
    """What a generator answered to one wording of a benchmark's questions.

    Attributes:
        generator: who.
        decoding: greedy or sampled.
        wording: naive, or the name of an optimiser.
        benchmark: its title.
        asked: the texts that were put, with examples and all.
        replies: to each of them.
        scored: what each reply is worth.
    """

    generator: str
    decoding: str
    wording: str
    benchmark: str
    asked: Sequence[str]
    replies: Sequence[Sequence[Reply]]
    scored: Sequence[Sequence[Scored]]

    @cached_property
    def scores(self) -> Floats:
        """Share of right answers to each question, shape (N,)."""
        return np.array([np.mean([one.right for one in some]) for some in self.scored])

    @property
    def unanswered(self) -> float:
        """Share of replies in which no answer was found."""
        return float(np.mean([one.answer is None for some in self.scored for one in some]))

    @property
    def refused(self) -> int:
        """Questions that the generator did not take."""
        return sum(bool(some[0].refused) for some in self.replies)


@dataclass(frozen=True)
class Row:
    """A wording against the naive prompts, with one generator and decoding.

    Attributes:
        benchmarks: by title.
        clean: by title, without the questions whose rewrite states the right answer; None where none is left.
        weighted: mean weighted by numbers of questions.
        simple: mean of the benchmarks, all alike.
        tasks: by benchmark and task; none for a benchmark of one task.
        unanswered: share of answers in which none was found, naive and optimised, by title.
        refused: questions that the generator did not take, likewise.
    """

    generator: str
    decoding: str
    wording: str
    benchmarks: Mapping[str, Paired]
    clean: Mapping[str, Paired | None]
    weighted: Average
    simple: Average
    tasks: Mapping[str, Mapping[str, Paired]]
    unanswered: Mapping[str, tuple[float, float]]
    refused: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Evaluated:
    """All of it.

    Attributes:
        benchmarks: by title.
        asking: their questions.
        wordings: of each, by name; "naive" is first.
        answered: what was answered to them.
        spent: by whom and on what.
        calls: requests to endpoints, ever.
        tokens: that these took.
        seed: of the intervals.
    """

    benchmarks: Mapping[str, Benchmark]
    asking: Mapping[str, Sequence[Asking]]
    wordings: Mapping[str, Mapping[str, Sequence[Wording]]]
    answered: Sequence[Answered]
    spent: Mapping[str, Spent]
    calls: int = 0
    tokens: int = 0
    seed: int = 0
    _leaks: dict[tuple[str, str], list[Leak]] = field(default_factory=dict, repr=False)

    @property
    def optimised(self) -> list[str]:
        """Names of the wordings that are compared with the naive one."""
        return [name for name in self.wordings if name != NAIVE]

    def leaks(self, wording: str, title: str) -> list[Leak]:
        """What the rewrites of a benchmark give away."""
        if (wording, title) not in self._leaks:
            training = Training(self.benchmarks[title].training if any(one.shots for one in self.asking[title]) else ())
            self._leaks[wording, title] = [
                leak(one.question, said.text, one.shots, training)
                for one, said in zip(self.asking[title], self.wordings[wording][title], strict=True)
            ]
        return self._leaks[wording, title]

    @cached_property
    def rows(self) -> list[Row]:
        """The wordings against the naive one, for each generator and decoding."""
        found = {(one.generator, one.decoding, one.wording, one.benchmark): one for one in self.answered}
        pairs = dict.fromkeys((one.generator, one.decoding) for one in self.answered)
        return [self._row(found, *pair, wording) for pair in pairs for wording in self.optimised]

    def _row(
        self, found: Mapping[tuple[str, str, str, str], Answered], generator: str, decoding: str, wording: str
    ) -> Row:
        benchmarks: dict[str, Paired] = {}
        clean: dict[str, Paired | None] = {}
        columns, tasks, unanswered, refused = [], {}, {}, {}
        for title, asking in self.asking.items():
            naive, other = (found[generator, decoding, name, title] for name in (NAIVE, wording))
            group = [one.question.id for one in asking]
            benchmarks[title] = paired(naive.scores, other.scores, group, self.seed)
            columns.append((naive.scores, other.scores, group))
            keep = np.array([not one.gold for one in self.leaks(wording, title)])
            rest = [one for one, good in zip(group, keep, strict=True) if good]
            clean[title] = paired(naive.scores[keep], other.scores[keep], rest, self.seed) if rest else None
            tasks[title] = self._by_task(title, naive.scores, other.scores)
            unanswered[title] = (naive.unanswered, other.unanswered)
            refused[title] = (naive.refused, other.refused)
        weighted, simple = (average(columns, by_size=by_size, seed=self.seed) for by_size in (True, False))
        return Row(generator, decoding, wording, benchmarks, clean, weighted, simple, tasks, unanswered, refused)

    def _by_task(self, title: str, naive: Floats, other: Floats) -> dict[str, Paired]:
        """Each task of a benchmark of several, as the benchmark counts them."""
        of = [self.benchmarks[title].counted_as(one.question.task) for one in self.asking[title]]
        found = {}
        for task in dict.fromkeys(of) if len(set(of)) > 1 else ():
            mine = [i for i, each in enumerate(of) if each == task]
            group = [self.asking[title][i].question.id for i in mine]
            found[task] = paired(naive[mine], other[mine], group, self.seed)
        return found

    def rewrites(self, wording: str, title: str) -> dict[str, Any]:
        """What an optimiser did to the prompts of a benchmark: how many were used, and what they give away."""
        some, leaks = self.wordings[wording][title], self.leaks(wording, title)
        prompts = [one.question.prompt for one in self.asking[title]]
        used = sum(not one.refused for one in some)
        return {
            "questions": len(some),
            "used": used / len(some),
            "refused": dict(Counter(_kind(one.refused) for one in some if one.refused).most_common()),
            "states_the_answer": float(np.mean([one.gold for one in leaks])),
            "has_words_of_the_worked_answer": float(np.mean([one.worked for one in leaks])),
            "has_words_of_training_questions": float(np.mean([one.training for one in leaks])),
            "has_words_of_its_examples": float(np.mean([one.shot for one in leaks])),
            "naive_words": float(np.mean([words_in(prompt) for prompt in prompts])),
            "words": float(np.mean([words_in(one.text) for one in some])),
        }

    def as_json(self, settings: EvaluateSettings) -> dict[str, Any]:
        """What the file of figures holds; scores in percent."""
        return {
            "command": this_command(),
            "settings": {**asdict(settings), "prompts": settings.prompts and str(settings.prompts)},
            "benchmarks": {
                title: {
                    "questions": len(some),
                    "tasks": len({self.benchmarks[title].counted_as(one.question.task) for one in some}),
                    "shots": max(len(one.shots) for one in some),
                    "source": str(self.benchmarks[title].source or self.benchmarks[title].hub),
                }
                for title, some in self.asking.items()
            },
            "rewrites": {name: {title: self.rewrites(name, title) for title in self.asking} for name in self.optimised},
            "rows": [_plain(row) for row in self.rows],
            "cost": {
                "calls": self.calls,
                "tokens": self.tokens,
                "by": {name: asdict(one) for name, one in self.spent.items()},
            },
        }

    def questions(self) -> Iterable[dict[str, Any]]:
        """Each question side by side: what was asked, how, and what was answered."""
        naive = {(one.generator, one.decoding, one.benchmark): one for one in self.answered if one.wording == NAIVE}
        for other in self.answered:
            if other.wording == NAIVE:
                continue
            before = naive[other.generator, other.decoding, other.benchmark]
            said = self.wordings[other.wording][other.benchmark]
            for i, one in enumerate(self.asking[other.benchmark]):
                yield {
                    "benchmark": other.benchmark,
                    "task": one.question.task,
                    "id": one.question.id,
                    "generator": other.generator,
                    "decoding": other.decoding,
                    "optimizer": other.wording,
                    "gold": one.question.gold,
                    "prompt": one.question.prompt,
                    "optimized": said[i].text,
                    "refused": said[i].refused,
                    "rewrite_refused": said[i].rewrite,
                    "leaks": [
                        name for name, is_one in asdict(self.leaks(other.wording, other.benchmark)[i]).items() if is_one
                    ],
                    "naive": _side(before, i),
                    "optimised": _side(other, i),
                }

    def table(self) -> list[list[str]]:
        """The table of table.csv: naive and optimised prompts, benchmarks, weighted average and simple mean."""
        header = ["generator", "decoding", "prompts", *self.asking, "weighted average", "simple mean"]
        found = [header]
        for generator, decoding in dict.fromkeys((row.generator, row.decoding) for row in self.rows):
            rows = [row for row in self.rows if (row.generator, row.decoding) == (generator, decoding)]
            first = rows[0]
            means = [first.benchmarks[title].naive for title in self.asking]
            found.append(_line(generator, decoding, NAIVE, [*means, first.weighted.naive, first.simple.naive]))
            for row in rows:
                means = [row.benchmarks[title].optimised for title in self.asking]
                values = [*means, row.weighted.optimised, row.simple.optimised]
                found.append(_line(generator, decoding, row.wording, values))
        return found

    def write(self, out: Path, settings: EvaluateSettings) -> None:
        """Write figures, questions and table.

        Raises:
            PreftuneError: if they cannot be written.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.table())
        files = {
            FIGURES: json.dumps(self.as_json(settings), indent=2, ensure_ascii=False) + "\n",
            QUESTIONS: "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.questions()),
            TABLE: text.getvalue(),
        }
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                write_whole(out / name, content.encode(errors="replace"))
        except OSError as error:
            raise PreftuneError(f"cannot write into {out} ({error.strerror}): name another folder") from None


def percent(share: float) -> str:
    """A share as the paper's tables have it: 24.77."""
    return f"{100 * share:.2f}"


def _line(generator: str, decoding: str, wording: str, values: Sequence[float]) -> list[str]:
    return [generator, decoding, wording, *map(percent, values)]


def _side(answered: Answered, number: int) -> dict[str, Any]:
    scored = answered.scored[number]
    return {
        "score": float(answered.scores[number]),
        "answers": [one.answer for one in scored],
        "right": [one.right for one in scored],
        "responses": [reply.text for reply in answered.replies[number]],
        "refused": answered.replies[number][0].refused,
    }


def _plain(row: Row) -> dict[str, Any]:
    def of(found: Paired | None) -> dict[str, Any] | None:
        if found is None:
            return None
        return {**asdict(found), "difference": found.difference, "same": found.same}

    return {
        "generator": row.generator,
        "decoding": row.decoding,
        "optimizer": row.wording,
        "benchmarks": {title: of(found) for title, found in row.benchmarks.items()},
        "without_stated_answers": {title: of(found) for title, found in row.clean.items()},
        "tasks": {title: {task: of(one) for task, one in some.items()} for title, some in row.tasks.items() if some},
        "weighted_average": {**asdict(row.weighted), "difference": row.weighted.difference},
        "simple_mean": {**asdict(row.simple), "difference": row.simple.difference},
        "no_answer_found": {
            title: dict(zip((NAIVE, "optimised"), two, strict=True)) for title, two in row.unanswered.items()
        },
        "refused_by_generator": {
            title: dict(zip((NAIVE, "optimised"), two, strict=True)) for title, two in row.refused.items()
        },
    }


def _kind(reason: str) -> str:
    """A reason without what is particular to one prompt: 'the number X is new'."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*", "...", reason)

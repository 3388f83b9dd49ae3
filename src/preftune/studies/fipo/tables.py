"""From right and wrong answers to means over seeds, paired differences, and the choice of a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.sandbox.tasks import SEEN, UNSEEN
from preftune.studies.fipo.form import PREFERENCE, Decoding, Form, Split
from preftune.studies.frontier.statistics import Mean, mean

RESAMPLED = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Line:
    """An optimiser, or a baseline, on one split in one decoding.

    Attributes:
        strategy: its key.
        decoding: how it rewrote.
        split: which questions.
        right: by generator, whether each question was answered right.
        kinds: how many of its rewrites are of which kind.
        copied: share of the rewrites that hold what the question gives.
        teacher: key of the teacher; None of baselines.
        seed: likewise.
        example: the first question's naive prompt and rewrite.
        chosen: what a baseline chose: its prefix, or its plans.
    """

    strategy: str
    decoding: Decoding
    split: Split
    right: Mapping[str, NDArray[np.float64]]
    kinds: Mapping[str, int]
    copied: float
    teacher: str | None = None
    seed: int | None = None
    example: Mapping[str, str] | None = None
    chosen: Any = None

    def share(self, kind: str) -> float:
        """Of its rewrites, those of a kind."""
        return self.kinds.get(kind, 0) / max(1, sum(self.kinds.values()))

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Line:
        """From a line of results.jsonl."""
        right = {name: np.array(list(map(float, text))) for name, text in row["right"].items()}
        given: dict[str, Any] = {field.name: row[field.name] for field in fields(cls) if field.name in row}
        return cls(**{**given, "right": right})


@dataclass(frozen=True)
class Outcome:
    """The one test of one teacher's best strategy.

    Attributes:
        teacher: key of the teacher.
        strategy: the preference-trained strategy that did best on the seen generators' validation questions.
        validation: by strategy, mean accuracy there.
        gain: what it adds to naive prompts on the unseen generator's test questions: mean over seeds, and its 95%
            interval by Student's t over seeds.
        resampled: the 95% interval of the same by resampling seeds and questions.
        over_sft: what it adds to SFT, likewise by resampling: value, low, high.
    """

    teacher: str
    strategy: str
    validation: Mapping[str, float]
    gain: Mean
    resampled: tuple[float, float]
    over_sft: tuple[float, float, float]

    @property
    def held(self) -> bool:
        """Whether both intervals of the gain are above zero."""
        return self.gain.low > 0 and self.resampled[0] > 0


def some(
    lines: Sequence[Line], strategy: str, decoding: str, split: str = "test", teacher: str | None = None
) -> list[Line]:
    """Lines of a strategy, one for each seed; of a baseline the only one, in whichever decoding it has."""
    found = [
        line for line in lines if line.strategy == strategy and line.split == split and line.teacher in (teacher, None)
    ]
    return [line for line in found if line.decoding == decoding] or found


def accuracy(lines: Sequence[Line], generators: Sequence[str]) -> Mean:
    """Mean accuracy over seeds and generators, with its interval over seeds."""
    return mean([float(np.mean([line.right[name].mean() for name in generators])) for line in lines])


def difference(first: Sequence[Line], second: Sequence[Line], generator: str) -> NDArray[np.float64]:
    """How much more right the first is, shape (seeds, questions); a baseline counts for all seeds."""
    of = {line.seed: line.right[generator] for line in second}
    return np.stack([line.right[generator] - of.get(line.seed, second[0].right[generator]) for line in first])


def resampled(difference_SQ: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean difference, seeds and questions drawn again at the same time.

    Args:
        difference_SQ: by seed and question.
        seed: of the draws.
    """
    rng, (seeds, questions) = np.random.default_rng(seed), difference_SQ.shape
    drawn_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLED)
    drawn_RQ = rng.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLED)
    means = ((drawn_RS @ difference_SQ) * drawn_RQ).sum(1) / (seeds * questions)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def outcome(lines: Sequence[Line], form: Form) -> list[Outcome]:
    """For each teacher: choose on the seen generators, then look at the unseen one, once."""
    found = []
    candidates = [key for key in form.strategies if key in PREFERENCE]
    naive = some(lines, "naive", "greedy")
    for teacher in form.teachers:
        validation = {
            key: accuracy(some(lines, key, "greedy", "validation", teacher), SEEN).value for key in candidates
        }
        best = max(candidates, key=lambda key: validation[key])
        chosen = some(lines, best, "greedy", "test", teacher)
        gain_SQ = difference(chosen, naive, UNSEEN)
        sft_SQ = difference(chosen, some(lines, "sft", "greedy", "test", teacher), UNSEEN)
        over_sft = (float(sft_SQ.mean()), *resampled(sft_SQ))
        found.append(Outcome(teacher, best, validation, mean(gain_SQ.mean(1)), resampled(gain_SQ), over_sft))
    return found

"""Naive against optimised on the same questions: differences with intervals, and what was won and lost.

Shapes: N questions; scores are shares of right answers in [0, 1], one for each question.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preftune.evaluation.bootstrap import interval95
from preftune.evaluation.intervals import Z95, numbered

RESAMPLES = 2000
FEW = 20  # questions that changed, below which an interval is not taken from resamples
LARGEST = 4_000_000  # counts held at a time
Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """Two wordings on the same questions.

    Attributes:
        questions: N.
        naive: mean score of the naive prompts.
        optimised: of the others.
        ci95: of the difference, by a paired bootstrap over questions, or, where few changed, by the adjusted Wald
            interval of Bonett and Price; None for one question.
        won: questions whose score rose.
        lost: whose score fell.
        p: probability of so uneven a split of `won` and `lost` if both were as likely (the exact test of McNemar 1947,
            Psychometrika 12).
    """

    questions: int
    naive: float
    optimised: float
    ci95: Interval | None
    won: int
    lost: int
    p: float

    @property
    def difference(self) -> float:
        """Optimised less naive."""
        return self.optimised - self.naive

    @property
    def same(self) -> int:
        """Questions whose score did not change."""
        return self.questions - self.won - self.lost


def paired(naive: ArrayLike, optimised: ArrayLike, group: Sequence[Hashable] | None = None, seed: int = 0) -> Paired:
    """Compare two wordings.

    Args:
        naive: scores of the naive prompts, shape (N,).
        optimised: of the same questions with other wordings, shape (N,).
        group: what belongs together and is drawn together (a question that is asked twice), N values; None: each
            question stands alone.
        seed: of the bootstrap.

    Raises:
        ValueError: if the two have different lengths, or none.

    Example:
        >>> found = paired([0, 0, 1, 1], [1, 1, 1, 0])
        >>> found.difference, found.won, found.lost, found.same, found.p
        (0.25, 2, 1, 1, 1.0)
    """
    before, after = _columns(naive, optimised)
    difference = after - before
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    groups = list(range(len(before))) if group is None else list(group)
    return Paired(
        len(before), float(before.mean()), float(after.mean()), _interval(difference, groups, seed), won, lost,
        mcnemar(won, lost),
    )  # fmt: skip


def mcnemar(won: int, lost: int) -> float:
    """The two-sided exact test: how likely so uneven a split is where each side is as likely.

    Example:
        >>> mcnemar(0, 5), mcnemar(3, 3)
        (0.0625, 1.0)
    """
    count, least = won + lost, min(won, lost)
    if won == lost:
        return 1.0
    return min(1.0, 2 * sum(comb(count, i) for i in range(least + 1)) / 2**count)


@dataclass(frozen=True)
class Average:
    """A mean over several benchmarks.

    Attributes:
        naive: of the naive prompts.
        optimised: of the others.
        ci95: of the difference; questions are drawn within each benchmark; None where one benchmark has one question.
    """

    naive: float
    optimised: float
    ci95: Interval | None

    @property
    def difference(self) -> float:
        """Optimised less naive."""
        return self.optimised - self.naive


def weighted_average(means: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Mean of benchmarks, weighted by their numbers of questions, as in the paper's last column.

    Args:
        means: score of each benchmark.
        sizes: its number of questions.

    Example:
        >>> weighted_average({"a": 10.0, "b": 40.0}, {"a": 1, "b": 2})
        30.0
    """
    return sum(means[name] * sizes[name] for name in means) / sum(sizes[name] for name in means)


def average(
    benchmarks: Sequence[tuple[ArrayLike, ArrayLike, Sequence[Hashable]]], *, by_size: bool = True, seed: int = 0
) -> Average:
    """Compare two wordings over several benchmarks.

    Args:
        benchmarks: of each the scores of the naive prompts, of the others, and what belongs together.
        by_size: weigh benchmarks by their numbers of questions; else all alike.
        seed: of the bootstrap.

    Raises:
        ValueError: if there is no benchmark, or one has no questions.
    """
    columns = [(*_columns(naive, optimised), numbered(group)) for naive, optimised, group in benchmarks]
    if not columns:
        raise ValueError("an average needs at least one benchmark")
    sizes = np.array([len(before) if by_size else 1 for before, _, _ in columns], float)
    share = sizes / sizes.sum()
    naive, optimised = (
        float(sum(each * column[i].mean() for each, column in zip(share, columns, strict=True))) for i in (0, 1)
    )
    if any(number.max() < 1 for _, _, number in columns):
        return Average(naive, optimised, None)
    drawn = np.zeros(RESAMPLES)
    random = np.random.default_rng(seed)
    for each, (before, after, number) in zip(share, columns, strict=True):
        drawn += each * _drawn(after - before, number, random)
    low, high = np.clip(np.quantile(drawn, (0.025, 0.975)), -1, 1)
    value = optimised - naive
    return Average(naive, optimised, (min(value, float(low)), max(value, float(high))))


def _columns(naive: ArrayLike, optimised: ArrayLike) -> tuple[Floats, Floats]:
    before, after = np.asarray(naive, float), np.asarray(optimised, float)
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ValueError(f"expected two columns of one length, got shapes {before.shape} and {after.shape}")
    return before, after


def _interval(difference: Floats, group: Sequence[Hashable], seed: int) -> Interval | None:
    number = numbered(group)
    if number.max() < 1:
        return None
    if _few(difference, number):
        centre, error = _adjusted(difference, number)
        value = float(difference.mean())
        return min(value, max(-1.0, centre - Z95 * error)), max(value, min(1.0, centre + Z95 * error))

    def mean(weight_RN: Floats) -> Floats:
        total: Floats = (weight_RN @ difference) / weight_RN.sum(1)
        return total

    return interval95(mean, group, seed)


def _few(difference: Floats, number: NDArray[np.int64]) -> bool:
    """True where resamples of what was seen say too little of what might have been: a bootstrap over four questions
    lost, none won and thousands unchanged would exclude that nothing changed."""
    return len(set(number[difference != 0].tolist())) < FEW or float(np.ptp(difference)) == 0


def _adjusted(difference: Floats, number: NDArray[np.int64]) -> tuple[float, float]:
    """Centre and standard error as if one more question were won and one more lost, by as much as the largest change.

    Of scores of 0 and 1 this is the adjusted Wald interval of Bonett and Price 2012 (Journal of Educational and
    Behavioral Statistics 37).
    """
    count = np.bincount(number)
    mean_G = np.bincount(number, difference) / count
    most = float(np.abs(mean_G).max()) or 1.0
    n = len(mean_G) + 2
    centre = float(mean_G.sum()) / n
    variance = (float((mean_G**2).sum()) + 2 * most**2) / n - centre**2
    return centre, float(np.sqrt(variance / n))


def _drawn(difference: Floats, number: NDArray[np.int64], random: np.random.Generator) -> Floats:
    """Mean differences of resamples, shape (RESAMPLES,): whole groups are drawn."""
    if _few(difference, number):
        return random.normal(*_adjusted(difference, number), RESAMPLES)
    groups = int(number.max()) + 1
    sums, sizes = np.bincount(number, difference, groups), np.bincount(number, minlength=groups).astype(float)
    step = max(1, LARGEST // groups)
    found = []
    for first in range(0, RESAMPLES, step):
        count_RG = random.multinomial(groups, np.full(groups, 1 / groups), size=min(step, RESAMPLES - first))
        found.append((count_RG @ sums) / (count_RG @ sizes))
    return np.concatenate(found)

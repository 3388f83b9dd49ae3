"""Few seeds, honestly: Student's t intervals of means, paired comparisons, and Holm's adjustment for many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95% interval.

    Attributes:
        value: the mean; NaN of no values.
        low: lower end; -inf of fewer than two values, of which nothing is known.
        high: upper end.
        n: how many values.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Compared:
    """Two things measured on the same seeds.

    Attributes:
        names: which two, the first less the second.
        difference: mean difference over the seeds that both have, with its interval.
        p: of the two-sided paired t-test; NaN of fewer than two seeds.
        adjusted: the same after Holm's adjustment over all comparisons made with it.
    """

    names: tuple[str, str]
    difference: Mean
    p: float
    adjusted: float = math.nan


def t_tail(t: float, freedom: int) -> float:
    """Probability that Student's t lies beyond |t|, on either side.

    Args:
        t: a value of the statistic; infinite ones have no tail.
        freedom: degrees of freedom, at least 1.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4: finite sums for whole degrees of freedom.

    Example:
        >>> round(t_tail(12.706, 1), 4), round(t_tail(2.776, 4), 4)
        (0.05, 0.05)
    """
    if math.isnan(t):
        return math.nan
    angle = math.atan2(abs(t), math.sqrt(freedom)) if math.isfinite(t) else math.pi / 2
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    sum_ = sine * total if freedom > 1 else 0.0
    inside = 2 / math.pi * (angle + sum_) if odd else sum_
    return min(1.0, max(0.0, 1 - inside))


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """How many standard errors to either side hold this share of Student's t, by bisection.

    Example:
        >>> round(t_quantile(4), 4), round(t_quantile(9), 4)
        (2.7764, 2.2622)
    """
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - level else (low, middle)
    return high


def mean(values: ArrayLike) -> Mean:
    """Mean of independent values with its 95% interval by Student's t.

    Args:
        values: one per seed, shape (n,).

    Example:
        >>> found = mean([1.0, 2.0, 3.0])
        >>> round(found.low, 3), round(found.high, 3)  # 2 +- 4.3027 / sqrt(3)
        (-0.484, 4.484)
    """
    given = np.asarray(values, dtype=float)
    if not len(given):
        return Mean(math.nan, math.nan, math.nan, 0)
    middle = float(given.mean())
    if len(given) == 1:
        return Mean(middle, -math.inf, math.inf, 1)
    half = t_quantile(len(given) - 1) * float(given.std(ddof=1)) / math.sqrt(len(given))
    return Mean(middle, middle - half, middle + half, len(given))


def compare(names: tuple[str, str], first: Mapping[int, float], second: Mapping[int, float]) -> Compared:
    """The paired t-test of two things over the seeds that both have.

    Args:
        names: of the two.
        first: value by seed.
        second: value by seed.
    """
    shared = sorted(set(first) & set(second))
    difference = np.array([first[seed] - second[seed] for seed in shared])
    found = mean(difference)
    if len(difference) < 2:
        return Compared(names, found, math.nan)
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    if error == 0:
        return Compared(names, found, 1.0 if found.value == 0 else 0.0)
    return Compared(names, found, t_tail(found.value / error, len(difference) - 1))


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """P-values adjusted for all being looked at: the chance that any true null falls under a level is at most that.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may fall below the one before, or pass 1.
    NaN stays, and counts as no comparison.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(4).tolist()
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p, dtype=float)
    adjusted = np.full(len(given), math.nan)
    known = np.flatnonzero(~np.isnan(given))
    order = known[np.argsort(given[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * factors))
    return adjusted


def adjust(comparisons: Sequence[Compared]) -> list[Compared]:
    """The comparisons with their p-values adjusted for each other."""
    adjusted = holm([each.p for each in comparisons])
    return [
        Compared(each.names, each.difference, each.p, float(value))
        for each, value in zip(comparisons, adjusted, strict=True)
    ]

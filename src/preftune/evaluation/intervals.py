"""Confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959964


def accuracy_interval(correct: ArrayLike, group: Sequence[object]) -> tuple[float, float]:
    """95% Wilson interval of a mean of scores in [0, 1], for scores that are alike within groups.

    Pairs that share a prompt are no independent evidence: the sample size is divided by the design effect, the variance
    of the mean over groups against that of independent scores (never taken below 1).

    Args:
        correct: scores (1, 0, or 0.5 for a tie), shape (n,).
        group: what each score belongs to (its prompt), n hashable values.

    Raises:
        ValueError: without any scores.
    """
    index = {value: i for i, value in enumerate(dict.fromkeys(group))}
    return grouped_interval(correct, np.fromiter((index[value] for value in group), np.int64, len(group)))


def grouped_interval(correct: ArrayLike, number: NDArray[np.int64]) -> tuple[float, float]:
    """The same with groups that are numbered already, from 0 without a gap, shape (n,)."""
    scores = np.asarray(correct, dtype=float)
    if not len(scores):
        raise ValueError("an interval needs at least one score")
    mean, n = float(scores.mean()), len(scores)
    groups = int(number.max()) + 1
    effective = float(n)
    if 1 < groups < n and 0 < mean < 1:
        sums = np.bincount(number, weights=scores - mean)
        variance = groups / (groups - 1) * float((sums**2).sum()) / n**2
        effective = n / max(1.0, variance / (mean * (1 - mean) / n))
    elif groups == 1:
        effective = 1.0
    return wilson(mean, effective)


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share of n independent observations, at 95% if z is not given.

    Source: Wilson 1927, Journal of the American Statistical Association 22.

    Example:
        >>> low, high = wilson(0.5, 100)
        >>> round(low, 3), round(high, 3)
        (0.404, 0.596)
    """
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def auc(high: ArrayLike, low: ArrayLike, tie: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """How each value of one sample stands against another sample: the area under the ROC curve, taken apart.

    Args:
        high: values that are expected to be higher, shape (n,).
        low: values that are expected to be lower, shape (m,).
        tie: values that differ by less count as equal, and equal ones as one half.

    Returns:
        For each of `high` the share of `low` below it, and for each of `low` the share of `high` above it; the mean of
        either is the area.
    """
    highs, lows = np.asarray(high, dtype=float), np.asarray(low, dtype=float)

    def below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        ordered = np.sort(others)
        under = np.searchsorted(ordered, values - tie, side="left")
        upto = np.searchsorted(ordered, values + tie, side="right")
        return (under + upto) / 2 / len(others)

    return below(highs, lows), 1 - below(lows, highs)


def auc_interval(high: ArrayLike, low: ArrayLike, tie: float = 0.0) -> tuple[float, float]:
    """95% interval of the area under the ROC curve by DeLong's variance; (0, 1) for fewer than two values of a kind.

    Arguments as for `auc`. Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44.
    """
    of_high, of_low = auc(high, low, tie)
    if min(len(of_high), len(of_low)) < 2:
        return 0.0, 1.0
    half = Z95 * np.sqrt(of_high.var(ddof=1) / len(of_high) + of_low.var(ddof=1) / len(of_low))
    mean = float(of_high.mean())
    return max(0.0, float(mean - half)), min(1.0, float(mean + half))

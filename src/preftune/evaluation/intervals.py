"""Confidence intervals. Values that share a prompt are no independent evidence: prompts are what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959964
TIE = 1e-5  # nats, or units of reward, by which two values must differ to count as different
DRAWS = 1000  # of a bootstrap
AT_ONCE = 2**22  # weights of a bootstrap that are held in memory


def accuracy_interval(correct: ArrayLike, group: Sequence[Hashable]) -> tuple[float, float]:
    """95% Wilson interval of a mean of scores in [0, 1], for scores that are alike within groups.

    Pairs that share a prompt are no independent evidence: the sample size is divided by the design effect, the variance
    of the mean over groups against that of independent scores (never taken below 1).

    Args:
        correct: scores (1, 0, or 0.5 for a tie), shape (n,).
        group: what each score belongs to (its prompt), n hashable values.

    Raises:
        ValueError: without any scores.
    """
    return grouped_interval(correct, numbered(group))


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


def paired_interval(wins: float, losses: float, of: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a win rate whose ties count one half, also where there is no win or no loss at all; at 95% if z is
    not given.

    The adjusted Wald interval for paired outcomes of Bonett and Price 2012 (Journal of Educational and Behavioral
    Statistics 37): one more win and one more loss are counted than there were.

    Args:
        wins: how many.
        losses: how many.
        of: how many there were, ties included; at least 1.

    Example:
        >>> [round(bound, 2) for bound in paired_interval(1, 0, 8)]
        [0.38, 0.72]
    """
    won, lost = (wins + 1) / (of + 2), (losses + 1) / (of + 2)
    half = z * float(np.sqrt((won + lost - (won - lost) ** 2) / (of + 2)))
    low, high = (0.5 + (won - lost + side * half) / 2 for side in (-1, 1))
    rate = 0.5 + (wins - losses) / of / 2
    return min(max(0.0, low), rate), max(min(1.0, high), rate)


def numbered(group: Sequence[Hashable]) -> NDArray[np.int64]:
    """Groups by number, from 0 in the order in which they are first met, shape (n,)."""
    index = {value: i for i, value in enumerate(dict.fromkeys(group))}
    return np.fromiter((index[value] for value in group), np.int64, len(group))


def standard_error(values: ArrayLike, number: NDArray[np.int64], per: ArrayLike | None = None) -> float | None:
    """Standard error of a mean, or of a ratio of sums, over values that are alike within groups.

    Args:
        values: shape (n,).
        number: of each its group, from 0 without a gap, shape (n,).
        per: what the sum of values is divided by the sum of (tokens, say), shape (n,); none: a mean.

    Returns:
        None for fewer than two groups, of which nothing is known.
    """
    value, size = np.asarray(values, dtype=float), np.ones(len(number)) if per is None else np.asarray(per, float)
    groups = int(number.max()) + 1
    if groups < 2:
        return None
    sums = np.bincount(number, weights=value - size * (value.sum() / size.sum()))
    return float(np.sqrt(groups / (groups - 1) * (sums**2).sum()) / size.sum())


def mean_interval(values: ArrayLike, number: NDArray[np.int64]) -> tuple[float, float] | None:
    """95% interval of a mean by its `standard_error` (normal approximation); None for fewer than two groups.

    Example:
        >>> low, high = mean_interval([1.0, 2.0, 3.0, 4.0], np.arange(4))
        >>> round(low, 3), round(high, 3)  # 2.5 +- 1.96 * 1.291 / 2
        (1.235, 3.765)
    """
    error = standard_error(values, number)
    mean = float(np.mean(np.asarray(values, dtype=float)))
    return None if error is None else (mean - Z95 * error, mean + Z95 * error)


def bootstrap(
    groups: int, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of a statistic over drawn groups.

    Args:
        groups: how many there are.
        statistic: its value for each row of how often each group was drawn, shape (draws, groups) -> (draws,).
        seed: of the draws.

    Source: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".
    """
    random, found = np.random.default_rng(seed), list[NDArray[np.float64]]()
    step = max(1, AT_ONCE // groups)
    for first in range(0, DRAWS, step):
        drawn = random.multinomial(groups, np.full(groups, 1 / groups), size=min(step, DRAWS - first))
        found.append(statistic(drawn.astype(float)))
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    return float(low), float(high)


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

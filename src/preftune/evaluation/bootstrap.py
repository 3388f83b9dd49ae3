"""Bootstrap intervals for observations that belong to groups: groups are drawn, not observations.

Shapes: N observations, G groups, R resamples, J groups left out one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.evaluation.intervals import Z95

RESAMPLES = 2000
LEFT_OUT = 500  # groups that are left out at most, to see how skewed their influence is
LARGEST = 4_000_000  # weights held at a time

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # weights (R, N) of the observations -> a value for each row


def interval95(
    statistic: Statistic, groups: Sequence[Hashable], seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95% interval of a figure, by the bias-corrected and accelerated bootstrap over groups (BCa).

    Percentiles of the resamples are moved for the bias of the figure and for its skewness (Efron 1987, Journal of the
    American Statistical Association 82), and further out for few groups: by Student's t and the variance's own bias
    (Hesterberg 2015, The American Statistician 69). Figures with one seed and the same groups come from the same draws.

    Args:
        statistic: computes the figure from weights; a weight is how often an observation is there.
        groups: what each observation belongs to (its prompt), N values of at least two groups.
        seed: of the draws.
        resamples: R.

    Raises:
        ValueError: for fewer than two groups, of which no other draw is possible.
    """
    index = {value: i for i, value in enumerate(dict.fromkeys(groups))}
    count = len(index)
    if count < 2:
        raise ValueError("a bootstrap needs at least two groups")
    number_N = np.fromiter((index[value] for value in groups), np.int64, len(groups))
    drawn_RG = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    value = float(_values(statistic, np.ones((1, count)), number_N)[0])
    found_R = _values(statistic, drawn_RG, number_N)
    left_out = np.unique(np.linspace(0, count - 1, LEFT_OUT).round().astype(np.int64))
    without_JG = np.ones((len(left_out), count))
    without_JG[np.arange(len(left_out)), left_out] = 0
    skewness = _acceleration(_values(statistic, without_JG, number_N)) * np.sqrt(len(left_out) / count)
    normal = NormalDist()
    below = float(np.mean(found_R < value) + np.mean(found_R <= value)) / 2
    bias = normal.inv_cdf(min(max(below, 1 / resamples), 1 - 1 / resamples))
    far = np.sqrt(count / (count - 1)) * student_t(count - 1)
    places = [bias + z / (1 - skewness * z) for z in (bias - far, bias + far)]
    low, high = np.quantile(found_R, [normal.cdf(place) for place in places])
    return float(low), float(high)


def _values(statistic: Statistic, weight_RG: NDArray[Any], number_N: NDArray[np.int64]) -> Floats:
    rows = max(1, LARGEST // len(number_N))
    return np.concatenate(
        [statistic(weight_RG[i : i + rows][:, number_N].astype(float)) for i in range(0, len(weight_RG), rows)]
    )


def _acceleration(without_J: Floats) -> float:
    """A sixth of the skewness of what the groups do to a figure, from its values without each of them."""
    difference_J = without_J.mean() - without_J
    spread = float((difference_J**2).sum())
    return float((difference_J**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def student_t(freedom: int) -> float:
    """The 97.5% quantile of Student's t.

    Exact for one and two degrees of freedom; beyond, Cornish and Fisher's expansion about the normal quantile (from 3
    on it is right to 1%, from 6 on to 0.1%).

    Example:
        >>> [round(student_t(n), 2) for n in (1, 2, 10, 30)]
        [12.71, 4.3, 2.23, 2.04]
    """
    if freedom == 1:
        return float(np.tan(np.pi * (0.975 - 0.5)))
    if freedom == 2:
        return float(0.95 * np.sqrt(2 / (1 - 0.95**2)))
    z, n = Z95, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / n ** (i + 1) for i, term in enumerate(terms)))

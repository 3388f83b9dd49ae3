"""Bootstrap intervals for observations that belong to groups: groups are drawn, not observations.

Shapes: N observations, G groups, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preftune.evaluation.intervals import Z95

RESAMPLES = 2000


def weights(groups: Sequence[Hashable], seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """How often each observation stands in each resample: as often as its group was drawn.

    Args:
        groups: what each observation belongs to (its prompt), N values.
        seed: of the draws.
        resamples: R.

    Returns:
        Shape (R, N). Columns of one group are equal, so that whatever is computed with them is paired.
    """
    index = {value: i for i, value in enumerate(dict.fromkeys(groups))}
    number_N = np.fromiter((index[value] for value in groups), np.int64, len(groups))
    share = np.full(len(index), 1 / len(index))
    drawn_RG = np.random.default_rng(seed).multinomial(len(index), share, size=resamples)
    return drawn_RG[:, number_N].astype(float)


def interval95(values_R: ArrayLike, groups: int) -> tuple[float, float]:
    """The 95% interval of a figure, from its values in the resamples.

    Percentiles, further out for few groups: those of Student's t and of the variance's own bias, as the expanded
    percentile interval has them (Hesterberg 2015, The American Statistician 69).

    Args:
        values_R: one for each resample.
        groups: how many were there to draw from.
    """
    tail = 0.0
    if groups > 1:
        tail = NormalDist().cdf(-np.sqrt(groups / (groups - 1)) * student_t(groups - 1))
    low, high = np.quantile(np.asarray(values_R, dtype=float), [tail, 1 - tail])
    return float(low), float(high)


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

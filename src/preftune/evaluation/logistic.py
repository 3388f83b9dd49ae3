"""Logistic regression of one column and a constant, for many sets of weights at once.

Shapes: N observations, R sets of weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

RIDGE = 1e-2  # keeps what separates perfectly finite; as strong as a hundredth of one observation
STEPS, ENOUGH = 100, 1e-10
LARGEST = 2_000_000  # numbers held at a time


def fit(x: ArrayLike, y: ArrayLike, weight_RN: ArrayLike | None = None) -> NDArray[np.float64]:
    """Constant and slope of the logistic regression of y on x, by Newton's method.

    Maximises sum_n w_n [y_n log p_n + (1 - y_n) log(1 - p_n)] - ridge/2 (constant^2 + slope^2) with
    p_n = sigmoid(constant + slope x_n): for shares y in [0, 1] this is a quasi-likelihood, whose estimates are
    consistent as soon as the mean of y is right.

    Args:
        x: the column, shape N.
        y: shares in [0, 1], shape N.
        weight_RN: weights of the observations, a row for each fit; 1 for all if not given.

    Returns:
        Constant and slope, shape (R, 2).

    Example:
        >>> fit([0, 1], [0.25, 0.75], [[400, 400]]).round(2).tolist()  # log(1/3), and log(3) - log(1/3)
        [[-1.1, 2.2]]
    """
    x_N, y_N = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    w_RN = np.ones((1, len(x_N))) if weight_RN is None else np.atleast_2d(np.asarray(weight_RN, dtype=float))
    rows = max(1, LARGEST // max(len(x_N), 1))
    return np.concatenate([_fit(x_N, y_N, w_RN[i : i + rows]) for i in range(0, len(w_RN), rows)])


def sigmoid(x: ArrayLike) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, dtype=float)))


def _fit(x_N: NDArray[np.float64], y_N: NDArray[np.float64], w_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    constant_R, slope_R = np.zeros(len(w_RN)), np.zeros(len(w_RN))
    value_R = _objective(constant_R, slope_R, x_N, y_N, w_RN)
    for _ in range(STEPS):
        p_RN = sigmoid(constant_R[:, None] + slope_R[:, None] * x_N)
        error_RN, spread_RN = w_RN * (y_N - p_RN), w_RN * p_RN * (1 - p_RN)
        of_constant_R, of_slope_R = error_RN.sum(1) - RIDGE * constant_R, error_RN @ x_N - RIDGE * slope_R
        a_R, b_R, c_R = spread_RN.sum(1) + RIDGE, spread_RN @ x_N, spread_RN @ x_N**2 + RIDGE
        det_R = a_R * c_R - b_R**2
        step_R2 = np.stack([c_R * of_constant_R - b_R * of_slope_R, a_R * of_slope_R - b_R * of_constant_R], 1)
        step_R2 /= det_R[:, None]
        # a full step may overshoot where p is flat: it is halved until the objective does not fall
        size_R = np.ones(len(w_RN))
        for _ in range(40):
            tried_R = _objective(constant_R + size_R * step_R2[:, 0], slope_R + size_R * step_R2[:, 1], x_N, y_N, w_RN)
            worse_R = tried_R < value_R - 1e-12 * (1 + abs(value_R))
            if not worse_R.any():
                break
            size_R[worse_R] /= 2
        constant_R, slope_R = constant_R + size_R * step_R2[:, 0], slope_R + size_R * step_R2[:, 1]
        value_R = tried_R
        if np.abs(step_R2).max() < ENOUGH:
            break
    return np.stack([constant_R, slope_R], 1)


def _objective(
    constant_R: NDArray[np.float64],
    slope_R: NDArray[np.float64],
    x_N: NDArray[np.float64],
    y_N: NDArray[np.float64],
    w_RN: NDArray[np.float64],
) -> NDArray[np.float64]:
    logit_RN = constant_R[:, None] + slope_R[:, None] * x_N
    fit_R: NDArray[np.float64] = (w_RN * (y_N * logit_RN - np.logaddexp(0, logit_RN))).sum(1)
    return fit_R - RIDGE / 2 * (constant_R**2 + slope_R**2)

"""Calibration of preferences: how often a policy is right where it is so and so sure.

A margin (chosen reward less rejected reward) says, under Bradley-Terry, with what probability the policy takes chosen
to be the better response: sigmoid(margin). Its confidence is that probability or one less it, whichever is larger; it
is right where the margin is positive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preftune.evaluation.intervals import TIE, bootstrap, grouped_interval

Floats = NDArray[np.float64]
BINS = 10  # of confidence, of equal width from 0.5 to 1
STEPS = 60  # halvings of an interval: as exact as float64


@dataclass(frozen=True)
class Bin:
    """Pairs of like confidence.

    Attributes:
        confidence: their mean.
        accuracy: share of them that the policy has right.
        ci95: interval of that share, by prompt.
        pairs: how many.
    """

    confidence: float
    accuracy: float
    ci95: tuple[float, float]
    pairs: int


@dataclass(frozen=True)
class Calibration:
    """How far confidence can be taken at its word.

    Attributes:
        ece: expected calibration error: mean distance of accuracy and confidence over the bins, weighed by pairs. It
            is above 0 by chance alone, the more so the fewer pairs there are.
        ece_ci95: bootstrap interval, by prompt.
        bins: the reliability curve; bins without pairs are left out.
        temperature: by which margins are to be divided so that confidence is right on average; fitted on all pairs.
            None if it has no finite value: margins of which all, or none on average, are positive.
        ece_with_temperature: the error after such a division, each half of the prompts with the temperature that was
            fitted on the other; None where one of these has no finite value.
    """

    ece: float
    ece_ci95: tuple[float, float]
    bins: tuple[Bin, ...]
    temperature: float | None
    ece_with_temperature: float | None


def calibrate(margins: Floats, number: NDArray[np.int64], prompts: Sequence[bytes]) -> Calibration:
    """Calibration of margins.

    Args:
        margins: of each pair, finite, shape (pairs,).
        number: of each pair its prompt, from 0 without a gap, shape (pairs,).
        prompts: what tells prompts apart, in the order of their numbers: they are cut into halves by a hash of it.
    """
    confidence, right, which = _binned(margins)
    sums = _sums(confidence, right, which, number)
    bins = tuple(
        Bin(
            float(confidence[inside].mean()),
            float(right[inside].mean()),
            grouped_interval(right[inside], np.unique(number[inside], return_inverse=True)[1]),
            int(inside.sum()),
        )
        for inside in (which == b for b in range(BINS))
        if inside.any()
    )
    interval = bootstrap(sums.shape[0], lambda weights: _ece(np.tensordot(weights, sums, 1)))
    return Calibration(
        ece=float(_ece(sums.sum(0))),
        ece_ci95=interval,
        bins=bins,
        temperature=fit_temperature(margins),
        ece_with_temperature=_cross_fitted(margins, number, prompts),
    )


def fit_temperature(margins: Floats) -> float | None:
    """The temperature T that makes the pairs likeliest: the least mean of -log sigmoid(margin / T).

    In 1 / T that is convex. Where all margins are positive it falls for ever, and where their mean is not positive the
    least lies at 1 / T = 0: None. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Example:
        >>> round(fit_temperature(np.array([2.0, 2.0, 2.0, -2.0])), 4)  # sigmoid(2 / T) = 3 / 4
        1.8205
    """
    if not (margins < 0).any() or margins.mean() <= 0:
        return None

    def slope(inverse: float) -> float:
        return float((margins * _sigmoid(-inverse * margins)).sum())

    low, high = 0.0, 1 / float(np.abs(margins).max())
    while slope(high) > 0:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 2 / (low + high)


def _cross_fitted(margins: Floats, number: NDArray[np.int64], prompts: Sequence[bytes]) -> float | None:
    ranked = np.argsort([hashlib.sha256(prompt).digest() for prompt in prompts])
    second = np.isin(number, ranked[: len(ranked) // 2])
    scaled = np.empty_like(margins)
    for half in (second, ~second):
        temperature = fit_temperature(margins[~half]) if half.any() and not half.all() else None
        if temperature is None:
            return None
        scaled[half] = margins[half] / temperature
    return float(_ece(_sums(*_binned(scaled), number).sum(0)))


def _binned(margins: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Of each pair the confidence, whether it is right (a tie counts one half), and its bin."""
    confidence = _sigmoid(np.abs(margins))
    right = np.where(np.abs(margins) < TIE, 0.5, (margins > 0).astype(float))
    which = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    return confidence, right, which


def _sums(confidence: Floats, right: Floats, which: NDArray[np.int64], number: NDArray[np.int64]) -> Floats:
    """Of each prompt and bin: pairs, and the sum of right less confidence; shape (prompts, bins, 2)."""
    sums = np.zeros((int(number.max()) + 1, BINS, 2))
    np.add.at(sums, (number, which), np.stack([np.ones_like(right), right - confidence], axis=1))
    return sums


def _ece(sums: Floats) -> Floats:
    """Expected calibration error of sums over prompts, shape (..., bins, 2)."""
    error: Floats = np.abs(sums[..., 1]).sum(-1) / sums[..., 0].sum(-1)
    return error


def _sigmoid(x: Floats) -> Floats:
    value: Floats = (1 + np.tanh(x / 2)) / 2  # without overflow
    return value

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.evaluation.calibration import calibrate, fit_temperature

LOG3 = math.log(3)  # a margin of log 3 says: right with probability 3 / 4


def keys(count: int) -> list[bytes]:
    return [str(i).encode() for i in range(count)]


def test_the_error_by_hand() -> None:
    # four pairs of confidence 3/4, of which two are right; four of confidence 1/2 (ties), which count one half each
    margins = np.array([LOG3, LOG3, -LOG3, -LOG3, 0.0, 0.0, 0.0, 0.0])
    found = calibrate(margins, np.arange(8), keys(8))
    assert found.ece == pytest.approx((4 * 0.25 + 4 * 0) / 8)
    assert [(one.confidence, one.accuracy, one.pairs) for one in found.bins] == [
        (pytest.approx(0.5), 0.5, 4),
        (pytest.approx(0.75), 0.5, 4),
    ]
    low, high = found.ece_ci95
    assert 0 <= low < found.ece < high <= 0.5
    assert found.temperature is None  # their mean is 0, so no temperature makes anything of them


def test_the_temperature_that_was_hidden_is_found_on_either_half() -> None:
    random = np.random.default_rng(0)
    true = random.normal(scale=2, size=8000)
    told = 3 * np.where(random.random(8000) < 1 / (1 + np.exp(-np.abs(true))), np.abs(true), -np.abs(true))
    found = calibrate(told, np.arange(8000) // 2, keys(4000))
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert found.ece > 0.1
    assert found.ece_with_temperature is not None
    assert found.ece_with_temperature < 0.02
    assert found.ece_ci95[0] < found.ece < found.ece_ci95[1]


def test_a_half_is_judged_by_the_temperature_of_the_other() -> None:
    """Two prompts: the first is overconfident, the second is not; either one's temperature is wrong for the other."""
    margins = np.array([*[2.0] * 3, -2.0, *[2.0] * 9, -2.0])
    number = np.array([0] * 4 + [1] * 10)
    found = calibrate(margins, number, keys(2))
    ours, theirs = (fit_temperature(margins[number == i]) for i in (0, 1))
    assert ours is not None
    assert theirs is not None
    confidence = 1 / (1 + np.exp(-2 / np.array([theirs, ours])))  # 9 / 10 for the first, 3 / 4 for the second
    assert found.ece_with_temperature == pytest.approx((4 * (confidence[0] - 0.75) + 10 * (0.9 - confidence[1])) / 14)


@pytest.mark.parametrize("margins", [[1.0, 2.0], [-1.0, 0.5], [0.0, 0.0]])
def test_margins_without_a_finite_temperature(margins: list[float]) -> None:
    assert fit_temperature(np.array(margins)) is None


def test_the_interval_covers_an_error_that_is_there() -> None:
    """Confidence 9/10 where 7 in 10 are right: an error of 0.2, to be covered about as often as 95% says."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(100):
        right = random.random(150) < 0.7
        margins = np.where(right, 1, -1) * math.log(9)
        low, high = calibrate(margins, np.arange(150), keys(150)).ece_ci95
        covered += low <= 0.2 <= high
    assert 88 <= covered <= 100

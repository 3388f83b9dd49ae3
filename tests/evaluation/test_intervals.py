from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.evaluation.intervals import auc, auc_interval

values = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(values, values)
def test_the_area_is_the_share_of_couples_in_order(high, low):
    of_high, of_low = auc(high, low)
    couples = [1.0 if a > b else 0.5 if a == b else 0.0 for a in high for b in low]
    assert of_high.mean() == pytest.approx(np.mean(couples), abs=1e-12)
    assert of_low.mean() == pytest.approx(np.mean(couples), abs=1e-12)


def test_values_closer_than_a_tie_count_one_half():
    assert auc([1.0], [1.0 - 1e-6], tie=1e-5)[0].tolist() == [0.5]
    assert auc([1.0], [1.0 - 1e-6])[0].tolist() == [1.0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    truth, covered = 0.7602, 0  # P(x > y) for x of N(1, 1) and y of N(0, 1): Phi(1 / sqrt 2)
    for _ in range(400):
        low, high = auc_interval(random.normal(1, 1, 40), random.normal(0, 1, 60))
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_too_few_values_say_nothing():
    assert auc_interval([1.0], [0.0, 0.5]) == (0.0, 1.0)

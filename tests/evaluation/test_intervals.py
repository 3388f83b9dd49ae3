from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.evaluation.intervals import accuracy_interval, auc, auc_interval, grouped_interval, wilson

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


def test_wilson_solves_its_equation():
    """The ends are the shares from which the one found is z standard errors away."""
    for share, n, z in ((0.5, 100, 1.96), (0.0, 20, 1.96), (0.9, 30, 5.0)):
        for end in wilson(share, n, z):
            assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-9)


def test_groups_by_number_are_groups_by_name():
    correct, names = [1, 1, 0, 0.5, 1, 0, 1], ["a", "a", "b", "c", "c", "c", "d"]
    assert grouped_interval(correct, np.array([0, 0, 1, 2, 2, 2, 3])) == accuracy_interval(correct, names)
    assert grouped_interval(correct, np.array([3, 3, 0, 1, 1, 1, 2])) == pytest.approx(
        accuracy_interval(correct, names)
    )

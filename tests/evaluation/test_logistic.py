from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.evaluation import logistic

rows = st.lists(st.tuples(st.integers(-5, 5), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30)


def test_two_groups_have_a_closed_form():
    """x of 0 and 1: the constant is the log-odds of the first group, the slope the log of the odds' ratio."""
    x, y = [0.0] * 40 + [1.0] * 60, [1.0] * 10 + [0.0] * 30 + [1.0] * 45 + [0.0] * 15
    # a weight of 1e6 leaves nothing of the ridge
    constant, slope = logistic.fit(x, y, np.full((1, 100), 1e6))[0]
    assert constant == pytest.approx(np.log(10 / 30), abs=1e-6)
    assert slope == pytest.approx(np.log(45 / 15) - np.log(10 / 30), abs=1e-6)


def test_a_constant_column_leaves_the_share():
    constant, slope = logistic.fit(np.zeros(10), [1.0] * 7 + [0.0] * 3, np.full((1, 10), 1e6))[0]
    assert logistic.sigmoid(constant) == pytest.approx(0.7, abs=1e-6)
    assert slope == 0


@settings(max_examples=100, deadline=None)
@given(rows)
def test_the_gradient_is_zero_there(found):
    """For separated, constant and single observations too, where the ridge alone decides."""
    x, y = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    constant, slope = logistic.fit(x, y)[0]
    error = y - 1 / (1 + np.exp(-(constant + slope * x)))
    assert error.sum() - logistic.RIDGE * constant == pytest.approx(0, abs=1e-6)
    assert error @ x - logistic.RIDGE * slope == pytest.approx(0, abs=1e-6)


def test_weights_are_repetitions():
    random = np.random.default_rng(0)
    x, y = random.normal(size=50), (random.random(50) < 0.6).astype(float)
    weights = random.integers(0, 3, size=(7, 50))
    together = logistic.fit(x, y, weights)
    for row, (constant, slope) in zip(weights, together, strict=True):
        assert logistic.fit(np.repeat(x, row), np.repeat(y, row))[0] == pytest.approx([constant, slope], abs=1e-8)


def test_far_out_values_do_not_overflow():
    found = logistic.fit([-1e4, 1e4, 3e4], [0.0, 1.0, 1.0])
    assert np.isfinite(found).all()
    assert logistic.sigmoid([-1e6, 0.0, 1e6]).tolist() == [0.0, 0.5, 1.0]

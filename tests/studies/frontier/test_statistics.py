"""Intervals and tests of few seeds, against mpmath's beta function and values worked by hand."""

import math

import mpmath
import numpy as np
import pytest

from preftune.studies.frontier.statistics import adjust, compare, holm, mean, t_quantile, t_tail


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.5, -7.0])
def test_tails_are_those_of_the_incomplete_beta_function(t, freedom):
    expected = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
    assert t_tail(t, freedom) == pytest.approx(float(expected), abs=1e-14)


def test_tails_at_the_ends():
    assert t_tail(math.inf, 3) == pytest.approx(0, abs=1e-15)
    assert t_tail(0, 4) == 1
    assert math.isnan(t_tail(math.nan, 4))


@pytest.mark.parametrize(("freedom", "printed"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262)])
def test_quantiles_are_those_of_printed_tables(freedom, printed):
    assert t_quantile(freedom) == pytest.approx(printed, abs=5e-4)


def test_a_mean_has_its_interval():
    found = mean([1.0, 2.0, 3.0])  # standard error 1 / sqrt(3), quantile 4.3027
    assert (found.value, found.n) == (2, 3)
    assert (found.low, found.high) == pytest.approx((-0.48414, 4.48414), abs=1e-4)
    assert found.half == pytest.approx(2.48414, abs=1e-4)


def test_of_one_value_nothing_is_known_and_of_none_not_even_that():
    assert mean([4.0]).low == -math.inf
    assert mean([4.0]).value == 4
    assert math.isnan(mean([]).value)


def test_intervals_hold_the_truth_as_often_as_they_say():
    drawn = np.random.default_rng(0).normal(1.0, 2.0, size=(2000, 5))
    held = [found.low <= 1.0 <= found.high for found in map(mean, drawn)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_comparisons_are_paired_by_the_seeds_that_both_have():
    found = compare(("a", "b"), {1: 3.0, 2: 5.0, 3: 8.0, 4: 99.0}, {1: 2.0, 2: 3.0, 3: 5.0, 5: 0.0})
    # differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom
    assert (found.difference.value, found.difference.n) == (2, 3)
    assert found.p == pytest.approx(0.074180, abs=1e-6)


def test_comparisons_without_spread_or_without_seeds():
    assert compare(("a", "b"), {1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}).p == 1
    assert compare(("a", "b"), {1: 2.0, 2: 2.0}, {1: 1.0, 2: 1.0}).p == 0
    assert math.isnan(compare(("a", "b"), {1: 2.0}, {1: 1.0}).p)


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_fewer():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert holm([]).tolist() == []
    with_gap = holm([0.01, math.nan, 0.03])
    assert with_gap[[0, 2]] == pytest.approx([0.02, 0.03])
    assert math.isnan(with_gap[1])


def test_holm_holds_the_chance_of_a_false_alarm_among_many():
    drawn = np.random.default_rng(1).random((4000, 12))
    alarms = [holm(row).min() < 0.05 for row in drawn]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.012)


def test_comparisons_are_adjusted_for_each_other():
    strong = compare(("a", "c"), {1: 3.0, 2: 3.1, 3: 2.9}, {1: 1.0, 2: 1.0, 3: 1.0})
    weak = compare(("b", "c"), {1: 1.5, 2: 0.8, 3: 1.3}, {1: 1.0, 2: 1.0, 3: 1.0})
    first, second = adjust([strong, weak])
    assert first.adjusted == pytest.approx(2 * strong.p)
    assert second.adjusted == pytest.approx(weak.p)

"""What the drawings show is what the objectives say on batches of the same form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.objectives import registry
from preftune.report import slices

NAMES = registry.names()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_has_a_slice_with_finite_values(name):
    drawn = slices.along_margin(registry.build(name), np.linspace(-4, 4, 9))
    values = drawn.values
    for array in (values.loss, values.chosen_gradient, values.rejected_gradient):
        assert np.isfinite(array).all()
    assert len(set(values.loss.tolist())) > 1, "the slice shows nothing"
    if math.isnan(drawn.unit):
        assert np.isnan(values.margin).all()
    else:
        assert (np.diff(values.margin) > 0).all()
    assert drawn.words.endswith(".")
    assert ("Four other pairs" in drawn.words) == registry.resolve(name).couples


@pytest.mark.parametrize("name", NAMES)
def test_slopes_are_those_of_finite_differences_unless_statistics_are_held(name):
    """Where examples couple through a statistic without gradient, the slope is at least that of the same sign."""
    objective, step = registry.build(name), 1e-4
    unit = slices.nats_per_margin(objective)
    chosen, rejected = np.array([0.31, -0.17]) * (1 if math.isnan(unit) else unit)
    here = slices.at(objective, chosen, rejected)
    up, down = (slices.at(objective, chosen + shift, rejected).loss for shift in (step, -step))
    if type(objective).couples:
        assert (up - down) * here.chosen_gradient >= 0
    else:
        np.testing.assert_allclose((up - down) / (2 * step), here.chosen_gradient, rtol=1e-4, atol=1e-9)


def test_the_unit_is_one_over_beta_and_slices_cover_the_margins_asked_for():
    assert slices.nats_per_margin(registry.build("dpo", beta=0.25)) == pytest.approx(4, rel=1e-9)
    assert slices.nats_per_margin(registry.build("simpo", beta=2.0)) == pytest.approx(slices.TOKENS / 2, rel=1e-9)
    assert math.isnan(slices.nats_per_margin(registry.build("sft")))
    drawn = slices.along_margin(registry.build("ipo", tau=0.1))
    np.testing.assert_allclose(drawn.values.margin, slices.MARGINS, atol=1e-9)
    np.testing.assert_allclose(drawn.values.loss, (slices.MARGINS / 0.1 - 5) ** 2, rtol=1e-9, atol=1e-9)


def test_losses_that_are_functions_of_delta_are_told_from_others():
    alone = {name for name in NAMES if slices.sees_delta_alone(registry.build(name))}
    assert {"dpo", "ipo", "hinge", "exo", "rebel", "odpo", "psi_po", "r_dpo", "simpo"} <= alone
    assert not alone & {"kl_dpo", "robust_dpo", "dpop", "nca", "sppo", "apo_zero", "cpo", "orpo", "slic", "sft"}


def test_arrays_keep_their_shape_and_single_pairs_are_not_averaged():
    objective = registry.build("nca", beta=0.5)
    chosen, rejected = np.array([[0.0, 1.0, 2.0]]), np.array([[-1.0], [3.0]])
    values = slices.at(objective, chosen, rejected)
    assert values.loss.shape == values.margin.shape == values.chosen_gradient.shape == (2, 3)
    w, r = 0.5 * chosen, 0.5 * rejected
    expected = -np.log(sigmoid(w)) - 0.5 * np.log(sigmoid(-w)) - 0.5 * np.log(sigmoid(-r))
    np.testing.assert_allclose(values.loss, expected, rtol=1e-9)


def test_a_coupled_batch_is_that_of_five_pairs():
    """AOT on one pair and four others, by hand: sorted differences of the policy against those of the reference."""
    objective = registry.build("aot", beta=0.5)
    assert objective.couples
    others = np.array(slices.OTHERS) / 0.5  # 2 nats for each unit of margin
    values = slices.at(objective, [1.0], [-0.4])
    expected = np.log1p(np.exp(-0.5 * np.array([1.4, *others]))).sum()
    np.testing.assert_allclose(values.loss, [expected], rtol=1e-9)

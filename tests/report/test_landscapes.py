"""Landscapes against closed forms, written in numpy alone."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import pytest

from preftune.objectives import build
from preftune.report import landscapes
from preftune.report.landscapes import Sweep

DELTA = np.linspace(-8, 8, 33)
BETAS = np.array([0.05, 0.5, 2.0])
DPO = Sweep("dpo", "beta", BETAS.tolist())
IPO = Sweep("ipo", "tau", (0.05, 0.5))
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dpo(beta, delta):
    return np.log1p(np.exp(-beta * delta)), -beta * sigmoid(-beta * delta)


def drawn(figure, name):
    return [np.array(trace.y, dtype=float) for trace in figure.data if trace.name == name]


def test_loss_gradient_and_its_size_over_delta_are_those_of_dpo():
    figure, data = landscapes.over_delta(DPO, DELTA)
    loss, gradient = dpo(BETAS[:, None], DELTA)
    np.testing.assert_allclose(data["loss_VD"], loss, **CLOSE)
    np.testing.assert_allclose(data["gradient_VD"], gradient, **CLOSE)
    np.testing.assert_allclose(data["gradient_size_VD"], -gradient, **CLOSE)
    assert data["value_V"].tolist() == BETAS.tolist()
    lines = drawn(figure, "beta = 0.5")
    for line, expected in zip(lines, (loss[1], gradient[1], -gradient[1]), strict=True):
        np.testing.assert_allclose(line, expected, rtol=1e-5)


def test_dpo_and_ipo_stand_side_by_side_on_axes_of_their_own():
    figure, data = landscapes.side_by_side(DPO, IPO, DELTA)
    target = 1 / (2 * np.array(IPO.values)[:, None])
    np.testing.assert_allclose(data["left_loss_VD"], dpo(BETAS[:, None], DELTA)[0], **CLOSE)
    np.testing.assert_allclose(data["right_loss_VD"], (DELTA - target) ** 2, **CLOSE)
    np.testing.assert_allclose(data["right_gradient_VD"], 2 * (DELTA - target), **CLOSE)
    axes = {trace.name.partition(",")[0]: set() for trace in figure.data}
    for trace in figure.data:
        axes[trace.name.partition(",")[0]].add(trace.yaxis or "y")
    assert len(axes["dpo"]) == len(axes["ipo"]) == 2
    assert not axes["dpo"] & axes["ipo"]
    assert not any(figure.layout[axis].matches for axis in ("yaxis", "yaxis2", "yaxis3", "yaxis4"))


def test_sensitivity_to_beta_at_fixed_deltas():
    values = np.geomspace(0.01, 2, 9)
    figure, data = landscapes.sensitivity("dpo", "beta", values, delta=(-5.0, 0.0, 20.0))
    loss, gradient = dpo(values, np.array([[-5.0], [0.0], [20.0]]))
    np.testing.assert_allclose(data["loss_DV"], loss, rtol=1e-9)
    np.testing.assert_allclose(data["gradient_DV"], gradient, rtol=1e-9)
    np.testing.assert_allclose(data["gradient_DV"][1], -values / 2, rtol=1e-12)  # the pull at the start is beta / 2
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"


def test_gradient_descent_on_ipo_closes_a_fixed_share_of_the_distance_with_each_step():
    _, data = landscapes.descent(IPO, rate=0.02, steps=50)
    # both log-ratios move by 2 * rate * (target - delta)
    left = (1 - 4 * 0.02) ** np.arange(51)
    target = 1 / (2 * np.array(IPO.values)[:, None])
    np.testing.assert_allclose(data["delta_VT"], target * (1 - left), rtol=1e-9)
    np.testing.assert_allclose(data["loss_VT"], (target * left) ** 2, rtol=1e-9)
    assert data["step_T"].tolist() == list(range(51))


def test_gradient_descent_on_dpo_never_stops_and_a_smaller_beta_ends_further_away():
    _, data = landscapes.descent(Sweep("dpo", "beta", (0.5, 1.0)), rate=0.5, steps=400)
    step, beta = np.diff(data["delta_VT"]), np.array([[0.5], [1.0]])
    np.testing.assert_allclose(step, 2 * 0.5 * beta * sigmoid(-beta * data["delta_VT"][:, :-1]), rtol=1e-9)
    assert (step > 0).all()
    assert data["delta_VT"][0, -1] > data["delta_VT"][1, -1]


def test_descent_moves_both_log_ratios_where_they_pull_differently():
    _, data = landscapes.descent(Sweep("nca", "beta", (0.5,)), rate=0.1, steps=1, start=(1.0, -1.0))
    chosen = 0.5 * (-sigmoid(-0.5) + sigmoid(0.5) / 2)
    rejected = 0.5 * sigmoid(-0.5) / 2
    np.testing.assert_allclose(data["delta_VT"][0], [2.0, 2.0 - 0.1 * (chosen - rejected)], rtol=1e-12)


def test_ipo_is_drawn_to_half_of_one_over_tau():
    taus = np.geomspace(0.01, 2, 12)
    figure, data = landscapes.target("ipo", "tau", taus)
    np.testing.assert_allclose(data["target_V"], 1 / (2 * taus), rtol=1e-9)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


def test_a_loss_without_a_minimum_has_no_target_and_a_flat_one_its_edge():
    assert np.isnan(landscapes.target("dpo", "beta", (0.05, 0.5))[1]["target_V"]).all()
    assert np.isnan(landscapes.target("apo_zero", "beta", (0.1,))[1]["target_V"]).all()
    np.testing.assert_allclose(landscapes.target("hinge", "beta", (0.1, 0.5))[1]["target_V"], [10, 2], rtol=1e-9)


def test_preference_probability_is_the_sigmoid_of_beta_delta():
    _, data = landscapes.probability(DPO, DELTA)
    np.testing.assert_allclose(data["probability_VD"], sigmoid(BETAS[:, None] * DELTA), **CLOSE)


def test_robust_and_kl_penalised_dpo_over_beta():
    betas = np.array([0.05, 0.2, 1.0])
    _, data = landscapes.variants(values=betas, delta=6.0)
    plain, slope = dpo(betas, 6.0)
    # chosen and rejected are 3 nats up and down
    np.testing.assert_allclose(data["loss_VB"], [plain, plain + 0.1 * 18 * betas**2, plain + 0.01 * 18], rtol=1e-9)
    np.testing.assert_allclose(
        data["gradient_VB"], [slope, slope + 0.1 * 6 * betas**2, slope + 0.01 * 6 * betas**0], rtol=1e-9
    )
    assert np.isnan(data["target_VB"][0]).all()
    reward = betas * data["target_VB"][1] / 2  # sigmoid(-2 r) = 2 eta r: the same r at every beta
    np.testing.assert_allclose(sigmoid(-2 * reward), 2 * 0.1 * reward, rtol=1e-8)
    ratio = data["target_VB"][2] / 2
    np.testing.assert_allclose(betas * sigmoid(-2 * betas * ratio), 2 * 0.01 * ratio, rtol=1e-8)


def test_the_heat_map_holds_loss_and_slopes_over_both_log_ratios():
    chosen, rejected = np.linspace(-4, 4, 9), np.linspace(-3, 3, 7)
    figure, data = landscapes.heat_map(build("kl_dpo", beta=0.5, kl_weight=0.2), chosen, rejected)
    w, r = chosen[None, :], rejected[:, None]
    np.testing.assert_allclose(data["loss_JC"], dpo(0.5, w - r)[0] + 0.2 * (w**2 + r**2), rtol=1e-9)
    np.testing.assert_allclose(data["chosen_gradient_JC"], dpo(0.5, w - r)[1] + 0.4 * w, **CLOSE)
    np.testing.assert_allclose(data["rejected_gradient_JC"], -dpo(0.5, w - r)[1] + 0.4 * r, **CLOSE)
    (map_,) = figure.data
    np.testing.assert_allclose(np.array(map_.z), data["loss_JC"], rtol=1e-5)


@pytest.mark.parametrize(
    "draw",
    [
        landscapes.over_delta,
        landscapes.side_by_side,
        landscapes.sensitivity,
        landscapes.target,
        landscapes.probability,
        landscapes.variants,
        landscapes.heat_map,
        lambda: landscapes.descent(steps=20),
    ],
)
def test_every_landscape_has_defaults_and_can_be_written(draw):
    figure, data = draw()
    assert isinstance(figure, go.Figure)
    assert figure.to_json()
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert all(value.dtype == np.float64 for value in data.values())


def test_any_objective_may_be_swept_with_modifiers_and_with_other_fields_set():
    cooler = build("dpo", modifiers={"temperature": 2.0})
    _, data = landscapes.over_delta(Sweep(cooler, "beta", (0.4,)), DELTA)
    np.testing.assert_allclose(data["loss_VD"][0], dpo(0.2, DELTA)[0], rtol=1e-9)
    smooth = build("dpo", label_smoothing=0.1)
    _, data = landscapes.over_delta(Sweep(smooth, "beta", (0.5,)), [3.0])
    expected = 0.9 * dpo(0.5, 3.0)[0] + 0.1 * dpo(0.5, -3.0)[0]
    np.testing.assert_allclose(data["loss_VD"], [[expected]], rtol=1e-9)
    assert math.isclose(landscapes.target(smooth, "beta", (0.5,))[1]["target_V"][0], math.log(9) / 0.5, rel_tol=1e-8)

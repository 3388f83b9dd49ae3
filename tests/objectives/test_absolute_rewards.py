"""cal_dpo, nca, apo_zero, apo_down and sppo: losses of both log-ratios. Formulas: test_pair_formulas.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.apo_down import APODown
from preftune.objectives.apo_zero import APOZero
from preftune.objectives.cal_dpo import CalDPO
from preftune.objectives.dpo import DPO
from preftune.objectives.nca import NCA
from preftune.objectives.sppo import SPPO

ratios = st.floats(-100, 100)
betas = st.floats(0.01, 2)


def at(objective, chosen, rejected, **columns):
    """Loss, and its slopes in both log-ratios."""
    leaves = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected)]
    columns = {name: torch.tensor([value], dtype=torch.float64) for name, value in columns.items()}
    loss = objective.on_pairs(*leaves, *[torch.zeros(1, dtype=torch.float64)] * 2, **columns).loss
    return loss.item(), *(gradient.item() for gradient in torch.autograd.grad(loss, leaves))


def test_values_worked_by_hand():
    """Log-ratios 1 and -1."""
    s = 1 / (1 + math.exp(-0.5))
    assert at(CalDPO(beta=0.25), 1, -1)[0] == pytest.approx(math.log1p(math.exp(-2)) + (1 + 1) / 2)
    assert at(NCA(beta=0.5), 1, -1)[0] == pytest.approx(-math.log(s) - math.log(1 - s) / 2 - math.log(s) / 2)
    assert at(APOZero(beta=0.5), 1, -1)[0] == pytest.approx(2 * (1 - s))
    assert at(APODown(beta=0.5), 1, -1)[0] == pytest.approx(s + 1 - 1 / (1 + math.exp(-1)))
    assert at(SPPO(beta=0.25), 1, -1) == (1.0, -1.0, 1.0)
    assert at(SPPO(beta=0.25, chosen_win_rate=0.75, rejected_win_rate=0.5), 1, -1) == (0.5, 0.0, -1.0)


# --- cal_dpo ----------------------------------------------------------------------------------------------------------


def test_cal_dpo_draws_rewards_to_a_half_and_minus_a_half():
    """The logistic part, which has no beta, has all but vanished there."""
    beta = 0.002
    loss, *slopes = at(CalDPO(beta=beta), 1 / (2 * beta), -1 / (2 * beta))
    assert (loss, *slopes) == pytest.approx((0, 0, 0), abs=1e-12)
    assert CalDPO(beta=beta).reward(torch.tensor(1 / (2 * beta)), torch.tensor(1)).item() == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(chosen=ratios, rejected=ratios, beta=st.floats(0.002, 1), weight=st.floats(0.1, 3))
def test_the_logistic_part_of_cal_dpo_has_no_beta(chosen, rejected, beta, weight):
    squares = (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
    expected = at(DPO(beta=1), chosen, rejected)[0] + weight * squares
    found = at(CalDPO(beta=beta, calibration_weight=weight), chosen, rejected)[0]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


# --- nca --------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(chosen=ratios, rejected=ratios, beta=betas)
def test_nca_draws_the_chosen_reward_to_log_2_and_the_rejected_one_down(chosen, rejected, beta):
    _, pull, push = at(NCA(beta=beta), chosen, rejected)
    assert pull * (beta * chosen - math.log(2)) >= -1e-12
    assert push == pytest.approx(0.5 * beta / (1 + math.exp(-beta * rejected)))
    assert at(NCA(beta=beta), math.log(2) / beta, rejected)[1] == pytest.approx(0, abs=1e-12)


# --- apo --------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(chosen=ratios, rejected=ratios, beta=betas)
def test_apo_is_bounded_and_moves_as_its_names_say(chosen, rejected, beta):
    for kind in (APOZero, APODown):
        assert 0 <= at(kind(beta=beta), chosen, rejected)[0] <= 2
    _, chosen_slope, rejected_slope = at(APOZero(beta=beta), chosen, rejected)
    assert chosen_slope <= 0 <= rejected_slope
    _, chosen_slope, rejected_slope = at(APODown(beta=beta), chosen, rejected)
    assert rejected_slope >= 0
    assert chosen_slope + rejected_slope >= 0  # together, the two go down


def test_apo_at_the_start():
    """Zero: chosen up, rejected down, equally hard. Down: rejected down first, chosen follows once they are apart."""
    assert at(APOZero(beta=0.2), 0, 0) == pytest.approx((1, -0.2 / 4, 0.2 / 4))
    assert at(APODown(beta=0.2), 0, 0) == pytest.approx((1, 0, 0.2 / 4))
    assert at(APODown(beta=0.2), 0, -5)[1] > 0


def test_apo_keeps_its_precision_where_a_sigmoid_rounds_to_one():
    leaf, zero = torch.tensor([200.0]), torch.zeros(1)
    assert APOZero(beta=0.1).on_pairs(leaf, zero - 800, zero, zero).loss.item() == pytest.approx(
        math.exp(-20), rel=1e-5
    )


# --- sppo -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(chosen=ratios, rejected=ratios, beta=st.floats(0.001, 1))
def test_sppo_with_weight_2_is_trls_hard_form(chosen, rejected, beta):
    theirs = (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
    assert 2 * at(SPPO(beta=beta), chosen, rejected)[0] == pytest.approx(theirs, rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(chosen=ratios, rejected=ratios, beta=st.floats(0.01, 1), p=st.floats(0.55, 1))
def test_a_soft_label_is_a_win_rate(chosen, rejected, beta, p):
    """p * loss + (1 - p) * loss of the swapped pair is the loss of win rates p and 1 - p, and p (1 - p) / beta^2."""
    soft = at(SPPO(beta=beta), chosen, rejected, confidence=p)
    rates = at(SPPO(beta=beta, chosen_win_rate=p, rejected_win_rate=1 - p), chosen, rejected)
    assert soft[0] == pytest.approx(rates[0] + p * (1 - p) / beta**2, rel=1e-9)
    assert soft[1:] == pytest.approx(rates[1:], rel=1e-6, abs=1e-9 / beta)


def test_sppo_moves_each_response_to_its_own_target():
    objective = SPPO(beta=0.01, chosen_win_rate=0.9, rejected_win_rate=0.6)  # both win more often than not
    assert at(objective, 40, 10) == pytest.approx((0, 0, 0), abs=1e-12)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cal_dpo", "nca", "apo_zero", "apo_down", "sppo"])
@pytest.mark.parametrize("beta", [0, -0.1, math.inf, math.nan])
def test_beta_is_positive(name, beta):
    with pytest.raises(PreftuneError, match=f"objective {name} is refused: beta must be finite and > 0, got {beta}"):
        registry.build(name, beta=beta)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("cal_dpo", {"calibration_weight": 0}, "calibration_weight must be finite and > 0, got 0"),
        (
            "sppo",
            {"chosen_win_rate": 1.2},
            "win rates must have 0 <= rejected_win_rate < chosen_win_rate <= 1, got 0.0 and 1.2: 0 ",
        ),
        ("sppo", {"rejected_win_rate": -0.1}, "win rates must have 0 <= rejected_win_rate < chosen_win_rate <= 1, got"),
        ("sppo", {"chosen_win_rate": 0.4, "rejected_win_rate": 0.4}, "win rates must have 0 <= rejected_win_rate < "),
    ],
)
def test_other_fields_are_in_range(name, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert str(raised.value).startswith(f"objective {name} is refused: {message}")

"""hinge, exo, discopop and rebel: other functions of delta than DPO's. Formulas: test_pair_formulas.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.discopop import DiscoPOP
from preftune.objectives.exo import EXO
from preftune.objectives.hinge import Hinge
from preftune.objectives.rebel import REBEL

deltas = st.floats(-300, 300)
betas = st.floats(0.01, 2)


def at(objective, delta, **columns):
    """Loss and its slope in delta."""
    leaf = torch.tensor([delta], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    columns = {name: torch.tensor([value], dtype=torch.float64) for name, value in columns.items()}
    loss = objective.on_pairs(leaf, zero, zero, zero, **columns).loss
    return loss.item(), torch.autograd.grad(loss, leaf)[0].item()


def test_values_worked_by_hand():
    """delta 2 at beta 0.5, so the margin is 1."""
    assert at(Hinge(beta=0.25), 2.0) == (0.5, -0.25)
    q = 1 / (1 + math.exp(-1))  # 0.7311: 0.7311 * log(0.7311 / 0.9) + 0.2689 * log(0.2689 / 0.1) = 0.1141
    assert at(EXO(beta=0.5, epsilon=0.1), 2.0)[0] == pytest.approx(0.1141, abs=5e-5)
    assert at(EXO(beta=0.5, epsilon=0.1), 2.0)[1] == pytest.approx(0.5 * q * (1 - q) * (1 - math.log(9)))
    # half logistic, half exponential, where the two are mixed evenly: (log 2 + 1) / 2
    assert at(DiscoPOP(), 0.0)[0] == pytest.approx((math.log(2) + 1) / 2)
    assert at(REBEL(eta=0.5), 2.0, gap=3.0) == (1.0, 2 * (4 - 3) / 0.5)


@pytest.mark.parametrize("name", ["hinge", "exo", "discopop", "rebel"])
@settings(max_examples=40, deadline=None)
@given(chosen=st.floats(-50, 0), rejected=st.floats(-50, 0), shift=st.floats(-50, 0))
def test_they_see_the_difference_alone(name, chosen, rejected, shift):
    objective, zero = registry.build(name), torch.zeros(1, dtype=torch.float64)
    c, r = (torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected))
    plain, moved = (objective.on_pairs(c + by, r + by, zero, zero, gap=zero + 1).loss.item() for by in (0, shift))
    assert moved == pytest.approx(plain, rel=1e-9, abs=1e-12)


# --- hinge ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(delta=deltas, beta=betas)
def test_hinge_pulls_evenly_until_the_margin_is_one(delta, beta):
    loss, slope = at(Hinge(beta=beta), delta)
    if beta * delta < 1 - 1e-9:
        assert slope == -beta
    elif beta * delta > 1 + 1e-9:
        assert (loss, slope) == (0, 0)
    assert at(Hinge(beta=beta), 0.0) == (1, -beta)


# --- exo --------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(delta=deltas, beta=betas, epsilon=st.floats(1e-5, 0.4))
def test_exo_is_a_divergence_from_the_label_and_vanishes_at_it(delta, beta, epsilon):
    objective, target = EXO(beta=beta, epsilon=epsilon), math.log((1 - epsilon) / epsilon)
    loss, slope = at(objective, delta)
    assert -1e-12 <= loss <= math.log(1 / epsilon) + 1e-9
    assert at(objective, target / beta) == pytest.approx((0, 0), abs=1e-12)
    assert slope * (beta * delta - target) >= 0  # downhill towards it, from both sides


def test_exo_hardly_pulls_a_pair_far_out_of_order():
    objective = EXO(beta=0.1)
    assert at(objective, -1000.0)[0] == pytest.approx(math.log(1000))
    assert abs(at(objective, -1000.0)[1]) < 1e-30 < abs(at(objective, -50.0)[1]) < abs(at(objective, 0.0)[1])


@settings(max_examples=40, deadline=None)
@given(delta=deltas)
def test_exo_with_the_authors_constants(delta):
    """They write -10 for log epsilon and 0 for log(1 - epsilon)."""
    right, wrong = 1 / (1 + math.exp(-0.5 * delta)), 1 / (1 + math.exp(0.5 * delta))
    entropy = sum(q * math.log(q) for q in (right, wrong) if q > 0)
    loss, _ = at(EXO(beta=0.5, epsilon=math.exp(-10)), delta)
    assert loss == pytest.approx(entropy + 10 * wrong, abs=5e-5)
    other, _ = at(EXO(beta=0.5), delta)  # TRL's advice, our default
    assert other == pytest.approx(entropy - wrong * math.log(1e-3) - right * math.log1p(-1e-3), rel=1e-9, abs=1e-12)


# --- discopop ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(delta=st.floats(-600, 600), beta=betas, tau=st.floats(0.02, 1))
def test_discopop_is_logistic_out_of_order_and_exponential_in_order(delta, beta, tau):
    x = beta * delta
    loss, slope = at(DiscoPOP(beta=beta, tau=tau), delta)
    assert math.isfinite(slope)
    if x / tau < -45 and x * (1 / tau - 1) < -45:
        assert loss == pytest.approx(math.log1p(math.exp(x)) - x, rel=1e-9)
    if x / tau > 45:
        assert loss == pytest.approx(math.exp(-x), rel=1e-9, abs=1e-300)


def test_discopop_has_a_local_minimum_just_out_of_order():
    below, least, above = (at(DiscoPOP(beta=1.0), x)[0] for x in (-0.3, -0.12, 0.0))
    assert least < below
    assert least < above
    assert at(DiscoPOP(beta=1.0), -0.02)[1] > 0
    assert at(DiscoPOP(beta=1.0), 0.5)[1] < 0


# --- rebel ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(delta=deltas, gap=st.floats(-5, 5), eta=st.floats(0.05, 20), p=st.floats(0, 1))
def test_rebel_does_not_care_which_response_is_called_chosen(delta, gap, eta, p):
    objective = REBEL(eta=eta)
    loss, slope = at(objective, delta, gap=gap)
    other, opposite = at(objective, -delta, gap=-gap)
    assert other == pytest.approx(loss, rel=1e-12)
    assert opposite == pytest.approx(-slope, rel=1e-12)
    assert at(objective, delta, gap=gap, confidence=p)[0] == pytest.approx(loss, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(delta=deltas, gap=st.floats(-5, 5), eta=st.floats(0.05, 20))
def test_rebel_times_eta_squared_is_the_authors_code(delta, gap, eta):
    assert eta**2 * at(REBEL(eta=eta), delta, gap=gap)[0] == pytest.approx((delta - eta * gap) ** 2, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("eta", [0.5, 3.0])
def test_rebel_fits_the_policy_that_trades_reward_against_divergence(eta):
    """Three responses with rewards 1, 0, -2: the residuals vanish at pi proportional to pi_ref * exp(eta * reward)."""
    rewards = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    reference = torch.log(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))
    policy = torch.log_softmax(reference + eta * rewards, 0)
    a, b = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    result = REBEL(eta=eta).on_pairs(policy[a], policy[b], reference[a], reference[b], gap=rewards[a] - rewards[b])
    torch.testing.assert_close(result.loss_E, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-20)
    torch.testing.assert_close(result.margin_E, rewards[a] - rewards[b])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("hinge", {"beta": 0}, "beta must be finite and > 0, got 0"),
        ("exo", {"beta": -1}, "beta must be finite and > 0, got -1"),
        ("exo", {"epsilon": 0}, "epsilon must be in (0, 0.5), got 0.0: the loss takes its logarithm"),
        ("exo", {"epsilon": 0.5}, "epsilon must be in (0, 0.5), got 0.5"),
        ("discopop", {"beta": math.nan}, "beta must be finite and > 0, got nan"),
        ("discopop", {"tau": 0}, "tau must be in (0, 1], got 0"),
        ("discopop", {"tau": 1.5}, "tau must be in (0, 1], got 1.5: above 1 the exponential grows faster"),
        ("rebel", {"eta": 0}, "eta must be finite and > 0, got 0"),
        ("rebel", {"eta": math.inf}, "eta must be finite and > 0, got inf"),
    ],
)
def test_refused_fields(name, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert str(raised.value).startswith(f"objective {name} is refused: {message}")

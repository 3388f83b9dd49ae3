import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from preftune.objectives.dpo import DPO

CHOSEN, REJECTED = tensor([-2.0, -1.5, -1.8]), tensor([-3.5, -4.0, -3.2])
REFERENCE_CHOSEN, REFERENCE_REJECTED = tensor([-2.5, -2.0, -2.2]), tensor([-3.0, -3.5, -2.8])

logps = st.floats(-200, 0)
four = st.tuples(logps, logps, logps, logps)
betas = st.floats(0.01, 5)
smoothings = st.floats(0, 0.45)
probabilities = st.floats(0, 1)


def columns(values):
    return [tensor([value], dtype=torch.float64) for value in values]


def expected(values, beta, smoothing, confidence):
    """The cross-entropy of a Bernoulli label against the Bradley-Terry probability, in 50 digits, and its slope.

    Written from the definition: P = 1 / (1 + exp(-reward difference)), loss = -q log P - (1 - q) log(1 - P).
    """
    with mpmath.workdps(50):
        chosen, rejected, reference_chosen, reference_rejected = map(mpmath.mpf, values)
        beta, smoothing, confidence = map(mpmath.mpf, (beta, smoothing, confidence))
        q = confidence - 2 * confidence * smoothing + smoothing
        margin = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)
        p, other = 1 / (1 + mpmath.exp(-margin)), 1 / (1 + mpmath.exp(margin))
        return float(-q * mpmath.log(p) - (1 - q) * mpmath.log(other)), float(beta * (p - q))


def test_value_worked_by_hand():
    """Deltas 1.0, 1.0, 0.8; margins 0.1, 0.1, 0.08; losses 0.6444, 0.6444, 0.6539."""
    result = DPO(beta=0.1).on_pairs(CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
    torch.testing.assert_close(result.delta_E, tensor([1.0, 1.0, 0.8]))
    torch.testing.assert_close(result.chosen_reward_E, tensor([0.05, 0.05, 0.04]))
    torch.testing.assert_close(result.rejected_reward_E, tensor([-0.05, -0.05, -0.04]))
    assert round(result.loss.item(), 4) == 0.6476
    assert round(result.margin.item(), 4) == 0.0933


def test_at_the_start_the_loss_is_log_2():
    result = DPO(beta=0.7).on_pairs(CHOSEN, REJECTED, CHOSEN, REJECTED)
    torch.testing.assert_close(result.loss_E, torch.full((3,), math.log(2)))
    assert torch.equal(result.margin_E, torch.zeros(3))


@settings(max_examples=150, deadline=None)
@given(values=four, beta=betas, smoothing=smoothings, confidence=probabilities)
def test_value_and_gradient_equal_the_definition(values, beta, smoothing, confidence):
    leaves = [column.requires_grad_() for column in columns(values)]
    objective = DPO(beta=beta, label_smoothing=smoothing)
    loss = objective.on_pairs(*leaves, confidence=tensor([confidence], dtype=torch.float64)).loss
    value, slope = expected(values, beta, smoothing, confidence)
    assert loss.item() == pytest.approx(value, rel=1e-6, abs=1e-12)
    chosen, rejected = (gradient.item() for gradient in torch.autograd.grad(loss, leaves[:2]))
    assert chosen == pytest.approx(slope, rel=1e-6, abs=1e-12)
    assert rejected == -chosen


@settings(max_examples=60, deadline=None)
@given(values=four, beta=betas, smoothing=smoothings, confidence=probabilities)
def test_swapping_the_pair_is_the_same_as_doubting_the_label(values, beta, smoothing, confidence):
    chosen, rejected, reference_chosen, reference_rejected = columns(values)
    p = tensor([confidence], dtype=torch.float64)
    objective = DPO(beta=beta, label_smoothing=smoothing)
    straight = objective.on_pairs(chosen, rejected, reference_chosen, reference_rejected, confidence=p)
    swapped = objective.on_pairs(rejected, chosen, reference_rejected, reference_chosen, confidence=1 - p)
    torch.testing.assert_close(straight.loss_E, swapped.loss_E, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(straight.margin_E, -swapped.margin_E)


@settings(max_examples=60, deadline=None)
@given(values=four, beta=betas, more=st.floats(0.01, 50))
def test_a_larger_margin_is_a_smaller_loss(values, beta, more):
    chosen, *others = columns((values[0] / 10, values[1] / 10, values[2] / 10, values[3] / 10))
    smaller, larger = (DPO(beta=beta).on_pairs(chosen + step, *others) for step in (0, more))
    assert larger.margin > smaller.margin
    assert larger.loss < smaller.loss


@settings(max_examples=40, deadline=None)
@given(beta=betas, smoothing=st.floats(0.01, 0.45))
def test_label_smoothing_pulls_towards_its_own_odds(beta, smoothing):
    """The slope vanishes where sigmoid(margin) is the probability that the label is right."""
    margin = math.log((1 - smoothing) / smoothing)
    chosen = tensor([margin / beta], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    loss = DPO(beta=beta, label_smoothing=smoothing).on_pairs(chosen, zero, zero, zero).loss
    loss.backward()
    assert chosen.grad.item() == pytest.approx(0, abs=1e-12)
    assert loss.item() == pytest.approx(-(1 - smoothing) * math.log(1 - smoothing) - smoothing * math.log(smoothing))


def test_far_from_the_decision_the_loss_is_linear_and_the_slope_is_beta():
    chosen = tensor([-1e4, 0.0], requires_grad=True)
    loss_E = DPO(beta=2.0).on_pairs(chosen, tensor([0.0, -1e4]), torch.zeros(2), torch.zeros(2)).loss_E
    assert loss_E.tolist() == [2e4, 0.0]
    assert torch.autograd.grad(loss_E.sum(), chosen)[0].tolist() == [-2.0, 0.0]

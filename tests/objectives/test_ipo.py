import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from preftune.objectives import registry
from preftune.objectives.ipo import IPO

logps = st.floats(-200, 0)
four = st.tuples(logps, logps, logps, logps)
taus = st.floats(0.01, 5)
probabilities = st.floats(0, 1)
lengths = st.integers(1, 300)


def columns(values):
    return [tensor([value], dtype=torch.float64) for value in values]


def expected(values, tau, lengths, confidence):
    """The same parabolas multiplied out: delta^2 - (2p - 1) delta / tau + 1 / (4 tau^2), and the slope in delta."""
    policy, reference = np.array(values[:2], np.longdouble), np.array(values[2:], np.longdouble)
    delta = np.dot((policy - reference) / np.array(lengths, np.longdouble), [1, -1])
    lean = 2 * np.longdouble(confidence) - 1
    tau = np.longdouble(tau)
    return float(delta**2 - lean * delta / tau + 1 / (4 * tau**2)), float(2 * delta - lean / tau)


def test_values_worked_by_hand():
    """Log-ratios 2 and -4 over 4 and 2 tokens: delta 6 nats, or 0.5 + 2 = 2.5 nats per token; target 1 / (2 * 0.25)."""
    given = [tensor([-4.0]), tensor([-9.0]), tensor([-6.0]), tensor([-5.0])]
    summed = IPO(tau=0.25).on_pairs(*given)
    mean = IPO(tau=0.25, average="mean").on_pairs(*given, tensor([4]), tensor([2]))
    assert (summed.loss.item(), summed.margin.item()) == ((6 - 2) ** 2, 0.25 * 6)
    assert (mean.loss.item(), mean.margin.item()) == ((2.5 - 2) ** 2, 0.25 * 2.5)


@settings(max_examples=150, deadline=None)
@given(values=four, tau=taus, chosen=lengths, rejected=lengths, confidence=probabilities)
def test_value_and_gradient_equal_the_parabola(values, tau, chosen, rejected, confidence):
    for average, divisors in (("sum", (1, 1)), ("mean", (chosen, rejected))):
        leaves = [column.requires_grad_() for column in columns(values)]
        given_lengths = (tensor([chosen]), tensor([rejected]))
        p = tensor([confidence], dtype=torch.float64)
        loss = IPO(tau=tau, average=average).on_pairs(*leaves, *given_lengths, confidence=p).loss
        value, slope = expected(values, tau, divisors, confidence)
        scale = 1 / (4 * tau**2)  # the loss is a difference of numbers of this size, so relative to it
        assert loss.item() == pytest.approx(value, rel=1e-6, abs=1e-9 * scale)
        gradients = [gradient.item() for gradient in torch.autograd.grad(loss, leaves[:2])]
        wanted = [slope / divisors[0], -slope / divisors[1]]
        assert gradients == pytest.approx(wanted, rel=1e-6, abs=1e-9 / tau)


@settings(max_examples=60, deadline=None)
@given(values=four, tau=taus, chosen=lengths, rejected=lengths, confidence=probabilities)
def test_swapping_the_pair_is_the_same_as_doubting_the_label(values, tau, chosen, rejected, confidence):
    (a, b, reference_a, reference_b), n, m = columns(values), tensor([chosen]), tensor([rejected])
    p = tensor([confidence], dtype=torch.float64)
    for average in ("sum", "mean"):
        objective = IPO(tau=tau, average=average)
        straight = objective.on_pairs(a, b, reference_a, reference_b, n, m, confidence=p)
        swapped = objective.on_pairs(b, a, reference_b, reference_a, m, n, confidence=1 - p)
        torch.testing.assert_close(straight.loss_E, swapped.loss_E, rtol=1e-9, atol=1e-9 / tau**2)


def minimum(losses, size):
    """Where a quadratic function of `size` variables is smallest: one Newton step from zero."""
    zero = torch.zeros(size, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(losses, zero)
    return -torch.linalg.pinv(torch.autograd.functional.hessian(losses, zero)) @ gradient


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("confidence", [1.0, 0.8])
def test_promise_07_ipo_sum_and_mean_are_drawn_to_their_closed_forms(tau, confidence):
    """The optimum is (2p - 1) / (2 tau) nats between whole responses for "sum"; for "mean" it is the same number of
    nats per token, so between equally long responses it is the length times as far."""
    zero, p = torch.zeros(1, dtype=torch.float64), tensor([confidence], dtype=torch.float64)
    for average, length, distance in (("sum", 7, 1), ("mean", 7, 7), ("mean", 1, 1)):
        objective, tokens = registry.build("ipo", tau=tau, average=average), tensor([length])

        def loss(delta, objective=objective, tokens=tokens):
            return objective.on_pairs(delta, zero, zero, zero, tokens, tokens, confidence=p).loss

        assert minimum(loss, 1).item() == pytest.approx(distance * (2 * confidence - 1) / (2 * tau))
        assert objective.describe()["average"] == average  # recorded, and in the run's config
        assert registry.spec_of(registry.terms(objective))["average"] == average


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_promise_07_with_sums_a_tabular_policy_reaches_the_optimum_of_the_paper(tau):
    """Three actions, uniform reference, a over b over c: logits (1, 0, -1) / (3 tau), equation 9 of the paper. Two
    actions: pi(a) = sigmoid(1 / (2 tau))."""
    reference = torch.full((3,), math.log(1 / 3), dtype=torch.float64)
    better, worse = tensor([0, 1, 0]), tensor([1, 2, 2])

    def loss(theta):
        policy = torch.log_softmax(theta, 0)
        return IPO(tau=tau).on_pairs(policy[better], policy[worse], reference[better], reference[worse]).loss

    theta = minimum(loss, 3)
    torch.testing.assert_close(theta, tensor([1.0, 0.0, -1.0], dtype=torch.float64) / (3 * tau))
    if tau == 1:
        assert [round(p, 3) for p in torch.softmax(theta, 0).tolist()] == [0.448, 0.321, 0.230]

    better, worse = tensor([0]), tensor([1])
    pair = torch.softmax(minimum(loss, 3)[:2], 0)
    assert pair[0].item() == pytest.approx(1 / (1 + math.exp(-1 / (2 * tau))))


def test_direct_construction_refuses_what_the_config_refuses():
    with pytest.raises(ValueError, match="tau must be finite and > 0, got -1"):
        IPO(tau=-1)
    with pytest.raises(ValueError, match='average must be "sum" or "mean"'):
        IPO(average="max")

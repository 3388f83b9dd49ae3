"""f_dpo: DPO under four divergences. Formulas: test_pair_formulas.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.dpo import DPO
from preftune.objectives.f_dpo import FDPO

ALL = [FDPO(), FDPO(divergence="forward_kl"), FDPO(divergence="js"), FDPO(divergence="alpha", alpha=0.5)]
ratios = st.floats(-10, 10)


def result(objective, chosen, rejected, dtype=torch.float64):
    leaves = [torch.tensor([x], dtype=dtype, requires_grad=True) for x in (chosen, rejected)]
    return objective.on_pairs(*leaves, *[torch.zeros(1, dtype=dtype)] * 2), leaves


def test_values_worked_by_hand():
    """u = 2 and u = 1/2, beta 1. f' differ by 2 log 2; by 2 - 1/2; by log(4/3) - log(2/3) = log 2; by
    (sqrt(2) - sqrt(1/2)) / 0.5 = sqrt(2)."""
    for objective, difference in zip(ALL, (2 * math.log(2), 1.5, math.log(2), math.sqrt(2)), strict=True):
        one = registry.build("f_dpo", **{**objective.describe(), "beta": 1.0})
        found, _ = result(one, math.log(2), -math.log(2))
        assert found.margin.item() == pytest.approx(difference)
        assert found.loss.item() == pytest.approx(math.log1p(math.exp(-difference)))


@settings(max_examples=40, deadline=None)
@given(chosen=ratios, rejected=ratios, beta=st.floats(0.01, 2))
def test_the_reverse_kl_is_dpo_and_alpha_lies_between_the_kls(chosen, rejected, beta):
    dpo, _ = result(DPO(beta=beta), chosen, rejected)
    reverse, _ = result(FDPO(beta=beta), chosen, rejected)
    assert reverse.loss.item() == pytest.approx(dpo.loss.item(), rel=1e-12)
    assert reverse.margin.item() == dpo.margin.item()
    for alpha, end in ((1e-7, "reverse_kl"), (1 - 1e-7, "forward_kl")):
        near, _ = result(FDPO(beta=beta, divergence="alpha", alpha=alpha), chosen, rejected)
        limit, _ = result(FDPO(beta=beta, divergence=end), chosen, rejected)
        assert near.loss.item() == pytest.approx(limit.loss.item(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("objective", ALL, ids=lambda objective: objective.divergence)
def test_rewards_are_zero_at_the_start_and_grow_with_the_likelihood(objective):
    start, _ = result(objective, 0.0, 0.0)
    assert start.chosen_reward_E.item() == 0
    assert start.loss.item() == pytest.approx(math.log(2))
    rewards = [result(objective, ratio, 0.0)[0].chosen_reward_E.item() for ratio in (-5, -1, 0, 1, 5)]
    assert rewards == sorted(set(rewards))


@settings(max_examples=40, deadline=None)
@given(chosen=ratios, rejected=ratios, alpha=st.sampled_from([0.3, 0.5, 0.7]))
def test_alpha_is_one_minus_the_coefficient_of_trl(chosen, rejected, alpha):
    """Its form, with the constant dropped: u^(c - 1) / (c - 1)."""
    c = 1 - alpha
    theirs = [math.exp((c - 1) * ratio) / (c - 1) for ratio in (chosen, rejected)]
    margin = 0.3 * (theirs[0] - theirs[1])
    found, _ = result(FDPO(beta=0.3, divergence="alpha", alpha=alpha), chosen, rejected)
    expected = max(-margin, 0) + math.log1p(math.exp(-abs(margin)))
    assert found.loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if alpha != 0.5:  # c = alpha, as TRL had it, is another loss
        other = [math.exp((alpha - 1) * ratio) / (alpha - 1) for ratio in (3.0, -2.0)]
        old = math.log1p(math.exp(-0.3 * (other[0] - other[1])))
        ours, _ = result(FDPO(beta=0.3, divergence="alpha", alpha=alpha), 3.0, -2.0)
        assert ours.loss.item() != pytest.approx(old, rel=1e-3)


def test_a_gain_of_likelihood_counts_less_the_closer_to_the_forward_kl():
    """Slopes of f' in log u: 1 for the reverse KL, u^-alpha for alpha, 1 / (1 + u) for js, 1 / u for the forward KL."""
    slopes = []
    for objective in ALL:
        found, leaves = result(objective, 3.0, 3.0)
        slopes.append(-torch.autograd.grad(found.loss, leaves)[0].item() / (0.1 / 2))
    reverse, forward, js, alpha = slopes
    u = math.exp(3)
    assert [reverse, alpha, js, forward] == pytest.approx([1, u**-0.5, 1 / (1 + u), 1 / u])


def test_float32_reaches_as_far_as_declared_and_the_stable_ones_further():
    for objective in ALL:
        for far in (FDPO.finite_up_to, -FDPO.finite_up_to):
            found, leaves = result(objective, far, -far, torch.float32)
            gradients = torch.autograd.grad(found.loss, leaves)
            assert all(value.isfinite().all() for value in (found.loss, found.margin_E, *gradients))
    for objective in (FDPO(), FDPO(divergence="js")):
        found, leaves = result(objective, -2e4, 2e4, torch.float32)
        assert all(value.isfinite().all() for value in (found.loss, *torch.autograd.grad(found.loss, leaves)))
    assert not result(FDPO(divergence="forward_kl"), -89.0, 0.0, torch.float32)[0].loss.isfinite()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0}, "is refused: beta must be finite and > 0, got 0"),
        (
            {"divergence": "alpha"},
            "is refused: alpha must be in (0, 1) for divergence alpha, got None: at its ends use",
        ),
        ({"divergence": "alpha", "alpha": 0}, "is refused: alpha must be in (0, 1) for divergence alpha, got 0"),
        ({"divergence": "alpha", "alpha": 1}, "is refused: alpha must be in (0, 1) for divergence alpha, got 1"),
        ({"alpha": 0.5}, "is refused: alpha is 0.5, but reverse_kl has none: set divergence to alpha"),
        ({"divergence": "js", "alpha": 0.5}, "is refused: alpha is 0.5, but js has none: set divergence to alpha"),
    ],
)
def test_refused_fields(fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build("f_dpo", **fields)
    assert str(raised.value).startswith(f"objective f_dpo {message}")


def test_an_unknown_divergence_is_refused():
    with pytest.raises(PreftuneError, match="objective f_dpo: divergence is the text 'kl', expected"):
        registry.build("f_dpo", divergence="kl")
    with pytest.raises(ValueError, match='divergence must be "reverse_kl", "forward_kl", "js" or "alpha", got \'kl\''):
        FDPO(divergence="kl")

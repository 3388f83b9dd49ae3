import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from preftune.theory.solving import NoFiniteOptimumError
from preftune.theory.tabular import (
    dpo_optimum,
    f_divergence_optimum,
    ipo_optimum,
    optimum,
    psi_po_gap,
    psi_po_optimum,
    psi_po_regression_optimum,
    regression_optimum,
    reward_kl_optimum,
    separable,
    total_variation,
)

REFERENCE = tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
REWARD = tensor([0.9, 0.2, -0.6], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)
SOFT = torch.sigmoid(REWARD[:, None] - REWARD)
ORDER = torch.ones(3, 3, dtype=torch.float64).triu(1)

IDENTITY, SQUARE = lambda q: q, lambda q: q**2
logits = st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(lambda x: tensor(x, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(reference=logits, reward=logits, beta=st.floats(0.1, 5), other=logits)
def test_no_policy_has_more_reward_less_divergence(reference, reward, beta, other):
    reference = reference.log_softmax(0)

    def value(logps):
        return (logps.exp() * (reward - beta * (logps - reference))).sum()

    best = reward_kl_optimum(reference, reward, beta)
    assert best.exp().sum().item() == pytest.approx(1)
    assert value(best) >= value(other.log_softmax(0)) - 1e-12
    assert value(best).item() == pytest.approx(beta * (reference + reward / beta).logsumexp(0).item())


DIVERGENCES = {  # f, and the log of the inverse of its slope
    "reverse_kl": (lambda u: u * u.log(), lambda y: y - 1),
    "forward_kl": (lambda u: -u.log(), lambda y: torch.where(y < 0, -(-y).clamp(min=1e-300).log(), math.inf)),
}


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
@settings(max_examples=25, deadline=None)
@given(reward=logits, beta=st.floats(0.2, 3), other=logits)
def test_no_policy_has_more_reward_less_any_f_divergence(name, reward, beta, other):
    f, log_inverse = DIVERGENCES[name]

    def value(logps):
        return (logps.exp() * reward).sum() - beta * (REFERENCE.exp() * f((logps - REFERENCE).exp())).sum()

    best = f_divergence_optimum(REFERENCE, reward, beta, log_inverse)
    assert best.exp().sum().item() == pytest.approx(1)
    assert value(best) >= value(other.log_softmax(0)) - 1e-9


def test_prompts_do_not_mix():
    references = torch.stack([REFERENCE, UNIFORM.log()])
    rewards = torch.stack([REWARD, -REWARD])
    wins = torch.stack([SOFT.clone().fill_diagonal_(0), SOFT.T.clone().fill_diagonal_(0)])
    for found, single in (
        (dpo_optimum(references, wins, 0.5), lambda p: dpo_optimum(references[p], wins[p], 0.5)),
        (ipo_optimum(references, wins, 0.5), lambda p: ipo_optimum(references[p], wins[p], 0.5)),
        (reward_kl_optimum(references, rewards, 2.0), lambda p: reward_kl_optimum(references[p], rewards[p], 2.0)),
        (
            f_divergence_optimum(references, rewards, 2.0, lambda y: y),
            lambda p: f_divergence_optimum(references[p], rewards[p], 2.0, lambda y: y),
        ),
        (
            psi_po_optimum(references, UNIFORM, SOFT, SQUARE, 0.3),
            lambda p: psi_po_optimum(references[p], UNIFORM, SOFT, SQUARE, 0.3),
        ),
    ):
        assert found.shape == (2, 3)
        for p in range(2):
            torch.testing.assert_close(found[p], single(p), rtol=1e-9, atol=1e-12)
    assert total_variation(references, references.flip(0)).tolist() == pytest.approx([1 / 6, 1 / 6])


def test_dpo_under_bradley_terry_is_the_optimum_of_the_reward():
    wins = SOFT.clone().fill_diagonal_(0) * tensor([[0, 3, 1], [3, 0, 7], [1, 7, 0]])  # whatever the pairs' shares are
    found = dpo_optimum(REFERENCE, wins, beta=0.3)
    assert total_variation(found, reward_kl_optimum(REFERENCE, REWARD, 0.3)) < 1e-12


@pytest.mark.parametrize("p", [0.9, 0.99999, 0.9999999, 1 - 1e-9, 1 - 1e-12])
def test_dpo_of_two_responses_is_the_logit_however_sure_the_preference(p):
    half = tensor([0.5, 0.5], dtype=torch.float64).log()
    found = dpo_optimum(half, tensor([[0, p], [1 - p, 0]], dtype=torch.float64), beta=1.0)
    assert (found[0] - found[1]).item() == pytest.approx(math.log(p) - math.log(1 - p), rel=1e-13)


def test_dpo_leaves_groups_that_never_met_as_the_reference_has_them():
    """a and b were compared, c and d were: the mean log-ratio of either pair stays 0."""
    wins = torch.zeros(4, 4)
    wins[0, 1], wins[1, 0], wins[2, 3], wins[3, 2] = 3, 1, 1, 2
    reference = tensor([0.4, 0.3, 0.2, 0.1]).log()
    found = dpo_optimum(reference, wins, beta=0.5)
    ratio = found - reference
    assert (ratio[0] + ratio[1]).item() == pytest.approx((ratio[2] + ratio[3]).item())
    assert (ratio[0] - ratio[1]).item() == pytest.approx(2 * math.log(3))
    assert (ratio[2] - ratio[3]).item() == pytest.approx(-2 * math.log(2))


def test_preferences_that_never_contradict_each_other_have_no_optimum_under_dpo():
    with pytest.raises(NoFiniteOptimumError, match="0 won every comparison with 1 and 2"):
        dpo_optimum(REFERENCE, ORDER, beta=0.1)
    # label smoothing makes it finite; for two responses it is logit(1 - e) / beta
    smoothed = dpo_optimum(REFERENCE[:2].log_softmax(0), ORDER[:2, :2], beta=0.5, label_smoothing=0.1)
    ratio = smoothed - REFERENCE[:2]
    assert (ratio[0] - ratio[1]).item() == pytest.approx(math.log(9) / 0.5)
    assert dpo_optimum(REFERENCE, ORDER, beta=0.5, label_smoothing=0.1).isfinite().all()


@pytest.mark.parametrize(
    ("wins", "apart"),
    [
        ([[0, 1, 1], [0, 0, 1], [0, 0, 0]], True),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], False),  # the third was never compared
        ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], False),
        ([[0, 1, 0], [1, 0, 1], [0, 0, 0]], True),  # the third always lost
        ([[0, 1], [1, 0]], False),
    ],
)
def test_separable_preferences_are_those_on_which_dpo_has_no_optimum(wins, apart):
    wins = tensor(wins, dtype=torch.float64)
    assert separable(wins) == apart
    reference = torch.zeros(len(wins)).log_softmax(0)
    if apart:
        with pytest.raises(NoFiniteOptimumError):
            dpo_optimum(reference, wins, beta=0.5)
    else:
        assert dpo_optimum(reference, wins, beta=0.5).isfinite().all()


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 5.0])
def test_ipo_on_the_data_sets_of_the_paper(tau):
    third = UNIFORM.log()

    def ratios(pairs):
        wins = torch.zeros(3, 3)
        for i, j in pairs:
            wins[i, j] += 1
        found = ipo_optimum(third, wins, tau) - third
        return (found - found[1]).tolist()

    step = 1 / (3 * tau)
    assert ratios([(0, 1), (1, 2), (0, 2)]) == pytest.approx([step, 0, -step])
    assert ratios([(0, 1), (1, 2), (2, 0)]) == pytest.approx([0, 0, 0], abs=1e-12)
    assert ratios([(0, 1), (1, 0)]) == pytest.approx([0, 0, 0], abs=1e-12)
    assert ratios([(0, 1), (1, 0), (1, 2)]) == pytest.approx([0, 0, -0.5 / tau])
    two = ipo_optimum(torch.zeros(2).log_softmax(0), tensor([[0, 1], [0, 0]]), tau).exp()
    assert two[0].item() == pytest.approx(1 / (1 + math.exp(-0.5 / tau)))


def test_ipo_on_the_total_order_prints_the_papers_optima():
    for tau, expected in ((0.1, [0.964, 0.034, 0.001]), (0.5, [0.563, 0.289, 0.148]), (1.0, [0.448, 0.321, 0.230])):
        found = ipo_optimum(UNIFORM.log(), ORDER, tau).exp()
        assert [round(p, 3) for p in found.tolist()] == expected
        # and it is the paper's equation 9, with opponents drawn from the uniform policy
        preference = ORDER + torch.eye(3) / 2
        assert total_variation(found.log(), psi_po_optimum(UNIFORM.log(), UNIFORM, preference, IDENTITY, tau)) < 1e-12


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.floats(0.1, 3), min_size=9, max_size=9), targets=logits)
def test_regression_is_level_at_its_optimum(weights, targets):
    weight, target = tensor(weights).reshape(3, 3).double(), targets[:, None] * tensor([[1.0, 0.3, -2.0]])
    ratio = (regression_optimum(REFERENCE, weight, target) - REFERENCE).requires_grad_()
    loss = (weight * (ratio[:, None] - ratio - target) ** 2).sum()
    assert torch.autograd.grad(loss, ratio)[0].abs().max() < 1e-9


@settings(max_examples=30, deadline=None)
@given(other=logits, sampling=logits, tau=st.floats(0.05, 3))
def test_no_policy_has_more_of_what_psi_po_maximises(other, sampling, tau):
    mu = sampling.softmax(0)

    def value(logps):
        pi = logps.exp()
        gain = sum(pi[i] * mu[j] * SOFT[i, j] ** 2 for i in range(3) for j in range(3))
        return gain - tau * (pi * (logps - REFERENCE)).sum()

    best = psi_po_optimum(REFERENCE, mu, SOFT, SQUARE, tau)
    assert value(best) >= value(other.log_softmax(0)) - 1e-12


@pytest.mark.parametrize("psi", [IDENTITY, torch.logit, lambda q: q.sqrt().asin(), lambda q: 3 * q - 5])
@pytest.mark.parametrize("sampling", [UNIFORM, tensor([0.7, 0.2, 0.1], dtype=torch.float64)])
def test_the_regression_is_psi_po_if_psi_of_q_and_of_1_minus_q_have_a_constant_sum(psi, sampling):
    assert psi_po_gap(REFERENCE, sampling, SOFT, psi, tau=0.2) < 1e-12


def test_the_regression_is_another_policy_if_they_have_not():
    """Psi(q) = q^2: q^2 + (1 - q)^2 runs from 1/2 to 1. The regression sees (q^2 - (1 - q)^2) / 2 = q - 1/2, which is
    the identity's."""
    gap = psi_po_gap(REFERENCE, UNIFORM, SOFT, SQUARE, tau=0.1).item()
    assert gap > 0.015
    same = psi_po_regression_optimum(REFERENCE, UNIFORM, SOFT, SQUARE, 0.1)
    assert total_variation(same, psi_po_optimum(REFERENCE, UNIFORM, SOFT, IDENTITY, 0.1)) < 1e-12
    # of two responses that are drawn equally often the regression is right for any Psi, but not of two others
    two, half = SOFT[:2, :2], tensor([0.5, 0.5])
    assert psi_po_gap(half.log(), half, two, SQUARE, tau=0.1) < 1e-12
    assert psi_po_gap(half.log(), tensor([0.9, 0.1]), two, SQUARE, tau=0.1) > 0.02


def test_the_logits_pull_grows_without_bound_and_the_identitys_does_not():
    """Two responses, as the preference for the first nears 1: this is how DPO overfits, and IPO does not."""
    half = tensor([0.5, 0.5], dtype=torch.float64)
    deltas = {"logit": [], "identity": []}
    for p in (0.9, 0.99, 0.999, 0.999999):
        preference = tensor([[0.5, p], [1 - p, 0.5]], dtype=torch.float64)
        for name, psi in (("logit", torch.logit), ("identity", IDENTITY)):
            found = psi_po_regression_optimum(half.log(), half, preference, psi, tau=0.5)
            deltas[name].append((found[0] - found[1]).item())
    assert deltas["logit"] == pytest.approx([2 * math.log(p / (1 - p)) for p in (0.9, 0.99, 0.999, 0.999999)])
    assert deltas["identity"] == pytest.approx([0.8, 0.98, 0.998, 0.999998])
    certain = tensor([[0.5, 1.0], [0.0, 0.5]])
    for each in (psi_po_optimum, psi_po_regression_optimum):
        assert each(half.log(), half, certain, IDENTITY, 0.5).isfinite().all()
        with pytest.raises(NoFiniteOptimumError, match="Psi is infinite at a preference that occurs"):
            each(half.log(), half, certain, torch.logit, 0.5)


def test_preferences_that_are_no_probabilities_are_refused():
    with pytest.raises(ValueError, match="summing to 1"):
        psi_po_optimum(REFERENCE, UNIFORM, ORDER, IDENTITY, 0.1)


def test_any_smooth_loss_is_minimised_to_the_last_digits():
    wins = SOFT.clone().fill_diagonal_(0)

    def dpo(logps):
        ratio = logps - REFERENCE
        return -(wins * torch.nn.functional.logsigmoid(0.4 * (ratio[:, None] - ratio))).sum()

    torch.testing.assert_close(optimum(dpo, REFERENCE), dpo_optimum(REFERENCE, wins, 0.4), rtol=1e-9, atol=0)
    both = optimum(lambda logps: dpo(logps[0]) + 3 * dpo(logps[1]), torch.stack([REFERENCE, REFERENCE]))
    torch.testing.assert_close(both[1], dpo_optimum(REFERENCE, wins, 0.4), rtol=1e-9, atol=0)
    with pytest.raises(NoFiniteOptimumError):
        optimum(lambda logps: -torch.nn.functional.logsigmoid(logps[0] - logps[1]), REFERENCE)

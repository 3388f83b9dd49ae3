"""rdpo, robust_dpo, kl_dpo, dpop, r_dpo and odpo: DPO with something added. Formulas: test_pair_formulas.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import preftune.objectives
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.dpo import DPO
from preftune.objectives.dpop import DPOP
from preftune.objectives.kl_dpo import KLDPO
from preftune.objectives.odpo import ODPO
from preftune.objectives.r_dpo import RDPO
from preftune.objectives.rdpo import rDPO
from preftune.objectives.robust_dpo import RobustDPO

ratios = st.floats(-50, 50)
betas = st.floats(0.01, 2)


def result(objective, chosen, rejected, **columns):
    """The objective at these log-ratios (a number or a list each), and their leaves."""
    leaves = [torch.as_tensor(x, dtype=torch.float64).reshape(-1).requires_grad_() for x in (chosen, rejected)]
    zeros = [torch.zeros_like(leaf) for leaf in leaves]
    columns = {name: torch.as_tensor(x, dtype=torch.float64).reshape(-1) for name, x in columns.items()}
    return objective.on_pairs(*leaves, *zeros, **columns), leaves


def loss(objective, chosen, rejected, **columns):
    return result(objective, chosen, rejected, **columns)[0].loss.item()


def slopes(objective, chosen, rejected, **columns):
    found, leaves = result(objective, chosen, rejected, **columns)
    return [gradient.item() for gradient in torch.autograd.grad(found.loss, leaves)]


LENGTHS = {"chosen_lengths": 7, "rejected_lengths": 4}


@settings(max_examples=40, deadline=None)
@given(chosen=ratios, rejected=ratios, beta=betas)
def test_without_what_they_add_all_are_dpo(chosen, rejected, beta):
    expected = loss(DPO(beta=beta), chosen, rejected)
    plain = [
        (rDPO(beta=beta, label_smoothing=0), {}),
        (RobustDPO(beta=beta, eta=0), {}),
        (KLDPO(beta=beta, kl_weight=0), {}),
        (DPOP(beta=beta, lam=0), {}),
        (RDPO(beta=beta, alpha=0), LENGTHS),
        (ODPO(beta=beta, alpha=0), {"gap": 3.0}),
    ]
    for objective, columns in plain:
        assert loss(objective, chosen, rejected, **columns) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_values_worked_by_hand():
    """Log-ratios 2 and -1 at beta 1, so DPO's loss is log(1 + exp(-3)) = 0.04859, or 3.04859 on swapped labels."""
    assert loss(rDPO(beta=1, label_smoothing=0.2), 2, -1) == pytest.approx((0.8 * 0.04859 - 0.2 * 3.04859) / 0.6, 1e-4)
    assert loss(RobustDPO(beta=1, eta=0.5), 2, -1) == pytest.approx(0.04859 + 0.5 * (4 + 1), 1e-4)
    assert loss(RobustDPO(beta=2, eta=0.5), 1, -0.5) == pytest.approx(0.04859 + 0.5 * (4 + 1), 1e-4)
    assert loss(KLDPO(beta=2, kl_weight=0.5), 1, -0.5) == pytest.approx(0.04859 + 0.5 * (1 + 0.25), 1e-4)
    assert loss(DPOP(beta=1, lam=2), -1, -6) == pytest.approx(0.04859, 1e-4)  # 5 - 2 * 1
    assert loss(RDPO(beta=1, alpha=0.5), 2, 0.5, **LENGTHS) == pytest.approx(0.04859, 1e-4)  # 1.5 + 0.5 * (7 - 4)
    assert loss(ODPO(beta=1, alpha=2), 5, 0, gap=math.e) == pytest.approx(0.04859, 1e-4)  # 5 - 2 * 1
    assert loss(ODPO(beta=1, alpha=2, scaling="identity"), 5, 0, gap=1.0) == pytest.approx(0.04859, 1e-4)


# --- rdpo -------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(chosen=ratios, rejected=ratios, beta=betas, rate=st.floats(0, 0.4))
def test_rdpo_is_dpo_on_clean_labels_in_the_mean_over_flips(chosen, rejected, beta, rate):
    objective = rDPO(beta=beta, label_smoothing=rate)
    mean = (1 - rate) * loss(objective, chosen, rejected) + rate * loss(objective, rejected, chosen)
    assert mean == pytest.approx(loss(DPO(beta=beta), chosen, rejected), rel=1e-9, abs=1e-9)


def test_rdpo_has_no_minimum_where_label_smoothing_has_one():
    objective = rDPO(beta=0.5, label_smoothing=0.2)
    assert loss(objective, 2000, 0) < loss(objective, 1000, 0) < 0
    assert slopes(objective, 1000, 0)[0] == pytest.approx(-0.5 * 0.2 / 0.6)
    assert slopes(DPO(beta=0.5, label_smoothing=0.2), 1000, 0)[0] == pytest.approx(0.5 * 0.2)


# --- robust_dpo and kl_dpo --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(chosen=ratios, rejected=ratios, beta=betas, weight=st.floats(0, 1))
def test_three_ways_to_penalise_squares_are_one(chosen, rejected, beta, weight):
    expected = loss(KLDPO(beta=beta, kl_weight=weight), chosen, rejected)
    assert loss(RobustDPO(beta=beta, eta=weight / beta**2), chosen, rejected) == pytest.approx(expected, rel=1e-9)
    modified = registry.build("dpo", beta=beta, modifiers={"ratio_penalty": weight})
    assert loss(modified, chosen, rejected) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("objective", "far"),
    [
        (RobustDPO(beta=0.1, eta=0.1), 8.15),
        (RobustDPO(beta=0.5, eta=0.1), 1.63),
        (KLDPO(beta=0.1, kl_weight=0.01), 2.0),
    ],
)
def test_a_penalty_on_squares_gives_a_minimum_where_the_docstring_says(objective, far):
    """sigmoid(-2 beta r) * beta = 2 * weight * r at log-ratios of +-r: rewards of 0.8, and log-ratios of 2 nats."""
    assert slopes(objective, far, -far) == pytest.approx([0, 0], abs=2e-3 * objective.beta)
    assert loss(objective, far, -far) < min(loss(objective, far + step, -far) for step in (-0.5, 0.5))


# --- dpop -------------------------------------------------------------------------------------------------------------


def test_dpop_is_dpo_unless_chosen_became_less_likely():
    assert loss(DPOP(beta=0.3), 0.5, 2) == loss(DPO(beta=0.3), 0.5, 2)
    assert loss(DPOP(beta=0.3, lam=5), -0.5, -3) == pytest.approx(loss(DPO(beta=0.3), 0.5 - 3, -3 + 0.5))
    # DPO is content where both fall; DPOP pulls chosen up, lam + 1 times as hard as it pushes rejected down
    up, down = slopes(DPOP(beta=0.3, lam=5), -0.5, -3)
    assert up == pytest.approx(-6 * down)
    assert down > 0


# --- r_dpo ------------------------------------------------------------------------------------------------------------


def test_r_dpo_asks_less_of_a_longer_chosen_response():
    """The sign: labels follow a reward that includes length, of which the policy is to learn the rest."""
    longer, equal, shorter = (
        loss(RDPO(beta=0.1, alpha=0.05), 1, 0, chosen_lengths=n, rejected_lengths=50) for n in (80, 50, 20)
    )
    assert longer < equal < shorter
    assert equal == pytest.approx(loss(DPO(beta=0.1), 1, 0))


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_r_dpo_takes_the_price_of_length_out_of_a_reward(alpha):
    """Two responses of lengths 9 and 4 and rewards 2 and 1, labels by Bradley-Terry: at the optimum, beta * delta is
    the difference of reward - alpha * length."""
    beta, price = 0.5, 5 * alpha
    delta = (1 - price) / beta
    p = 1 / (1 + math.exp(-1))
    lengths = {"chosen_lengths": [9, 4], "rejected_lengths": [4, 9]}  # the pair in both orders, p and 1 - p often
    found, leaves = result(RDPO(beta=beta, alpha=alpha), [delta, 0], [0, delta], **lengths)
    mean = p * found.loss_E[0] + (1 - p) * found.loss_E[1]
    first, second = torch.autograd.grad(mean, leaves)
    assert first[0].item() + second[1].item() == pytest.approx(0, abs=1e-12)


def test_r_dpo_rewards_are_those_that_labels_follow():
    found, _ = result(RDPO(beta=0.5, alpha=0.1), 2, -1, **LENGTHS)
    assert found.margin.item() == pytest.approx((0.5 * 2 + 0.7) - (-0.5 + 0.4))
    assert loss(RDPO(beta=0.5, alpha=0.1), 2, -1, **LENGTHS) == pytest.approx(
        math.log1p(math.exp(-found.margin.item()))
    )
    with pytest.raises(ValueError, match="RDPO reads lengths here: give chosen_lengths and rejected_lengths"):
        loss(RDPO(), 2, -1)


# --- odpo -------------------------------------------------------------------------------------------------------------


def test_odpo_asks_for_more_where_the_gap_is_larger():
    for objective in (ODPO(), ODPO(scaling="identity")):
        small, large = (loss(objective, 1, 0, gap=gap) for gap in (0.5, 3.0))
        assert small < large
    assert loss(ODPO(beta=0.1), 1, 0, gap=1.0) == pytest.approx(loss(DPO(beta=0.1), 1, 0))  # log 1 = 0


@settings(max_examples=40, deadline=None)
@given(
    chosen=ratios,
    rejected=ratios,
    gap=st.floats(0.01, 20),
    p=st.floats(0, 1),
    choice=st.sampled_from(["log", "identity"]),
)
def test_odpo_with_doubted_labels_is_cross_entropy_around_the_same_offset(chosen, rejected, gap, p, choice):
    """A swapped pair has the opposite gap, and the opposite offset."""
    offset = 2 * (math.log(gap) if choice == "log" else gap)
    margin = 0.3 * (chosen - rejected) - offset
    expected = p * max(-margin, 0) + (1 - p) * max(margin, 0) + math.log1p(math.exp(-abs(margin)))
    objective = ODPO(beta=0.3, alpha=2, scaling=choice)
    assert loss(objective, chosen, rejected, gap=gap, confidence=p) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_odpo_with_the_logarithm_of_a_ratio_of_scores():
    """The authors' other option, on scores of 6 and 2."""
    authors = math.log1p(math.exp(-(0.5 * 1 - 0.7 * math.log(6 / 2))))
    objective = ODPO(beta=0.5, alpha=0.7, scaling="identity")
    assert loss(objective, 1, 0, gap=math.log(3)) == pytest.approx(authors)


@pytest.mark.parametrize("gap", [0.0, -2.0])
def test_odpo_takes_no_logarithm_of_nothing(gap):
    with pytest.raises(ValueError, match=f"gap must be > 0 to have a logarithm, got {gap:g}: leave such pairs out or"):
        loss(ODPO(), 1, 0, gap=gap)
    assert math.isfinite(loss(ODPO(scaling="identity"), 1, 0, gap=gap))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rdpo", "robust_dpo", "kl_dpo", "dpop", "r_dpo", "odpo"])
@pytest.mark.parametrize("beta", [0, -0.1, math.inf, math.nan])
def test_beta_is_positive(name, beta):
    with pytest.raises(PreftuneError, match=f"objective {name} is refused: beta must be finite and > 0, got {beta}"):
        registry.build(name, beta=beta)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "rdpo",
            {"label_smoothing": 0.5},
            "label_smoothing must be in [0, 0.5), got 0.5: the loss is divided by 1 - 2",
        ),
        (
            "rdpo",
            {"label_smoothing": 0.7},
            "label_smoothing must be in [0, 0.5), got 0.7: the loss is divided by 1 - 2",
        ),
        ("rdpo", {"label_smoothing": -0.1}, "label_smoothing must be in [0, 0.5), got -0.1: "),
        ("robust_dpo", {"eta": -1}, "eta must be finite and >= 0, got -1"),
        ("robust_dpo", {"eta": math.inf}, "eta must be finite and >= 0, got inf"),
        ("kl_dpo", {"kl_weight": -1}, "kl_weight must be finite and >= 0, got -1"),
        ("kl_dpo", {"kl_weight": math.nan}, "kl_weight must be finite and >= 0, got nan"),
        ("dpop", {"lam": -1}, "lam must be finite and >= 0, got -1"),
        ("r_dpo", {"alpha": -0.1}, "alpha must be finite and >= 0, got -0.1"),
        ("odpo", {"alpha": -1}, "alpha must be finite and >= 0, got -1"),
    ],
)
def test_other_fields_are_in_range(name, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert str(raised.value).startswith(f"objective {name} is refused: {message}")
    assert "\n" not in str(raised.value)


def test_an_unknown_scaling_is_refused():
    with pytest.raises(PreftuneError, match="objective odpo: scaling is the text 'square', expected"):
        registry.build("odpo", scaling="square")
    with pytest.raises(ValueError, match='scaling must be "log" or "identity", got \'square\''):
        ODPO(scaling="square")


def test_rdpo_and_r_dpo_are_two_objectives():
    assert type(registry.build("rdpo")) is rDPO
    assert type(registry.build("r_dpo")) is RDPO
    assert preftune.objectives.rDPO is rDPO
    assert preftune.objectives.RDPO is RDPO
    assert "confused with R-DPO" in " ".join(rDPO.__doc__.split())
    assert "confused with rDPO" in " ".join(RDPO.__doc__.split())

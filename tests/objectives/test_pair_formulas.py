"""Values and gradients of the pair objectives with a reference, against the formulas of the papers in 60 digits.

The formulas are written in likelihood ratios u = pi(response) / pi_ref(response), not in log-ratios, and gradients come
from mpmath's differentiation, so nothing is shared with the code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from mpmath import exp, log, mpf
from torch import tensor

from preftune.objectives import registry

DIGITS = 60


@dataclass(frozen=True)
class Case:
    """What an objective is held against.

    Attributes:
        loss: of (u_w, u_l, pair, fields): likelihood ratios, lengths and gap, hyperparameters.
        reward: of (u, length, fields).
        fields: strategies for the hyperparameters.
        reach: log-probs are drawn from -reach to 0.
        kink: of (c, r, fields), log-ratios of chosen and rejected: 0 where the loss has no derivative.
    """

    loss: Callable[..., Any]
    fields: dict[str, st.SearchStrategy[Any]]
    reward: Callable[..., Any] = lambda u, length, f: f["beta"] * log(u)
    reach: float = 200
    kink: Callable[..., Any] = field(default=lambda c, r, f: 1)


def odds(u_w, u_l, f):
    """Odds of chosen against rejected: the Bradley-Terry model on rewards beta log u."""
    return (u_w / u_l) ** f["beta"]


def preference(u_w, u_l, f):
    """Probabilities that chosen, and that rejected, is the better one."""
    first, second = u_w ** f["beta"], u_l ** f["beta"]
    return first / (first + second), second / (first + second)


def rdpo(u_w, u_l, pair, f):
    right, wrong = preference(u_w, u_l, f)
    return log(wrong ** f["label_smoothing"] / right ** (1 - f["label_smoothing"])) / (1 - 2 * f["label_smoothing"])


def hinge(u_w, u_l, pair, f):
    rest = 1 - log(odds(u_w, u_l, f))
    return (rest + abs(rest)) / 2


def robust_dpo(u_w, u_l, pair, f):
    return log(1 + 1 / odds(u_w, u_l, f)) + f["eta"] * sum(log(u ** f["beta"]) ** 2 for u in (u_w, u_l))


def kl_dpo(u_w, u_l, pair, f):
    c, r = log(u_w), log(u_l)
    return log(1 + 1 / odds(u_w, u_l, f)) + f["kl_weight"] * ((c - r) ** 2 + 2 * c * r)


def dpop(u_w, u_l, pair, f):
    return log(1 + 1 / (odds(u_w, u_l, f) * min(u_w, mpf(1)) ** (f["lam"] * f["beta"])))


def cal_dpo(u_w, u_l, pair, f):
    c, r, target = log(u_w), log(u_l), 1 / (2 * f["beta"])
    squares = c**2 + r**2 - (c - r) / f["beta"] + 2 * target**2
    return log(1 + u_l / u_w) + f["calibration_weight"] * squares


def r_dpo(u_w, u_l, pair, f):
    return log(1 + exp(f["alpha"] * (pair["rejected"] - pair["chosen"])) / odds(u_w, u_l, f))


def generator(f):
    """The convex function f of the divergence E_ref[f(u)], as the paper lists it."""
    alpha = f.get("alpha")
    return {
        "reverse_kl": lambda u: u * log(u),
        "forward_kl": lambda u: -log(u),
        "js": lambda u: u * log(u) - (u + 1) * log((u + 1) / 2),
        "alpha": lambda u: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
    }[f["divergence"]]


def slope(u, f):
    """f'(u), by differentiation in log u."""
    divergence = generator(f)
    return mpmath.diff(lambda t: divergence(exp(t)), log(u)) / u


def f_dpo(u_w, u_l, pair, f):
    return log(1 + exp(f["beta"] * (slope(u_l, f) - slope(u_w, f))))


def exo(u_w, u_l, pair, f):
    (right, wrong), e = preference(u_w, u_l, f), f["epsilon"]
    return right * log(right / (1 - e)) + wrong * log(wrong / e)


def nca(u_w, u_l, pair, f):
    first, second = u_w ** f["beta"], u_l ** f["beta"]
    return log((1 + first) * mpmath.sqrt((1 + first) * (1 + second)) / first)


def apo_zero(u_w, u_l, pair, f):
    first, second = u_w ** f["beta"], u_l ** f["beta"]
    return 1 / (1 + first) + 1 / (1 + 1 / second)


def apo_down(u_w, u_l, pair, f):
    first = u_w ** f["beta"]
    return first / (1 + first) + preference(u_w, u_l, f)[1]


def sppo(u_w, u_l, pair, f):
    def square(u, rate):
        return log(u) ** 2 - 2 * log(u) * (rate - 0.5) / f["beta"] + ((rate - 0.5) / f["beta"]) ** 2

    return (square(u_w, f["chosen_win_rate"]) + square(u_l, f["rejected_win_rate"])) / 2


def discopop(u_w, u_l, pair, f):
    ratio = odds(u_w, u_l, f)
    share = 1 / (1 + ratio ** (-1 / f["tau"]))
    return (1 - share) * log(1 + 1 / ratio) + share / ratio


def odpo(u_w, u_l, pair, f):
    asked = pair["gap"] ** f["alpha"] if f["scaling"] == "log" else exp(f["alpha"] * pair["gap"])
    return log(1 + asked / odds(u_w, u_l, f))


def rebel(u_w, u_l, pair, f):
    delta = log(u_w / u_l)
    return delta**2 / f["eta"] ** 2 - 2 * delta * pair["gap"] / f["eta"] + pair["gap"] ** 2


BETA = st.floats(0.01, 5)
SMALL = st.floats(0, 2)
DIVERGENCES = st.sampled_from(["reverse_kl", "forward_kl", "js"])

CASES = {
    "rdpo": Case(rdpo, {"beta": BETA, "label_smoothing": st.floats(0, 0.45)}),
    "hinge": Case(hinge, {"beta": BETA}, kink=lambda c, r, f: 1 - f["beta"] * (c - r)),
    "robust_dpo": Case(robust_dpo, {"beta": BETA, "eta": SMALL}),
    "kl_dpo": Case(kl_dpo, {"beta": BETA, "kl_weight": SMALL}),
    "dpop": Case(dpop, {"beta": BETA, "lam": st.floats(0, 100)}, kink=lambda c, r, f: c),
    "cal_dpo": Case(cal_dpo, {"beta": st.floats(0.001, 1), "calibration_weight": st.floats(0.1, 2)}),
    "r_dpo": Case(
        r_dpo,
        {"beta": BETA, "alpha": st.floats(0, 1)},
        reward=lambda u, length, f: log(u ** f["beta"] * exp(f["alpha"] * length)),
    ),
    "f_dpo": Case(
        f_dpo,
        {"beta": BETA, "divergence": DIVERGENCES},
        reward=lambda u, length, f: f["beta"] * (slope(u, f) - slope(mpf(1), f)),
        reach=15,
    ),
    "f_dpo alpha": Case(
        f_dpo,
        {"beta": BETA, "divergence": st.just("alpha"), "alpha": st.floats(0.05, 0.95)},
        reward=lambda u, length, f: f["beta"] * (slope(u, f) - slope(mpf(1), f)),
        reach=15,
    ),
    "exo": Case(exo, {"beta": BETA, "epsilon": st.floats(1e-6, 0.45)}),
    "nca": Case(nca, {"beta": BETA}),
    "apo_zero": Case(apo_zero, {"beta": BETA}),
    "apo_down": Case(apo_down, {"beta": BETA}),
    "sppo": Case(
        sppo,
        {"beta": st.floats(0.001, 1), "chosen_win_rate": st.floats(0.5, 1), "rejected_win_rate": st.floats(0, 0.45)},
    ),
    "discopop": Case(discopop, {"beta": BETA, "tau": st.floats(0.02, 1)}),
    "odpo": Case(odpo, {"beta": BETA, "alpha": SMALL, "scaling": st.sampled_from(["log", "identity"])}),
    "rebel": Case(rebel, {"eta": st.floats(0.05, 20)}, reward=lambda u, length, f: log(u) / f["eta"]),
}

pairs = st.fixed_dictionaries(
    {"chosen": st.integers(1, 400), "rejected": st.integers(1, 400), "gap": st.floats(0.01, 10)}
)
shares = st.tuples(*[st.floats(-1, 0)] * 4)


def exact(case, values, pair, f):
    """Loss, its derivatives in both log-ratios, and the rewards."""
    with mpmath.workdps(DIGITS):
        chosen, rejected, other_chosen, other_rejected = map(mpf, values)
        c, r = chosen - other_chosen, rejected - other_rejected
        f = {name: value if isinstance(value, str) else mpf(value) for name, value in f.items()}
        pair = {name: mpf(value) for name, value in pair.items()}

        def loss(c, r):
            return case.loss(exp(c), exp(r), pair, f)

        found = [loss(c, r), mpmath.diff(loss, (c, r), (1, 0)), mpmath.diff(loss, (c, r), (0, 1))]
        found += [case.reward(exp(c), pair["chosen"], f), case.reward(exp(r), pair["rejected"], f)]
        return [float(value) for value in found], abs(case.kink(c, r, f))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=50, deadline=None, phases=(Phase.generate,))  # to shrink a failure would take minutes
@given(data=st.data(), given_shares=shares, scale=st.sampled_from([0.01, 0.1, 1]), pair=pairs)
def test_value_gradient_and_rewards_equal_the_formula(name, data, given_shares, scale, pair):
    case = CASES[name]
    f = data.draw(st.fixed_dictionaries(case.fields))
    values = [share * scale * case.reach for share in given_shares]
    (value, *slopes, chosen_reward, rejected_reward), smooth = exact(case, values, pair, f)
    assume(smooth > 1e-9)
    leaves = [tensor([value], dtype=torch.float64, requires_grad=True) for value in values]
    lengths = tensor([pair["chosen"]]), tensor([pair["rejected"]])
    gap = tensor([pair["gap"]], dtype=torch.float64)
    result = registry.build(name.partition(" ")[0], **f).on_pairs(*leaves, *lengths, gap=gap)
    gradients = [gradient.item() for gradient in torch.autograd.grad(result.loss, leaves[:2])]
    assert result.loss.item() == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert gradients == pytest.approx(slopes, rel=1e-6, abs=1e-9)
    rewards = [result.chosen_reward_E.item(), result.rejected_reward_E.item()]
    assert rewards == pytest.approx([chosen_reward, rejected_reward], rel=1e-6, abs=1e-9)


def test_every_field_of_these_objectives_is_varied():
    for name in {key.partition(" ")[0] for key in CASES}:
        varied = set().union(*(case.fields for key, case in CASES.items() if key.partition(" ")[0] == name))
        assert varied == set(registry.build(name).describe())

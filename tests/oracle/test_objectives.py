"""Each objective, trained on a softmax policy, against the exact answer.

CLOSED: the policy reaches the optimum in closed form. STATIONARY: there is none; where the policy ends, the slope of an
independently written formula is zero. ENDLESS: there is no finite optimum; the log-ratio grows for ever. An objective
that is in none of these, nor in `oracle.coupled`, `test_token_objectives` or `test_rollouts`, nor in EXEMPT with a
reason, fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from oracle import coupled, formulas, test_rollouts
from oracle.test_token_objectives import COVERED
from oracle.world import World, bradley_terry, trained, trained_by_adam, two, uniform
from torch import Tensor, tensor

from preftune.objectives import registry
from preftune.theory import tabular

REWARD = tensor([0.9, 0.2, -0.6], dtype=torch.float64)
REFERENCE = tensor([0.5, 0.3, 0.2], dtype=torch.float64)
GAPS = REWARD[:, None] - REWARD
ORDER = torch.ones(3, 3).triu(1)  # the first over the second over the third, each time
LENGTHS = (2, 5, 3)

NOISY = World(REFERENCE, bradley_terry(REWARD))
DETERMINISTIC = World(REFERENCE, ORDER)
TWO_NOISY, TWO_CERTAIN = World(tensor([0.6, 0.4]), two(0.8)), World(tensor([0.6, 0.4]), two(1.0))


@dataclass(frozen=True)
class Closed:
    """An objective with an optimum in closed form.

    Attributes:
        name: of the objective.
        fields: its hyperparameters.
        world: what it is trained on.
        optimum: the exact answer, as log-probabilities.
        kinked: True if the loss has a kink there, where L-BFGS loses its way.
    """

    name: str
    fields: dict[str, Any]
    world: World
    optimum: Callable[[World], Tensor]
    kinked: bool = False


@dataclass(frozen=True)
class Stationary:
    """An objective whose optimum has no closed form.

    Attributes:
        name: of the objective.
        fields: its hyperparameters.
        world: what it is trained on.
        slopes: derivatives of a pair's loss, from `formulas`.
    """

    name: str
    fields: dict[str, Any]
    world: World
    slopes: Callable[..., tuple[np.ndarray, np.ndarray]]


def by_reward(reward: Tensor, beta: float) -> Callable[[World], Tensor]:
    return lambda world: tabular.reward_kl_optimum(world.reference_logps, reward, beta)


def by_margin(delta: float) -> Callable[[World], Tensor]:
    """Two responses whose log-ratios differ by so much."""
    return by_reward(tensor([delta, 0.0]), 1.0)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def flipped(wins: Tensor, rate: float) -> Tensor:
    return (1 - rate) * wins + rate * wins.T


def by_sum_to_one(logps: Callable[[Tensor], Tensor]) -> Tensor:
    """The log-probabilities, among those that rise with a level, that sum to one; by bisection."""
    low, high = tensor(-1e3, dtype=torch.float64), tensor(1e3, dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if logps(middle).logsumexp(0) > 0 else (middle, high)
    return logps(low)


def ipo_per_token(tau: float) -> Callable[[World], Tensor]:
    """Log-ratios per token are 2 / (3 tau) from first to last, in equal steps; their level is set by normalisation."""

    def optimum(world: World) -> Tensor:
        ratio, tokens = tensor([1.0, 0.0, -1.0]) / (3 * tau), tensor(world.tokens)
        return by_sum_to_one(lambda level: world.reference_logps + tokens * (ratio + level))

    return optimum


def simpo_of_two(beta: float, gamma: float, p: float) -> Callable[[World], Tensor]:
    """With x the difference of rewards and u = exp(x): p sigmoid(gamma - x) = (1 - p) sigmoid(gamma + x) is quadratic
    in u."""

    def optimum(world: World) -> Tensor:
        lean = (2 * p - 1) * math.exp(gamma)
        x = math.log((lean + math.sqrt(lean**2 + 4 * p * (1 - p))) / (2 * (1 - p)))
        per_token, tokens = tensor([x / beta, 0.0], dtype=torch.float64), tensor(world.tokens)
        return by_sum_to_one(lambda level: tokens * (per_token + level))

    return optimum


def shares(weight: Callable[[Tensor, Tensor], Tensor]) -> Callable[[World], Tensor]:
    """Probabilities in proportion to a function of how often each response is chosen, and how often rejected."""
    return lambda world: weight(world.masses.sum(1), world.masses.sum(0)).log().log_softmax(0)


def psi_po(psi: tabular.Psi, tau: float, optimum: Callable[..., Tensor]) -> Callable[[World], Tensor]:
    def found(world: World) -> Tensor:
        assert world.confidence is not None
        return optimum(world.reference_logps, uniform(world.size), world.confidence, psi, tau)

    return found


def f_dpo(beta: float, log_inverse: Callable[[Tensor], Tensor]) -> Callable[[World], Tensor]:
    return lambda world: tabular.f_divergence_optimum(world.reference_logps, REWARD, beta, log_inverse)


def log_or_infinite(ratio: Tensor) -> Tensor:
    return torch.where(ratio > 0, ratio.clamp(min=1e-300).log(), math.inf)


SOFT = bradley_terry(REWARD) + torch.eye(3) / 2
PAIRED = torch.ones(3, 3) - torch.eye(3)
RATED = World(REFERENCE, ORDER, confidence=SOFT, gap=GAPS)

CLOSED = [
    Closed("dpo", {"beta": 0.5}, NOISY, by_reward(REWARD, 0.5)),
    Closed("dpo", {"beta": 0.5}, World(REFERENCE, ORDER, confidence=SOFT), by_reward(REWARD, 0.5)),
    Closed("dpo", {"beta": 0.5, "label_smoothing": 0.1}, TWO_CERTAIN, by_margin(logit(0.9) / 0.5)),
    Closed(
        "dpo",
        {"beta": 0.5, "label_smoothing": 0.1},
        DETERMINISTIC,
        lambda world: tabular.dpo_optimum(world.reference_logps, world.wins, 0.5, label_smoothing=0.1),
    ),
    Closed(
        "rdpo",
        {"beta": 0.5, "label_smoothing": 0.2},
        World(REFERENCE, flipped(bradley_terry(REWARD), 0.2)),
        by_reward(REWARD, 0.5),
    ),
    *(
        Closed(
            "ipo",
            {"tau": tau},
            World(uniform(3), ORDER),
            lambda world, p=p: tensor(p, dtype=torch.float64).log().log_softmax(0),
        )
        for tau, p in (
            (0.1, [0.9644, 0.0344, 0.0012]),
            (0.5, [0.56315, 0.28914, 0.14845]),
            (1.0, [0.44843, 0.32132, 0.23024]),
        )
    ),
    Closed("ipo", {"tau": 0.4}, NOISY, lambda w: tabular.ipo_optimum(w.reference_logps, w.wins, 0.4)),
    Closed("ipo", {"tau": 0.4}, TWO_NOISY, by_margin(0.6 / 0.8)),
    Closed("ipo", {"tau": 0.8, "average": "mean"}, World(REFERENCE, ORDER, lengths=LENGTHS), ipo_per_token(0.8)),
    *(
        Closed(
            "psi_po",
            {"psi": name, "tau": 0.6},
            World(REFERENCE, PAIRED, confidence=SOFT),
            psi_po(psi, 0.6, tabular.psi_po_optimum),
        )
        for name, psi in (
            ("identity", lambda q: q),
            ("logit", torch.logit),
            ("arcsine", lambda q: q.sqrt().asin()),
        )
    ),
    *(
        Closed(
            "psi_po",
            {"psi": name, "tau": 0.6},
            World(REFERENCE, PAIRED, confidence=SOFT),
            psi_po(psi, 0.6, tabular.psi_po_regression_optimum),
        )
        for name, psi in (("square", torch.square), ("root", torch.sqrt))
    ),
    Closed("psi_po", {"psi": "logit", "tau": 0.5}, World(REFERENCE, ORDER, confidence=SOFT), by_reward(REWARD, 0.5)),
    Closed("psi_po", {"psi": "logit", "tau": 0.5, "p": 0.9}, TWO_CERTAIN, by_margin(logit(0.9) / 0.5)),
    Closed("rebel", {"eta": 1.5}, World(REFERENCE, ORDER, gap=GAPS), by_reward(REWARD, 1 / 1.5)),
    Closed("odpo", {"beta": 0.5, "alpha": 0.5, "scaling": "identity"}, RATED, by_reward(REWARD + 0.5 * REWARD, 0.5)),
    Closed(
        "odpo",
        {"beta": 0.5, "alpha": 0.5},
        World(tensor([0.6, 0.4]), two(1.0), confidence=two(0.8), gap=tensor([[0, 3.0], [-3.0, 0]])),
        by_margin((logit(0.8) + 0.5 * math.log(3)) / 0.5),
    ),
    Closed(
        "r_dpo",
        {"beta": 0.5, "alpha": 0.2},
        World(REFERENCE, bradley_terry(REWARD), lengths=LENGTHS),
        by_reward(REWARD - 0.2 * tensor(LENGTHS), 0.5),
    ),
    Closed("f_dpo", {"beta": 0.5}, NOISY, by_reward(REWARD, 0.5)),
    Closed(
        "f_dpo",
        {"beta": 0.5, "divergence": "forward_kl"},
        NOISY,
        f_dpo(0.5, lambda slope: -log_or_infinite(1 - slope).where(slope < 1, -math.inf)),
    ),
    Closed(
        "f_dpo",
        {"beta": 2.0, "divergence": "js"},
        NOISY,
        f_dpo(2.0, lambda slope: slope - log_or_infinite(2 - slope.exp()).where(slope < math.log(2), -math.inf)),
    ),
    Closed(
        "f_dpo",
        {"beta": 0.5, "divergence": "alpha", "alpha": 0.4},
        NOISY,
        f_dpo(0.5, lambda slope: -log_or_infinite(1 - 0.4 * slope).where(slope < 2.5, -math.inf) / 0.4),
    ),
    Closed("exo", {"beta": 0.5, "epsilon": 0.1}, TWO_CERTAIN, by_margin(logit(0.9) / 0.5)),
    Closed("exo", {"beta": 0.5, "epsilon": 0.1}, TWO_NOISY, by_margin(0.6 * logit(0.9) / 0.5)),
    Closed("nca", {"beta": 1.0}, World(uniform(3), bradley_terry(REWARD)), shares(lambda won, lost: won)),
    Closed("hinge", {"beta": 0.5}, TWO_NOISY, by_margin(2.0), kinked=True),
    Closed("hinge", {"beta": 0.5}, NOISY, by_reward(tensor([4.0, 2.0, 0.0]), 1.0), kinked=True),
    Closed(
        "slic",
        {"delta": 1.0, "lam": 0.1},
        World(tensor([0.6, 0.4]), two(0.8)),
        lambda world: tensor([1.0, 0.0]).log_softmax(0),
        kinked=True,
    ),
    Closed(
        "slic", {"delta": 1.0, "lam": 0.5}, World(tensor([0.6, 0.4]), two(0.52)), lambda world: tensor([0.6, 0.4]).log()
    ),
    Closed("dpop", {}, TWO_NOISY, lambda world: world.reference_logps, kinked=True),
    Closed("dpop", {"beta": 0.5, "lam": 0.0}, NOISY, by_reward(REWARD, 0.5)),
    Closed("robust_dpo", {"beta": 0.5, "eta": 0.0}, NOISY, by_reward(REWARD, 0.5)),
    Closed("kl_dpo", {"beta": 0.5, "kl_weight": 0.0}, NOISY, by_reward(REWARD, 0.5)),
    Closed("simpo", {"beta": 2.0, "gamma": 0.0}, NOISY, lambda world: (REWARD / 2.0).log_softmax(0)),
    Closed(
        "simpo",
        {"beta": 2.0, "gamma": 0.5},
        World(tensor([0.6, 0.4]), two(0.8), lengths=(3, 2)),
        simpo_of_two(2.0, 0.5, 0.8),
    ),
    Closed("cpo", {"beta": 0.5, "alpha": 0.0}, NOISY, lambda world: (REWARD / 0.5).log_softmax(0)),
    Closed("orpo", {"lam": 0.0}, NOISY, shares(lambda won, lost: won)),
    Closed("unlikelihood", {"alpha": 0.3}, NOISY, shares(lambda won, lost: won - 0.3 * lost)),
    Closed("sft", {}, World(REFERENCE, bradley_terry(REWARD), lengths=LENGTHS), shares(lambda won, lost: won)),
]

LONG = World(REFERENCE, bradley_terry(REWARD), lengths=LENGTHS)
STATIONARY = [
    Stationary("robust_dpo", {"beta": 0.5, "eta": 0.2}, NOISY, formulas.robust_dpo),
    Stationary("robust_dpo", {"beta": 0.5, "eta": 0.2}, DETERMINISTIC, formulas.robust_dpo),
    Stationary("kl_dpo", {"beta": 0.5, "kl_weight": 0.05}, NOISY, formulas.kl_dpo),
    Stationary("kl_dpo", {"beta": 0.5, "kl_weight": 0.05}, DETERMINISTIC, formulas.kl_dpo),
    Stationary("dpop", {"beta": 0.3, "lam": 0.5}, NOISY, formulas.dpop),
    Stationary("cal_dpo", {"beta": 0.25, "calibration_weight": 0.3}, NOISY, formulas.cal_dpo),
    Stationary("cal_dpo", {"beta": 0.25, "calibration_weight": 0.3}, DETERMINISTIC, formulas.cal_dpo),
    Stationary("exo", {"beta": 0.5, "epsilon": 0.05}, NOISY, formulas.exo),
    Stationary("exo", {"beta": 0.5, "epsilon": 0.05}, DETERMINISTIC, formulas.exo),
    Stationary("nca", {"beta": 0.5}, NOISY, formulas.nca),
    Stationary("sppo", {"beta": 0.5, "chosen_win_rate": 0.9, "rejected_win_rate": 0.2}, NOISY, formulas.sppo),
    Stationary("sppo", {"beta": 0.5, "chosen_win_rate": 1.0, "rejected_win_rate": 0.0}, DETERMINISTIC, formulas.sppo),
    Stationary("apo_down", {"beta": 2.0}, NOISY, formulas.apo_down),
    Stationary("apo_down", {"beta": 2.0}, TWO_CERTAIN, formulas.apo_down),
    Stationary("discopop", {"beta": 0.5, "tau": 0.5}, NOISY, formulas.discopop),
    Stationary("simpo", {"beta": 2.0, "gamma": 0.5}, LONG, formulas.simpo),
    Stationary("cpo", {"beta": 0.5, "alpha": 0.7}, LONG, formulas.cpo),
    Stationary("orpo", {"lam": 0.4}, LONG, formulas.orpo),
]

# Preferences of which the first response wins always (two responses), unless a world is given.
ENDLESS: list[tuple[str, dict[str, Any], World]] = [
    ("dpo", {"beta": 0.5}, TWO_CERTAIN),
    ("rdpo", {"beta": 0.5, "label_smoothing": 0.1}, TWO_CERTAIN),
    ("rdpo", {"beta": 0.5, "label_smoothing": 0.3}, TWO_NOISY),  # fewer labels contradict than it was told
    (
        "odpo",
        {"beta": 0.5, "scaling": "identity"},
        World(tensor([0.6, 0.4]), two(1.0), gap=tensor([[0, 2.0], [-2.0, 0]])),
    ),
    ("r_dpo", {"beta": 0.5, "alpha": 0.2}, World(tensor([0.6, 0.4]), two(1.0), lengths=(2, 5))),
    ("f_dpo", {"beta": 0.5}, TWO_CERTAIN),
    ("f_dpo", {"beta": 0.5, "divergence": "js"}, TWO_CERTAIN),
    ("discopop", {"beta": 0.5, "tau": 0.5}, TWO_CERTAIN),
    ("dpop", {}, TWO_CERTAIN),
    ("nca", {"beta": 0.5}, TWO_CERTAIN),
    ("apo_zero", {"beta": 0.5}, TWO_CERTAIN),
    ("apo_zero", {"beta": 0.5}, TWO_NOISY),  # a majority is enough
    ("apo_down", {"beta": 0.5}, TWO_CERTAIN),  # below beta 1 the anchor is weaker than the pull
    ("simpo", {}, TWO_CERTAIN),
    ("cpo", {}, TWO_CERTAIN),
    ("orpo", {"clamp": 0.0}, TWO_CERTAIN),
    ("slic", {}, TWO_CERTAIN),
    ("unlikelihood", {}, TWO_CERTAIN),
    ("sft", {}, TWO_CERTAIN),
]

# Objectives without an exact answer here, and why.
EXEMPT: dict[str, str] = {}


def label(case: Any) -> str:
    return "-".join([case.name, *(f"{key}={value}" for key, value in case.fields.items())])


def test_every_objective_has_an_exact_answer():
    held = {case.name for case in [*CLOSED, *STATIONARY]} | {name for name, _, _ in ENDLESS}
    held |= coupled.NAMES | COVERED | test_rollouts.COVERED
    assert held | set(EXEMPT) == set(registry.names())
    assert not held & set(EXEMPT)
    assert all(len(reason) > 20 for reason in EXEMPT.values())


@pytest.mark.parametrize("case", CLOSED, ids=label)
def test_training_ends_at_the_optimum_in_closed_form(case):
    objective = registry.build(case.name, **case.fields)
    if case.kinked:
        found = trained_by_adam(objective, case.world, steps=1200, rate=0.05, decay=1e-5)[-1]
    else:
        found = trained(objective, case.world)
    assert tabular.total_variation(found, case.optimum(case.world)) < 1e-4


@pytest.mark.parametrize("case", STATIONARY, ids=label)
def test_training_ends_where_an_independent_formula_is_level(case):
    objective, world = registry.build(case.name, **case.fields), case.world
    found = trained(objective, world)
    assert slope_of_logits(case, found).max() < 1e-6
    # and it is a minimum, which Newton's method finds too
    loss = world.loss(objective)
    exact = tabular.optimum(loss, found)
    assert tabular.total_variation(found, exact) < 1e-5
    noise = torch.randn(50, world.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 20
    assert all(loss(torch.log_softmax(exact + shift, 0)) >= loss(exact) for shift in noise)


def slope_of_logits(case: Stationary, logps: Tensor) -> np.ndarray:
    """Size of the derivative of the mean loss in each logit, by the formula."""
    world = case.world
    seen = logps - world.reference_logps if registry.resolve(case.name).reference else logps
    seen, p, tokens = seen.numpy(), logps.exp().numpy(), np.array(world.tokens)
    slope = np.zeros(world.size)
    for i, j in world.pairs:
        counts = () if registry.resolve(case.name).reference else (tokens[i], tokens[j])
        chosen, rejected = case.slopes(seen[i], seen[j], *counts, **case.fields)
        slope[i] += world.masses[i, j].item() * chosen
        slope[j] += world.masses[i, j].item() * rejected
    return np.abs(slope - p * slope.sum())


@pytest.mark.parametrize(("name", "fields", "world"), [*ENDLESS, *coupled.ENDLESS])
def test_without_a_finite_optimum_the_log_ratio_grows_for_ever(name, fields, world):
    objective = registry.build(name, **fields)
    loss = world.loss(objective)
    for nats in (0.0, 1.0, 5.0, 20.0, 30.0):  # wherever it stands, it is pulled on
        logits = tensor([nats / 2, -nats / 2], dtype=torch.float64, requires_grad=True)
        pull = torch.autograd.grad(loss(torch.log_softmax(logits, 0)), logits)[0]
        assert pull[0] < 0 < pull[1]
    path = trained_by_adam(objective, world, steps=200, rate=0.1)
    quarters = [float(path[step][0] - path[step][1]) for step in (49, 99, 149, 199)]
    assert all(later > earlier + 0.1 for earlier, later in pairwise(quarters))


def test_psi_po_misses_its_definition_by_the_gap_where_psi_is_not_antisymmetric():
    """Psi(q) = q^2, three responses: training ends where the identity's does, and not where PsiPO's optimum is."""
    world, psi = World(REFERENCE, PAIRED, confidence=SOFT), torch.square
    objective = registry.build("psi_po", psi="square", tau=0.1)
    found, arguments = trained(objective, world), (world.reference_logps, uniform(3), SOFT)
    defined = tabular.psi_po_optimum(*arguments, psi, 0.1)
    gap = tabular.psi_po_gap(*arguments, psi, 0.1)
    assert gap > 0.015
    torch.testing.assert_close(tabular.total_variation(found, defined), gap, rtol=1e-3, atol=0)
    assert tabular.total_variation(found, tabular.psi_po_optimum(*arguments, lambda q: q, 0.1)) < 1e-6
    assert not objective.exact

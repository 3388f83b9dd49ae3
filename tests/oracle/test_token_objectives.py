"""Objectives that read more than whole responses of pairs, trained on softmax policies, against exact answers.

Token-level objectives are trained on a tree of tokens: the first is A, B or the end, and after A or B one of two more
follows. So there are five responses, of one token or two, and all that these objectives read of a token (its
probability, the sum of squares, the divergence from the reference) is an exact function of a table of five logits.
Rankings and reward models have closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
from oracle.world import World, bradley_terry, two
from torch import Tensor, tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch, pack
from preftune.objectives import registry
from preftune.objectives.base import Objective
from preftune.objectives.batch import LogProbs, Role
from preftune.theory import tabular

# Objectives that are held to an exact answer in this file.
COVERED = {"wpo", "ld_dpo", "tdpo", "plackett_luce", "bradley_terry"}

REWARD = tensor([0.9, 0.2, -0.6, 0.5, -0.1], dtype=torch.float64)
BRANCHES = ((0,), (1, 2), (3, 4))  # the responses that begin with each first token
LENGTHS = (1, 2, 2, 2, 2)
REFERENCE = tensor([0.1, 0.3, 0.2, 0.15, 0.25])
CYCLE = 0.5 + 0.3 * (torch.ones(5, 5).triu(1) - torch.ones(5, 5).tril(-1))  # the first over the second, and so on ...
CYCLE[0, 4], CYCLE[4, 0] = 0.1, 0.9  # ... and the last over the first
NOISY = World(REFERENCE, bradley_terry(REWARD), lengths=LENGTHS)
TWISTED = World(REFERENCE, CYCLE.fill_diagonal_(0), lengths=LENGTHS)


def gradient_field(objective: Objective, world: World) -> Callable[[Tensor], Tensor]:
    """The gradient that training follows, as a function of logits; not the slope of a function, where parts of a loss
    are held."""
    batch, weight_E = world.batch(), objective.weight_E(world.batch()).double()
    reference_logps = world.reference_logps
    reference = tokens_of(reference_logps, reference_logps, world)

    def gradient(logits: Tensor) -> Tensor:
        leaf = logits.detach().requires_grad_()
        policy = tokens_of(torch.log_softmax(leaf, 0), reference_logps, world)
        outcome = objective(policy, reference, batch, objective.init())
        return torch.autograd.grad((weight_E * outcome.loss_E).sum() / weight_E.sum(), leaf)[0]

    return gradient


def tokens_of(logps_Y: Tensor, reference_Y: Tensor, world: World) -> LogProbs:
    """What a model says of each token of a batch of the world's pairs."""
    firsts, others = [
        torch.stack([side[list(branch)].logsumexp(0) for branch in BRANCHES]) for side in (logps_Y, reference_Y)
    ]
    rows: list[list[Tensor]] = [[] for _ in range(world.size)]
    for first, branch in enumerate(BRANCHES):
        for place, response in enumerate(branch):
            rows[response].append(seen(firsts, others, first))
            if len(branch) > 1:
                at = list(branch)
                rows[response].append(seen(logps_Y[at] - firsts[first], reference_Y[at] - others[first], place))
    logps_K, log_sum_p2_K, kl_K = torch.stack([row for pair in world.pairs for i in pair for row in rows[i]]).T
    return LogProbs(logps_K, log_sum_p2_K=log_sum_p2_K, kl_K=kl_K)


def seen(logps_V: Tensor, reference_V: Tensor, token: int) -> Tensor:
    """Log-prob of a token, log of the sum of squares, and KL divergence of the reference from the policy."""
    divergence = (reference_V.exp() * (reference_V - logps_V)).sum()
    return torch.stack([logps_V[token], torch.logsumexp(2 * logps_V, 0), divergence])


def settled(field: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Log-probabilities where a gradient vanishes, which Adam comes near and Newton's method finds from there."""
    logits = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for step in range(120):
        optimiser.param_groups[0]["lr"] = 0.1 * 0.03 ** (step / 120)
        logits.grad = field(logits)
        optimiser.step()
    found = logits.detach()
    nudges = 1e-5 * torch.eye(len(found), dtype=torch.float64)
    for _ in range(5):
        slopes = torch.stack([(field(found + nudge) - field(found - nudge)) / 2e-5 for nudge in nudges], 1)
        found = found - torch.linalg.pinv(slopes, rtol=1e-6) @ field(found)
    return torch.log_softmax(found, 0)


# The same losses in numpy, from probabilities. Each takes those of the policy twice: where a gradient runs, and where
# none does. Both are complex: a step of 1e-20 in the imaginary direction gives slopes without rounding.


@dataclass(frozen=True)
class Tokens:
    """Probabilities of the first tokens, shape 3, and of the responses, shape 5."""

    p: np.ndarray

    @property
    def first(self) -> np.ndarray:
        return np.array([self.p[0], self.p[1] + self.p[2], self.p[3] + self.p[4]])

    def of(self, y: int) -> list[tuple[np.ndarray, int]]:
        """The distributions that a response is drawn from, token by token, and which token it takes."""
        if y == 0:
            return [(self.first, 0)]
        branch = (y + 1) // 2
        return [(self.first, branch), (self.p[2 * branch - 1 : 2 * branch + 1] / self.first[branch], (y + 1) % 2)]


def wpo(policy: Tokens, held: Tokens, reference: Tokens, i: int, j: int, *, beta: float, clamp: float | None) -> Any:
    def omega(y: int) -> float:
        factors = [p[token] / (p**2).sum() for p, token in held.of(y)]
        return np.real(np.prod(factors)) ** (1 / len(factors))

    weight = omega(i) * omega(j)
    odds = policy.p[i] * reference.p[j] / (policy.p[j] * reference.p[i])
    return (weight if clamp is None else min(weight, clamp)) * np.log(1 + odds**-beta)


def ld_dpo(
    policy: Tokens, held: Tokens, reference: Tokens, i: int, j: int, *, beta: float, alpha: float, of: str = "both"
) -> Any:
    shared = min(LENGTHS[i], LENGTHS[j])

    def likelihood(model: Tokens, y: int, light: float) -> Any:
        factors = [p[token] for p, token in model.of(y)]
        return np.prod(factors[:shared]) * np.prod(factors[shared:]) ** light

    other = alpha if of == "both" else 1.0
    ratio_i, ratio_j = (likelihood(policy, y, alpha) / likelihood(reference, y, other) for y in (i, j))
    return np.log(1 + (ratio_j / ratio_i) ** beta)


def tdpo1(policy: Tokens, held: Tokens, reference: Tokens, i: int, j: int, *, beta: float, form: str) -> Any:
    return _tdpo(policy, policy, reference, i, j, beta, 1.0)


def tdpo2(policy: Tokens, held: Tokens, reference: Tokens, i: int, j: int, *, beta: float, alpha: float) -> Any:
    return _tdpo(policy, held, reference, i, j, beta, alpha)


def _tdpo(policy: Tokens, of_chosen: Tokens, reference: Tokens, i: int, j: int, beta: float, alpha: float) -> Any:
    def divergence(model: Tokens, y: int) -> Any:
        return sum((q * np.log(q / p)).sum() for (p, _), (q, _) in zip(model.of(y), reference.of(y), strict=True))

    kappa = alpha * (divergence(policy, j) - divergence(of_chosen, i))
    odds = policy.p[i] * reference.p[j] / (policy.p[j] * reference.p[i])
    return np.log(1 + (odds * np.exp(-kappa)) ** -beta)


def slopes_by_formula(formula: Callable[..., Any], world: World, logps: Tensor, fields: dict[str, Any]) -> np.ndarray:
    logits, reference = logps.numpy(), Tokens(world.reference_logps.exp().numpy())

    def tokens(at: np.ndarray) -> Tokens:
        return Tokens(np.exp(at) / np.exp(at).sum())

    slopes = np.zeros(world.size)
    for y in range(world.size):
        moved = tokens(logits + 1e-20j * np.eye(world.size)[y])
        losses = [
            world.masses[i, j].item() * formula(moved, tokens(logits), reference, i, j, **fields)
            for i, j in world.pairs
        ]
        slopes[y] = np.imag(sum(losses)) / 1e-20
    return slopes


TOKEN_LEVEL = [
    ("wpo", {"beta": 0.5, "clamp": None}, wpo),
    ("wpo", {"beta": 0.5, "clamp": 0.3}, wpo),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.3}, ld_dpo),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.3, "of": "policy"}, ld_dpo),
    ("tdpo", {"beta": 0.5, "form": "tdpo1"}, tdpo1),
    ("tdpo", {"beta": 0.5, "alpha": 0.7}, tdpo2),
]


@pytest.mark.parametrize("world", [NOISY, TWISTED], ids=["noisy", "twisted"])
@pytest.mark.parametrize(("name", "fields", "formula"), TOKEN_LEVEL)
def test_training_ends_where_an_independent_formula_is_level(name, fields, formula, world):
    field = gradient_field(registry.build(name, **fields), world)
    start = world.reference_logps
    by_formula = slopes_by_formula(formula, world, start, fields)
    np.testing.assert_allclose(field(start).numpy(), by_formula, rtol=1e-6, atol=1e-9)
    assert np.abs(by_formula).max() > 1e-3
    found = settled(field, start)
    assert np.abs(slopes_by_formula(formula, world, found, fields)).max() < 1e-9
    dpo = tabular.dpo_optimum(start, world.wins, 0.5)
    elsewhere = tabular.total_variation(found, dpo)
    # weights that a pair and its reverse share leave the optimum of a preference that Bradley-Terry holds for
    assert elsewhere < 1e-6 if name == "wpo" and world is NOISY else elsewhere > 1e-3


@pytest.mark.parametrize(
    ("name", "fields"),
    [("wpo", {"clamp": None}), ("wpo", {"clamp": 1.0}), ("ld_dpo", {"alpha": 1.0}), ("tdpo", {"alpha": 0.0})],
)
def test_training_ends_at_the_optimum_in_closed_form(name, fields):
    found = settled(gradient_field(registry.build(name, beta=0.5, **fields), NOISY), NOISY.reference_logps)
    exact = tabular.reward_kl_optimum(NOISY.reference_logps, REWARD, 0.5)
    assert tabular.total_variation(found, exact) < 1e-4


def test_tdpo2_stays_nearer_to_the_reference_the_heavier_its_divergence():
    distances = []
    for alpha in (0.0, 0.5, 2.0):
        found = settled(gradient_field(registry.build("tdpo", beta=0.5, alpha=alpha), NOISY), NOISY.reference_logps)
        distances.append((REFERENCE.double() * (NOISY.reference_logps - found)).sum().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 2 * distances[-1] > 0


# Rankings


@dataclass(frozen=True)
class Rankings:
    """Rankings of responses to one prompt: scores in the order of responses (NaN: not shown), and weights."""

    scores: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def batch(self) -> PackedBatch:
        one = np.ones(1, dtype=np.int32)
        rows = [tuple(Response(one, Role.RANKED, x) for x in scores if not math.isnan(x)) for scores in self.scores]
        return pack([Example(one, row, weight=weight) for row, weight in zip(rows, self.weights, strict=True)])

    def log_probs(self, logps_Y: Tensor) -> LogProbs:
        shown = [y for scores in self.scores for y, score in enumerate(scores) if not math.isnan(score)]
        return LogProbs(logps_Y[shown])


def plackett_luce(reward: Tensor, among: tuple[int, ...], first: int | None = None) -> Rankings:
    """All orders of some responses, as often as the model of Plackett and Luce draws them.

    Args:
        first: places that are shown; all others are tied.
    """
    force = reward.exp().tolist()
    found = dict[tuple[float, ...], float]()
    for order in permutations(among):
        weight, scores = 1.0, [math.nan] * len(reward)
        for place, response in enumerate(order):
            weight *= force[response] / sum(force[each] for each in order[place:])
            scores[response] = float(-min(place, len(order) if first is None else first))
        found[tuple(scores)] = found.get(tuple(scores), 0.0) + weight
    return Rankings(tuple(found), tuple(found.values()))


def minimised(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where L-BFGS ends on the whole batch."""
    values = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [values], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        values.grad = None
        value = loss(values)
        value.backward()
        return float(value.detach())

    optimiser.step(closure)
    return values.detach()


def trained_on(rankings: Rankings, objective: Objective, reference_Y: Tensor) -> Tensor:
    batch, reference = rankings.batch(), rankings.log_probs(reference_Y)
    weight_E = objective.weight_E(batch).double()

    def loss(logits: Tensor) -> Tensor:
        policy = rankings.log_probs(torch.log_softmax(logits, 0))
        return (weight_E * objective(policy, reference, batch, {}).loss_E).sum() / weight_E.sum()

    return torch.log_softmax(minimised(loss, reference_Y), 0)


FOUR = REWARD[:4]
FOUR_REFERENCE = tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
EVERYONE = (0, 1, 2, 3)


def joined(*parts: Rankings) -> Rankings:
    return Rankings(sum((part.scores for part in parts), ()), sum((part.weights for part in parts), ()))


@pytest.mark.parametrize(
    ("fields", "rankings"),
    [
        ({}, plackett_luce(FOUR, EVERYONE)),
        ({"top": 1}, plackett_luce(FOUR, EVERYONE)),
        ({"top": 2}, plackett_luce(FOUR, EVERYONE)),
        ({}, plackett_luce(FOUR, EVERYONE, first=1)),
        ({}, plackett_luce(FOUR, EVERYONE, first=2)),
        ({}, joined(plackett_luce(FOUR, (0, 1, 2)), plackett_luce(FOUR, (2, 3)), plackett_luce(FOUR, (1, 0, 3), 1))),
    ],
    ids=["all", "top=1", "top=2", "first", "first-two", "ragged"],
)
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_rankings_of_a_plackett_luce_model_lead_to_the_optimum_of_its_rewards(fields, rankings, beta):
    found = trained_on(rankings, registry.build("plackett_luce", beta=beta, **fields), FOUR_REFERENCE)
    exact = tabular.reward_kl_optimum(FOUR_REFERENCE, FOUR, beta)
    assert tabular.total_variation(found, exact) < 1e-4
    assert tabular.total_variation(found, FOUR_REFERENCE) > 0.1


def test_one_ranking_alone_is_followed_for_ever():
    """The first over the second over the third, each time: the log-ratios grow for ever, in this order."""
    rankings, objective = Rankings(((3.0, 2.0, 1.0),), (1.0,)), registry.build("plackett_luce", beta=0.5)
    reference, batch = rankings.log_probs(FOUR_REFERENCE[:3]), rankings.batch()
    logits, path = FOUR_REFERENCE[:3].clone().requires_grad_(), []
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        policy = rankings.log_probs(torch.log_softmax(logits, 0))
        (logits.grad,) = torch.autograd.grad(objective(policy, reference, batch, {}).loss_E.sum(), logits)
        optimiser.step()
        path.append(logits.detach().clone())
    quarters = [path[step] for step in (49, 99, 149, 199)]
    assert all(
        later[0] - later[1] > before[0] - before[1] + 0.1 and later[1] - later[2] > before[1] - before[2] + 0.1
        for before, later in pairwise(quarters)
    )


# Reward models


def rewards_on(world: World, objective: Objective) -> Tensor:
    """Rewards of the responses, trained from zero on the world's pairs."""
    batch, weight_E = world.batch(), objective.weight_E(world.batch()).double()
    response_R = [i for pair in world.pairs for i in pair]

    def loss(reward_Y: Tensor) -> Tensor:
        policy = LogProbs(torch.empty(0), reward_R=reward_Y[response_R])
        return (weight_E * objective(policy, None, batch, {}).loss_E).sum() / weight_E.sum()

    return minimised(loss, torch.zeros(world.size, dtype=torch.float64))


def centred(reward_Y: Tensor) -> Tensor:
    """What differences of rewards say: their level is free."""
    return reward_Y - reward_Y.mean()


RATED = World(REFERENCE, bradley_terry(REWARD), gap=REWARD[:, None] - REWARD)
DOUBTED = World(REFERENCE, torch.ones(5, 5).triu(1), confidence=bradley_terry(REWARD))


@pytest.mark.parametrize(
    ("fields", "world", "exact"),
    [
        ({}, NOISY, REWARD),
        ({}, DOUBTED, REWARD),
        ({"margin": "gap"}, RATED, 2 * REWARD),  # labels ask for the reward's difference, and margins for it again
        ({}, World(tensor([0.6, 0.4]), two(0.8)), tensor([math.log(4), 0.0])),
        ({"label_smoothing": 0.2}, World(tensor([0.6, 0.4]), two(1.0)), tensor([math.log(4), 0.0])),
    ],
)
def test_a_reward_model_finds_the_differences_of_rewards(fields, world, exact):
    found = rewards_on(world, registry.build("bradley_terry", **fields))
    torch.testing.assert_close(centred(found), centred(exact.double()), rtol=0, atol=1e-6)


def test_centring_sets_the_level_of_two_rewards_and_leaves_their_difference():
    world = World(tensor([0.6, 0.4]), two(0.8))
    found = rewards_on(world, registry.build("bradley_terry", centring=0.3))
    torch.testing.assert_close(found, tensor([math.log(4) / 2, -math.log(4) / 2], dtype=torch.float64))


def test_centring_of_many_rewards_is_level_by_an_independent_formula():
    world = RATED
    found = rewards_on(world, registry.build("bradley_terry", centring=0.05, margin="gap")).numpy()
    slope = np.zeros(world.size)
    for i, j in world.pairs:
        loses = 1 / (1 + np.exp(found[i] - found[j] - world.gap[i, j].item()))
        pull = 2 * 0.05 * (found[i] + found[j])
        slope[i] += world.masses[i, j].item() * (pull - loses)
        slope[j] += world.masses[i, j].item() * (pull + loses)
    assert np.abs(slope).max() < 1e-8


def test_all_names_of_this_file_are_held_here():
    assert {name for name, _, _ in TOKEN_LEVEL} | {"plackett_luce", "bradley_terry"} == COVERED
    assert set(registry.names()) >= COVERED

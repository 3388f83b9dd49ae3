"""Exact answers for objectives that look at the whole batch. They hold some quantities constant while they train, so
what is found is where the policy comes to rest, and Adam finds it.

Judged responses: each response y to the prompt is judged equally often, and good with probability g_y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from oracle.world import World, two
from torch import Tensor, tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import pack
from preftune.objectives.base import Objective
from preftune.objectives.batch import LogProbs, Role
from preftune.theory import tabular


@dataclass(frozen=True)
class Judged:
    """Responses to one prompt, judged one by one.

    Attributes:
        reference: probability of each response under the reference, shape Y.
        good: probability that each is judged good, shape Y.
    """

    reference: Tensor
    good: Tensor

    @property
    def reference_logps(self) -> Tensor:
        return self.reference.double().log()

    def loss(self, objective: Objective) -> Callable[[Tensor], Tensor]:
        """The objective's loss of a policy. As the mismatched response, where one is needed, the first one serves."""
        rates = self.good.tolist()
        verdicts = [(y, 1.0, p) for y, p in enumerate(rates)] + [(y, 0.0, 1 - p) for y, p in enumerate(rates)]
        verdicts = [verdict for verdict in verdicts if verdict[2] > 0]
        one = np.ones(1, dtype=np.int32)
        extra = (Response(one, Role.BASELINE),) if objective.baselines else ()
        batch = pack(
            [Example(one, (Response(one, Role.LABELLED, score=good), *extra), weight=p) for _, good, p in verdicts]
        )
        response_R = tensor([index for y, _, _ in verdicts for index in ([y, 0] if extra else [y])])
        weight_E = objective.weight_E(batch).double()

        def loss(logps_Y: Tensor) -> Tensor:
            both = (LogProbs(each[response_R]) for each in (logps_Y, self.reference_logps))
            outcome = objective(*both, batch, objective.init())
            return (weight_E * outcome.loss_E).sum() / weight_E.sum()

        return loss


@dataclass(frozen=True)
class Rest:
    """Where an objective's policy comes to rest.

    Attributes:
        name: of the objective.
        fields: its hyperparameters.
        world: what it is trained on.
        optimum: the exact answer, as log-probabilities.
    """

    name: str
    fields: Mapping[str, Any]
    world: World | Judged
    optimum: Tensor


@dataclass(frozen=True)
class Level:
    """An objective that comes to rest where an independent formula is level, in every logit.

    Attributes:
        name: of the objective.
        fields: its hyperparameters.
        world: what it is trained on.
        slopes: derivative of the mean loss in each response's log-probability, from the log-ratios and the world.
    """

    name: str
    fields: Mapping[str, Any]
    world: World | Judged
    slopes: Callable[..., np.ndarray]


def s(x: np.ndarray) -> np.ndarray:
    """The sigmoid."""
    return 1 / (1 + np.exp(-x))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def by_reward(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    return tabular.reward_kl_optimum(reference.double().log(), reward, beta)


def bco_slopes(ratio: np.ndarray, world: Judged, *, beta: float) -> np.ndarray:
    """Good ones are pulled up by 1 - s, bad ones down by s, each against the mean reward."""
    reward = beta * ratio
    return beta * (s(reward - reward.mean()) - world.good.numpy()) / len(ratio)


def dr_dpo_slopes(ratio: np.ndarray, world: World, *, beta: float, beta_prime: float) -> np.ndarray:
    """Each pair pulls with its own probability to the power of 1 / beta_prime."""
    share = world.masses.numpy() * s(beta * (ratio[:, None] - ratio)) ** (1 / beta_prime)
    pull = beta * share / share.sum() * s(beta * (ratio - ratio[:, None]))
    return pull.sum(0) - pull.sum(1)


def aot_slopes(ratio: np.ndarray, world: World, *, beta: float) -> np.ndarray:
    """In 20,000 steps of one quantile each, read off the sorted margins."""
    reference = world.reference_logps.numpy()
    policy, pairs = ratio + reference, world.pairs
    mass = np.array([float(world.masses[i, j]) for i, j in pairs])
    ours, theirs = (np.array([each[i] - each[j] for i, j in pairs]) for each in (policy, reference))
    levels, slopes = (np.arange(20_000) + 0.5) / 20_000, np.zeros(len(ratio))
    at = [np.argsort(each)[np.searchsorted(mass[np.argsort(each)].cumsum(), levels)] for each in (ours, theirs)]
    pull = beta * s(beta * (theirs[at[1]] - ours[at[0]])) / len(levels)
    np.add.at(slopes, np.array(pairs)[at[0], 0], -pull)
    np.add.at(slopes, np.array(pairs)[at[0], 1], pull)
    return slopes


def rate_of_growth(beta: float, alpha: float, decay: float, p: float) -> float:
    """The gap d at which beta_b * d = logit(p): beta * (1 + alpha * (mean - decayed mean)) * d, both means those of d
    with probability p and -d with 1 - p, is quadratic in d."""
    rise = alpha * decay * (2 * p - 1)
    return (math.sqrt(1 + 4 * rise * logit(p) / beta) - 1) / (2 * rise)


UNEVEN, THREE = tensor([0.6, 0.4]), tensor([0.5, 0.3, 0.2])
REWARD = tensor([0.9, 0.2, -0.6], dtype=torch.float64)
NOISY = World(THREE, torch.sigmoid(REWARD[:, None] - REWARD).fill_diagonal_(0))
PAIR, CERTAIN = World(UNEVEN, two(0.8)), World(UNEVEN, two(1.0))
SURE, MOSTLY = (Judged(UNEVEN, tensor([p, 1 - p], dtype=torch.float64)) for p in (1.0, 0.8))
LOGIT = logit(0.8)
# the reference, and the policy with log-ratios log 4 and -log 4
TURNED = (tensor([0.2, 0.8]), tensor([0.8, 0.2], dtype=torch.float64).log())

RESTS = [
    # rewards come to rest at shift + logit(g): any world of two, or in which the logits are even
    Rest("bco", {"beta": 2.0}, PAIR, by_reward(UNEVEN, tensor([LOGIT, -LOGIT]), 2.0)),
    Rest("bco", {"beta": 2.0, "decay": 0.5}, PAIR, by_reward(UNEVEN, tensor([LOGIT, -LOGIT]), 2.0)),
    Rest("bco", {"beta": 1.0, "shift": "none"}, World(TURNED[0], two(0.8)), TURNED[1]),
    Rest(
        "bco_unpaired",
        {"beta": 2.0},
        Judged(THREE, tensor([0.9, 0.5, 0.1], dtype=torch.float64)),
        by_reward(THREE, tensor([logit(0.9), 0.0, -logit(0.9)]), 2.0),
    ),
    Rest(
        "bco_unpaired",
        {"beta": 1.0, "shift": "none"},
        Judged(TURNED[0], tensor([0.8, 0.2], dtype=torch.float64)),
        TURNED[1],
    ),
    # one prompt with two responses has one margin, and its opposite: sorting changes nothing
    Rest("aot", {"beta": 2.0}, PAIR, by_reward(UNEVEN, tensor([LOGIT, 0.0]), 2.0)),
    Rest("aot", {"beta": 2.0, "label_smoothing": 0.2}, CERTAIN, by_reward(UNEVEN, tensor([LOGIT, 0.0]), 2.0)),
    Rest("aot_unpaired", {"beta": 2.0, "label_smoothing": 0.2}, SURE, by_reward(UNEVEN, tensor([LOGIT, 0.0]), 2.0)),
    Rest("beta_dpo", {"beta": 2.0, "alpha": 0.0, "filter_share": 0.0}, NOISY, by_reward(THREE, REWARD, 2.0)),
    Rest(
        "beta_dpo",
        {"beta": 2.0, "alpha": 0.4, "filter_share": 0.0, "decay": 0.9},
        PAIR,
        by_reward(UNEVEN, tensor([rate_of_growth(2.0, 0.4, 0.9, 0.8), 0.0]), 1.0),
    ),
    # p s^(1/b - 1) = (1 - p) (1 - s)^(1/b - 1), so that logit(s) = logit(p) b / (b - 1)
    Rest("dr_dpo", {"beta": 2.0, "beta_prime": 3.0}, PAIR, by_reward(UNEVEN, tensor([1.5 * LOGIT, 0.0]), 2.0)),
]

LEVELS = [
    Level("bco_unpaired", {"beta": 2.0}, Judged(THREE, tensor([0.9, 0.7, 0.3], dtype=torch.float64)), bco_slopes),
    Level("dr_dpo", {"beta": 2.0, "beta_prime": 2.0}, NOISY, dr_dpo_slopes),
    Level("aot", {"beta": 2.0}, NOISY, aot_slopes),
]

ENDLESS: list[tuple[str, dict[str, Any], World | Judged]] = [
    ("kto", {"beta": 0.5}, SURE),
    ("kto", {"beta": 0.5}, MOSTLY),  # a majority is enough
    ("kto", {"beta": 0.5, "lambda_d": 0.5, "lambda_u": 1.5}, MOSTLY),  # and 0.5 * 0.8 still is one over 1.5 * 0.2
    ("bco", {"beta": 0.5}, CERTAIN),
    ("bco_unpaired", {"beta": 0.5}, SURE),
    ("aot", {"beta": 0.5}, CERTAIN),
    ("aot_unpaired", {"beta": 0.5}, SURE),
    ("aot_unpaired", {"beta": 0.5}, MOSTLY),  # both samples hold both responses, in unequal shares
    ("dr_dpo", {"beta": 0.5}, CERTAIN),
    ("dr_dpo", {"beta": 0.5, "beta_prime": 1.0}, PAIR),  # it gives up on the pairs that contradict
]

NAMES = {case.name for case in [*RESTS, *LEVELS]} | {name for name, _, _ in ENDLESS}

"""PPO, RLOO and GRPO against arithmetic by hand, and what they refuse."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch, pack
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.base import Objective, Outcome
from preftune.objectives.batch import LogProbs, Role
from preftune.objectives.rollouts import clipped_loss, k3

NAMES = ("ppo", "rloo", "grpo")


def group(*responses: tuple[list[float], float, dict[str, list[float]]], row: int = 3, weight: float = 1.0) -> Example:
    """A prompt with responses, each given as old log-probs, reward and what else it carries."""
    made = tuple(
        Response(
            np.arange(1, len(old) + 1, dtype=np.int32),
            Role.RANKED,
            reward,
            token={name: np.array(values, np.float32) for name, values in {"old_logps": old, **more}.items()},
        )
        for old, reward, more in responses
    )
    return Example(np.array([1, 2], np.int32), made, row=row, weight=weight)


def run(objective: Objective, examples: list[Example], policy: list[float], reference: list[float]) -> Outcome:
    both = (LogProbs(tensor(values, dtype=torch.float64).requires_grad_()) for values in (policy, reference))
    return objective(*both, pack(examples), objective.init())


def reduced(objective: Objective, outcome: Outcome, batch: PackedBatch) -> Tensor:
    weight_E = objective.weight_E(batch)
    return (weight_E * outcome.loss_E).sum() / weight_E.sum()


def near(actual: Tensor, *expected: float) -> None:
    found = actual.detach().double().flatten()
    torch.testing.assert_close(found, tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_the_clip_holds_both_sides_and_neither_of_the_others() -> None:
    """At clip 0.2: a good token that has gained enough, and a bad one that has lost enough, pull no more."""
    ratio = tensor([1.5, 1.5, 0.5, 0.5, 1.1], dtype=torch.float64)
    advantage = tensor([2.0, -2.0, 2.0, -2.0, 1.0], dtype=torch.float64)
    log_ratio = ratio.log().requires_grad_()
    loss, held = clipped_loss(log_ratio, advantage, 0.2, 0.2)
    near(loss, -2 * 1.2, 2 * 1.5, -2 * 0.5, 2 * 0.8, -1.1)
    assert held.tolist() == [1, 0, 0, 1, 0]
    (slope,) = torch.autograd.grad(loss.sum(), log_ratio)
    near(slope, 0, 3, -1, 0, -1.1)  # -advantage * ratio where it is free


def test_a_higher_clip_lets_good_tokens_gain_more() -> None:
    log_ratio, advantage = tensor([1.25]).log(), tensor([1.0])
    assert clipped_loss(log_ratio, advantage, 0.2, 0.2)[0].item() == pytest.approx(-1.2)
    assert clipped_loss(log_ratio, advantage, 0.2, 0.28)[0].item() == pytest.approx(-1.25)


def test_k3_is_never_negative_and_has_the_right_mean() -> None:
    """Of p = (0.5, 0.5) and q = (0.8, 0.2): the mean under p is KL(p || q)."""
    p, q = tensor([0.5, 0.5]), tensor([0.8, 0.2])
    found = k3(q.log() - p.log())
    assert (found > 0).all()
    assert (p * found).sum().item() == pytest.approx((p * (p.log() - q.log())).sum().item(), rel=1e-5)
    assert k3(tensor([0.0])).item() == 0


def test_the_mean_of_ppo_is_over_all_tokens_of_the_batch() -> None:
    """One response of 3 tokens and one of 1, ratios 1: -(1 + 1 + 1 - 5) / 4; by responses it would be (-1 + 5) / 2."""
    one, minus, old = [1.0, 1.0, 1.0], [-5.0], math.log(0.5)
    examples = [
        group(([old] * 3, 0.0, {"advantages": one, "reference_logps": [0.0] * 3})),
        group(([old], 0.0, {"advantages": minus, "reference_logps": [0.0]})),
    ]
    objective = registry.build("ppo")
    outcome = run(objective, examples, [old] * 4, [0.0] * 4)
    near(reduced(objective, outcome, pack(examples)), 0.5)


def test_figures_of_a_step_by_hand() -> None:
    """Ratios 1.5 (good: held), 0.5 (good: free) and 1.0."""
    old = math.log(0.4)
    example = group(([old] * 3, 0.0, {"advantages": [1.0, 1.0, 1.0], "reference_logps": [0.0] * 3}))
    outcome = run(registry.build("ppo"), [example], [math.log(0.6), math.log(0.2), old], [0.0] * 3)
    near(outcome.extras["clipped"], 1 / 3)
    near(outcome.extras["ratio_mean"], 1.0)
    near(outcome.extras["ratio_max"], 1.5)
    near(outcome.extras["approx_kl"], (0.5 - math.log(1.5) - 0.5 - math.log(0.5)) / 3)


def test_rloo_by_hand() -> None:
    """Rewards 3, 1, 2 less 0.5 nats * 2 each on the first: 2, 1, 2: less the mean of the others 0.5, -1, 0.5."""
    example = group(([-1.0, -1.0], 3.0, {}), ([-2.0], 1.0, {}), ([-1.0], 2.0, {}))
    reference = [-2.0, -2.0, -2.0, -1.0]
    outcome = run(registry.build("rloo", beta=0.5), [example], [-1.0, -1.0, -2.0, -1.0], reference)
    near(outcome.loss_E, 0.0)
    policy = tensor([-1.0, -1.0, -2.0, -1.0]).double().requires_grad_()
    batch, objective = pack([example]), registry.build("rloo", beta=0.5)
    found = objective(LogProbs(policy), LogProbs(tensor(reference)), batch, {})
    (slope,) = torch.autograd.grad(found.loss_E.sum(), policy)
    near(slope * 3, -0.5, -0.5, 1.0, -0.5)  # every token of a response pulls alike
    near(found.rewards_R, 1.0, 0.0, 0.0)  # 0.5 * the log-ratio


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # rewards 2, 0 and ratios 1: advantages 1, -1; responses of 2 tokens and 1
        ({"scale": "none"}, [-0.25, -0.25, 0.5]),  # 1 / n * 1 / length
        ({"scale": "none", "average": "token"}, [-1 / 3, -1 / 3, 1 / 3]),
        ({"scale": "none", "average": "none"}, [-0.5, -0.5, 0.5]),
        # standard deviation of (2, 0) with n - 1: root 2
        ({}, [each / (math.sqrt(2) + 1e-4) for each in (-0.25, -0.25, 0.5)]),
    ],
)
def test_grpo_by_hand(fields: dict[str, Any], expected: list[float]) -> None:
    example = group(([-1.0, -2.0], 2.0, {}), ([-1.5], 0.0, {}))
    batch, objective = pack([example]), registry.build("grpo", beta=0.0, **fields)
    policy = tensor([-1.0, -2.0, -1.5]).double().requires_grad_()
    outcome = objective(LogProbs(policy), LogProbs(tensor([-1.0, -1.0, -1.0])), batch, {})
    (slope,) = torch.autograd.grad(reduced(objective, outcome, batch), policy)
    near(slope, *expected)
    assert outcome.rewards_R.isnan().all()  # without a price on KL there is no implicit reward


def test_the_penalty_of_grpo_by_hand() -> None:
    """Equal rewards: k3 alone, of x = log 2 at one of three tokens, which is 2 - log 2 - 1."""
    example = group(([-1.0, -2.0], 1.0, {}), ([-1.5], 1.0, {}))
    reference = [-1.0, -2.0 + math.log(2), -1.5]
    for average, share in (("response", 0.25), ("token", 1 / 3), ("none", 0.5)):
        objective = registry.build("grpo", beta=0.1, average=average)
        outcome = run(objective, [example], [-1.0, -2.0, -1.5], reference)
        near(reduced(objective, outcome, pack([example])), 0.1 * share * (1 - math.log(2)))
        near(outcome.extras["reference_kl"], (1 - math.log(2)) / 2)  # nats per response


@pytest.mark.parametrize("name", NAMES)
def test_examples_that_are_no_rollouts_weigh_nothing_and_have_their_implicit_reward(name: str) -> None:
    objective = registry.build(name, beta=0.5)
    ids = np.array([1, 2], np.int32)
    pair = Example(ids, (Response(ids, Role.CHOSEN), Response(ids, Role.REJECTED)))
    outcome = run(objective, [pair], [-1.0] * 4, [-2.0, -2.0, -1.0, -1.0])
    assert objective.weight_E(pack([pair])).tolist() == [0.0]
    assert outcome.rewards_R.tolist() == [1.0, 0.0]
    assert outcome.loss_E.tolist() == [0.0]
    assert not outcome.extras
    rollout = group(*[([-1.0, -1.0], reward, carried(objective, 2)) for reward in (1.0, 0.0)])
    both = pack([rollout, pair])
    assert objective.weight_E(both).bool().tolist() == [True, False]


def carried(objective: Objective, tokens: int) -> dict[str, list[float]]:
    return {name: [-1.0] * tokens for name in objective.carried - {"old_logps"}}


@pytest.mark.parametrize("name", ["rloo", "grpo"])
@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_finite_number_is_refused_by_row(name: str, reward: float) -> None:
    example = group(([-1.0], 1.0, {}), ([-1.0], reward, {}), row=17)
    with pytest.raises(PreftuneError, match=rf"the prompt of row 17 has reward {reward}, expected a finite") as raised:
        run(registry.build(name), [example], [-1.0, -1.0], [-1.0, -1.0])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_a_single_response_has_nothing_to_be_compared_with(name: str) -> None:
    with pytest.raises(PreftuneError, match=r"a prompt has only one: set online\.samples to 2 or more"):
        run(registry.build(name), [group(([-1.0], 1.0, {}))], [-1.0], [-1.0])


@pytest.mark.parametrize("name", NAMES)
def test_an_example_of_weight_two_counts_like_two(name: str) -> None:
    objective = registry.build(name)
    one = group(*[([-1.0, -2.0], reward, carried(objective, 2)) for reward in (1.0, 0.0)])
    other = group(*[([-2.0], reward, carried(objective, 1)) for reward in (3.0, 0.5, 0.0)])
    policy = {id(one): [-1.1, -2.2, -0.9, -2.1], id(other): [-2.1, -1.9, -2.2]}

    def loss(examples: list[Example]) -> Tensor:
        logps = [value for example in examples for value in policy[id(example)]]
        return reduced(objective, run(objective, examples, logps, [-2.0] * len(logps)), pack(examples))

    heavy = dataclasses.replace(one, weight=2.0)
    policy[id(heavy)] = policy[id(one)]
    torch.testing.assert_close(loss([one, one, other]), loss([heavy, other]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("ppo", {"beta": -0.1}, "beta must be finite and >= 0"),
        ("ppo", {"clip": 0}, "clip must be in (0, 1), got 0"),
        ("ppo", {"clip": 1.5}, "clip must be in (0, 1), got 1.5"),
        ("ppo", {"gamma": 0}, "gamma must be in (0, 1], got 0"),
        ("ppo", {"lam": 1.1}, "lam must be in [0, 1], got 1.1"),
        ("ppo", {"target_kl": 0}, "target_kl must be finite and > 0, got 0"),
        ("ppo", {"target_kl": 6.0, "beta": 0}, "target_kl adapts beta by factors, and beta is 0"),
        ("ppo", {"horizon": 0}, "horizon must be >= 1, got 0"),
        ("ppo", {"value_clip": -1}, "value_clip must be finite and > 0, or null, got -1"),
        ("ppo", {"value_learning_rate": 0}, "value_learning_rate must be finite and > 0, or null, got 0"),
        ("rloo", {"clip": -0.2}, "clip must be in (0, 1), got -0.2"),
        ("grpo", {"clip_high": 0}, "clip_high must be > 0, or null, got 0"),
        ("grpo", {"modifiers": {"temperature": 2.0}}, "modifiers.temperature is refused: rollouts carry log-probs"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)

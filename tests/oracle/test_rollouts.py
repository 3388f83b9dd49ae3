"""Objectives on rollouts against the exact policy gradient, on a tree of tokens whose five responses can be listed.

What a policy would sample is not drawn: every group of responses is there once, and weighs as much as it is likely. The
expectation over samples so is a weighted mean, and the gradient of the loss must be the exact one, to rounding.
"""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from preftune.objectives import registry
from preftune.objectives.base import Objective
from preftune.objectives.batch import LogProbs, PlainBatch, Role
from preftune.rlhf.advantages import generalised_advantages, token_rewards
from preftune.theory import tabular

# Objectives that are held to an exact answer in this file.
COVERED = {"ppo", "rloo", "grpo"}

REWARD = tensor([0.9, 0.2, -0.6, 1.5, -0.1], dtype=torch.float64)
BRANCHES = ((0,), (1, 2), (3, 4))  # the responses that begin with each first token
REFERENCE = tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64).log()
EVERYWHERE = [torch.linspace(-1, 1, 5, dtype=torch.float64).roll(n) * scale for n, scale in enumerate((0, 0.5, 1, 2))]


def tokens_of(logps_Y: Tensor) -> list[Tensor]:
    """Log-probs of the tokens of each response: one token, or two."""
    found: dict[int, Tensor] = {}
    for branch in BRANCHES:
        first = logps_Y[list(branch)].logsumexp(0)
        for y in branch:
            found[y] = first[None] if len(branch) == 1 else torch.stack([first, logps_Y[y] - first])
    return [found[y] for y in range(len(logps_Y))]


def gradient(objective: Objective, logits: Tensor, samples: int, advantages: list[np.ndarray] | None = None) -> Tensor:
    """Gradient of the expected loss in the logits, where the policy itself has sampled."""
    leaf = logits.clone().requires_grad_()
    logps_Y = torch.log_softmax(leaf, 0)
    groups = list(product(range(len(logits)), repeat=samples))
    ours, theirs = tokens_of(logps_Y), tokens_of(REFERENCE)
    members = [y for group in groups for y in group]
    p_Y = logps_Y.detach().exp().tolist()
    lengths = tensor([len(ours[y]) for y in members])
    token = {"old_logps": torch.cat([ours[y] for y in members]).detach()}
    if advantages is not None:
        token["advantages"] = torch.cat([torch.as_tensor(advantages[y]) for y in members])
    ones = torch.ones(len(groups), dtype=torch.float64)
    batch = PlainBatch(
        response_K=torch.arange(len(members)).repeat_interleave(lengths),
        example_R=torch.arange(len(groups)).repeat_interleave(samples),
        role_R=torch.full((len(members),), int(Role.RANKED)),
        score_R=REWARD[members],
        length_R=lengths,
        weight_E=tensor([prod(p_Y[y] for y in group) for group in groups], dtype=torch.float64),
        confidence_E=ones,
        gap_E=ones,
        token=token,
    )
    policy, reference = (LogProbs(torch.cat([each[y] for y in members])) for each in (ours, theirs))
    outcome = objective(policy, reference, batch, objective.init())
    weight_E = objective.weight_E(batch)
    return torch.autograd.grad((weight_E * outcome.loss_E).sum() / weight_E.sum(), leaf)[0]


def exact(logits: Tensor, beta: float) -> Tensor:
    """Gradient of minus the expected reward less beta * KL(policy || reference)."""
    leaf = logits.clone().requires_grad_()
    logps_Y = torch.log_softmax(leaf, 0)
    value = (logps_Y.exp() * (REWARD - beta * (logps_Y - REFERENCE))).sum()
    return torch.autograd.grad(-value, leaf)[0]


def mean_length(logits: Tensor) -> float:
    p_Y = torch.softmax(logits, 0)
    return float((p_Y * tensor([len(each) for each in tokens_of(REFERENCE)])).sum())


@pytest.mark.parametrize("logits", EVERYWHERE)
@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_rloo_has_the_exact_gradient_in_expectation(logits: Tensor, samples: int, beta: float) -> None:
    found = gradient(registry.build("rloo", beta=beta), logits, samples)
    torch.testing.assert_close(found, exact(logits, beta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("logits", EVERYWHERE)
@pytest.mark.parametrize("lam", [1.0, 0.95])
def test_ppo_has_the_exact_gradient_in_expectation(logits: Tensor, lam: float) -> None:
    """Any values serve with lam 1, and the true ones with any lam. The mean over tokens divides by the mean length."""
    beta, logps_Y = 0.3, torch.log_softmax(logits, 0)
    ours, theirs = tokens_of(logps_Y), tokens_of(REFERENCE)
    rewards = [token_rewards(ours[y].numpy(), theirs[y].numpy(), float(REWARD[y]), beta) for y in range(5)]
    p_Y = logps_Y.exp().numpy()
    root = sum(p_Y[y] * rewards[y].sum() for y in range(5))  # the expected return
    values = {}
    for branch in BRANCHES:
        mass = p_Y[list(branch)].sum()
        later = sum(p_Y[y] / mass * rewards[y][1:].sum() for y in branch)
        for y in branch:
            values[y] = np.array([root, later][: len(rewards[y])]) if lam < 1 else np.array([0.7, -0.4])[: len(ours[y])]
    advantages = [generalised_advantages(rewards[y], values[y], gamma=1.0, lam=lam) for y in range(5)]
    found = gradient(registry.build("ppo", beta=beta), logits, 1, advantages) * mean_length(logits)
    torch.testing.assert_close(found, exact(logits, beta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("logits", EVERYWHERE)
@pytest.mark.parametrize("samples", [2, 4])
def test_grpo_without_normalisations_has_the_exact_gradient_in_expectation(logits: Tensor, samples: int) -> None:
    """Its mean includes the response itself, which takes 1 / n off the gradient."""
    found = gradient(registry.build("grpo", beta=0.0, scale="none", average="none"), logits, samples)
    torch.testing.assert_close(found, exact(logits, 0.0) * (1 - 1 / samples), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("logits", EVERYWHERE)
def test_the_penalty_of_grpo_pulls_like_the_divergence_of_the_reference_from_the_policy(logits: Tensor) -> None:
    """k3 estimates KL(policy || reference), but its gradient, on the policy's own samples, is that of the other KL
    divergence at each token, of which the policy's samples say where it counts."""
    penalised, free = (
        gradient(registry.build("grpo", beta=beta, scale="none", average="none"), logits, 2) for beta in (0.5, 0.0)
    )
    leaf = logits.clone().requires_grad_()
    logps_Y = torch.log_softmax(leaf, 0)
    first, of_reference = (
        torch.stack([each[list(branch)].logsumexp(0) for branch in BRANCHES]) for each in (logps_Y, REFERENCE)
    )
    total = -(of_reference.exp() * first).sum()
    for place, branch in enumerate(BRANCHES):
        at = list(branch)
        later = -((REFERENCE[at] - of_reference[place]).exp() * (logps_Y[at] - first[place])).sum()
        total = total + first[place].exp().detach() * later
    torch.testing.assert_close((penalised - free) / 0.5, torch.autograd.grad(total, leaf)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_the_gradient_vanishes_at_the_optimum(beta: float) -> None:
    optimum = tabular.reward_kl_optimum(REFERENCE, REWARD, beta)
    assert gradient(registry.build("rloo", beta=beta), optimum, 2).abs().max() < 1e-12
    assert gradient(registry.build("rloo", beta=beta), REFERENCE, 2).abs().max() > 0.01

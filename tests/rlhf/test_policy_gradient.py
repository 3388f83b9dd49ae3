"""The first step of PPO, RLOO and GRPO on sampled responses, against the exact policy gradient of the listed world.

Everything between is ours: sampling, log-probs, rewards, the value network, packing, the objective and the step. (That
the objectives have the exact gradient in expectation, to rounding, is in tests/oracle/test_rollouts.py.)
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from preftune.data.examples import Example, Response
from preftune.evaluation.sampling import sample
from preftune.objectives import registry
from preftune.objectives.batch import Role
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference
from preftune.rlhf.critic import Critic
from preftune.rlhf.rollouts import OLD, REFERENCE, carrying
from preftune.rlhf.value_network import value_network
from preftune.sandbox import listed
from preftune.theory import frontier
from preftune.training.batches import BatchConfig
from preftune.training.feed import Feed
from preftune.training.optim import OptimConfig
from preftune.training.processes import Group
from preftune.training.step import Step

PROMPTS, SAMPLES, BETA = listed.PROMPTS[:4], 800, 1.5


def policy_of(noise: float) -> PolicyModule:
    """The reference with some noise on its weights: a policy that has moved."""
    lm, generator = listed.reference_model(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter += noise * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return PolicyModule(lm, "padded")


@cache
def rollouts() -> tuple[PolicyModule, FrozenReference, Feed, list[Example]]:
    """A policy, its reference, and what it has sampled."""
    policy, reference = policy_of(0.5), FrozenReference(policy_of(0.0))
    feed = Feed(policy, BatchConfig(micro_tokens=40_000), None, torch.device("cpu"), listed.END)
    ids = [listed.words_of(prompt) for prompt in PROMPTS]
    sizes: Any = {"max_new_tokens": listed.LONGEST, "samples_per_prompt": SAMPLES, "batch_size": 4000}
    with policy.generating() as lm:
        drawn = sample(lm, ids, seed=0, end_ids=[listed.END], pad_id=listed.END, **sizes)
    places = {tuple(each): place for place, each in enumerate(listed.response_ids())}
    rewards_PY = listed.rewards(PROMPTS)
    examples = []
    for row, prompt in enumerate(ids):
        answers = [one.ids for one in drawn[row * SAMPLES : (row + 1) * SAMPLES]]
        scores = [float(rewards_PY[row, places[tuple(each.tolist())]]) for each in answers]
        made = tuple(Response(each, Role.RANKED, score) for each, score in zip(answers, scores, strict=True))
        examples.append(Example(torch.tensor(prompt, dtype=torch.int32).numpy(), made, row))
    return policy, reference, feed, carrying(examples, {OLD: policy, REFERENCE: reference}, feed, Group())


def exact(beta: float) -> Tensor:
    """Minus the gradient of the expected reward less beta * KL."""
    lm: Any = copy.deepcopy(rollouts()[0].lm)
    lm.set_attn_implementation("eager")
    value = frontier.objective(
        listed.all_logps(lm, PROMPTS), listed.reference_logps(PROMPTS), listed.rewards(PROMPTS), beta
    )
    return torch.cat([g.flatten() for g in torch.autograd.grad(-value, list(lm.parameters()))])


def sampled(name: str, **fields: Any) -> Tensor:
    """The gradient of the first step on what was sampled."""
    policy, reference, feed, examples = rollouts()
    objective, accelerator = registry.build(name, **fields), Accelerator(cpu=True)
    if name == "ppo":
        optim = OptimConfig(schedule="constant", warmup_ratio=0.0, max_grad_norm=None)
        learner = Critic(value_network(policy, None, 0), objective, feed, accelerator, 0, optim, 1e-3, 10)  # type: ignore[arg-type]
        made, _ = learner.prepare(examples)
        for step in range(4):  # some idea of what is to be expected
            learner.learn(list(feed.side(made)), step)
        examples, _ = learner.prepare(examples)
    step = Step(policy, reference, registry.terms({"name": name, **fields}), accelerator, 0)
    policy.zero_grad()
    scored = step.gradient(list(feed.side(examples)), (objective.init(),), 0, None)
    columns = scored.columns[0]
    assert columns["objective.ratio_max"].max() == pytest.approx(1, abs=1e-4)
    assert columns["objective.clipped"].max() == 0
    found = torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])
    policy.zero_grad()
    return found


@pytest.mark.parametrize(
    ("name", "fields", "beta"),
    [
        ("rloo", {"beta": BETA}, BETA),
        ("ppo", {"beta": BETA, "lam": 1.0}, BETA),
        ("ppo", {"beta": BETA, "lam": 1.0, "whiten_rewards": True}, BETA),
        ("grpo", {"beta": 0.0, "scale": "none", "average": "none"}, 0.0),
    ],
)
def test_the_first_step_goes_where_the_exact_gradient_goes(name: str, fields: dict[str, Any], beta: float) -> None:
    expected, found = exact(beta), sampled(name, **fields).double()
    assert torch.nn.functional.cosine_similarity(expected, found, dim=0) >= 0.99
    if name == "rloo":  # not only the direction
        assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=0.1)


def test_the_price_of_kl_shows() -> None:
    """Or the test above would hold without it."""
    assert torch.nn.functional.cosine_similarity(exact(BETA), exact(0.0), dim=0) < 0.95

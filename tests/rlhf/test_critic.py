"""The value network: values from the tree, advantages by hand, steps that do not depend on how a batch is cut, and
checkpoints that bring everything back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import pack, pad
from preftune.errors import PreftuneError
from preftune.objectives.batch import Role
from preftune.objectives.ppo import PPO
from preftune.policy.policy import PolicyModule, rewards, values
from preftune.policy.reward_head import with_reward_head
from preftune.rlhf.critic import Critic, clipped_value_loss
from preftune.rlhf.value_network import value_network
from preftune.training import checkpoint
from preftune.training.batches import BatchConfig
from preftune.training.feed import Feed
from preftune.training.optim import OptimConfig

GIVEN = ("old_logps", "reference_logps")
CONSTANT = OptimConfig(schedule="constant", warmup_ratio=0.0)


def rollouts(count: int = 4, samples: int = 2) -> list[Example]:
    """Prompts with sampled responses of different lengths, rewards and log-probs."""
    generator, found = np.random.default_rng(0), []
    for row in range(count):
        responses = []
        for i in range(samples):
            length = 1 + (3 * row + 2 * i) % 5
            token = {name: -3 * generator.random(length).astype(np.float32) for name in GIVEN}
            responses.append(
                Response(miniatures.ids(length, 10 * row + i), Role.RANKED, float(generator.normal()), token=token)
            )
        found.append(Example(miniatures.ids(3 + row, 100 + row), tuple(responses), row, 1.0 + row % 2))
    return found


def network(seed: int = 0) -> Any:
    """A small value network with a head that is not zero, always the same."""
    torch.manual_seed(seed)
    model = with_reward_head(miniatures.build("llama"), 0)
    torch.nn.init.normal_(model.score.weight)
    return model


def critic(
    objective: PPO | None = None, layout: Any = "tree", batch: BatchConfig | None = None, **changes: Any
) -> Critic:
    module = PolicyModule(changes.pop("model", None) or network(), layout)
    feed = Feed(module, batch or BatchConfig(), None, torch.device("cpu"), 0)
    optim = changes.pop("optim", CONSTANT)
    return Critic(module, objective or PPO(), feed, Accelerator(cpu=True), 0, optim, 1e-3, 10, **changes)


def token(examples: Sequence[Example], name: str) -> np.ndarray:
    return np.concatenate([response.token[name] for example in examples for response in example.responses])


# --- values -----------------------------------------------------------------------------------------------------------


def test_values_stand_before_each_token_and_see_nothing_of_what_follows() -> None:
    """The value of the last prefix is what the reward model says where the response is cut there."""
    module, (example,) = PolicyModule(network(), "tree"), rollouts(1, 1)
    long = dataclasses.replace(
        example, responses=(dataclasses.replace(example.responses[0], ids=miniatures.ids(4, 7), token={}),)
    )
    found = values(module, pack([long])).value_K
    for place in range(1, 4):
        cut = dataclasses.replace(long.responses[0], ids=long.responses[0].ids[:place])
        reward = rewards(module, pack([dataclasses.replace(long, responses=(cut,))])).reward_R
        torch.testing.assert_close(found[place], reward[0], rtol=1e-5, atol=1e-6)


def test_values_of_trees_and_padded_rows_agree() -> None:
    examples, module = rollouts(), PolicyModule(network(), "padded")
    padded = values(module, pad(examples)).value_K
    module.use_layout("tree")
    torch.testing.assert_close(values(module, pack(examples)).value_K, padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("value", "expected", "held"),
    [
        (1.0, (2.0 - 0.2) ** 2 / 2, 1),  # came 1 nearer, which counts as 0.2
        (0.1, 1.9**2 / 2, 0),
        (-1.0, 3.0**2 / 2, 0),  # went away: the whole error counts
    ],
)
def test_the_value_clip_by_hand(value: float, expected: float, held: int) -> None:
    leaf = tensor([value], dtype=torch.float64, requires_grad=True)
    loss, clipped = clipped_value_loss(leaf, tensor([0.0]).double(), tensor([2.0]).double(), 0.2)
    assert loss.item() == pytest.approx(expected)
    assert clipped.item() == held
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    assert slope.item() == pytest.approx(0.0 if held else value - 2.0)


def test_the_value_loss_has_the_gradient_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    value, old, target = (torch.randn(20, generator=generator, dtype=torch.float64) for _ in range(3))
    for clip in (0.2, None):
        assert torch.autograd.gradcheck(
            lambda x, clip=clip: clipped_value_loss(x, old, target, clip)[0], value.requires_grad_()
        )


# --- preparing --------------------------------------------------------------------------------------------------------


def test_what_a_round_is_given_by_hand() -> None:
    """Values 0 (a head of zeros), lam 1, gamma 1, no whitening: an advantage is the return, rewards less 0.5 a nat."""
    responses = (
        Response(miniatures.ids(2, 8), Role.RANKED, 3.0, token=dict(zip(GIVEN, _f([-1, -1], [-2, -1.5]), strict=True))),
        Response(miniatures.ids(1, 9), Role.RANKED, 1.0, token=dict(zip(GIVEN, _f([-2], [-1]), strict=True))),
    )
    example = Example(miniatures.ids(3, 5), responses)
    model = network()
    torch.nn.init.zeros_(model.score.weight)
    learner = critic(PPO(beta=0.5, lam=1.0, whiten_advantages=False), model=model)
    (made,), figures = learner.prepare([example])
    # log-ratios 1 and 0.5: rewards -0.5 and 3 - 0.25; the other has log-ratio -1: 1 + 0.5
    np.testing.assert_allclose(made.responses[0].token["advantages"], [2.25, 2.75])
    np.testing.assert_allclose(made.responses[1].token["advantages"], [1.5])
    np.testing.assert_allclose(made.responses[0].token["returns"], [2.25, 2.75])
    assert made.responses[0].token["values"].tolist() == [0.0, 0.0]
    assert figures["kl"] == pytest.approx((1.5 - 1) / 2)
    assert figures["kl_coefficient"] == 0.5
    assert figures["return"] == pytest.approx((2.25 + 2.75 + 1.5) / 3)
    assert figures["value_explained"] == 0.0
    assert made.responses[0].token["old_logps"].tolist() == [-1.0, -1.0]


def _f(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


def test_advantages_are_whitened_over_the_tokens_of_the_round() -> None:
    made, figures = critic().prepare(rollouts())
    found = token(made, "advantages").astype(float)
    assert found.mean() == pytest.approx(0, abs=1e-6)
    assert found.std() == pytest.approx(1, rel=1e-5)
    plain, _ = critic(PPO(whiten_advantages=False)).prepare(rollouts())
    assert token(plain, "advantages").std() == pytest.approx(figures["advantage_sd"], rel=1e-5)
    np.testing.assert_allclose(
        token(plain, "returns"), token(plain, "advantages") + token(plain, "values"), rtol=1e-5, atol=1e-6
    )


def test_examples_of_weight_zero_count_in_no_mean() -> None:
    examples = rollouts()
    spoiled = dataclasses.replace(
        examples[0], weight=0.0, responses=tuple(dataclasses.replace(r, score=1e6) for r in examples[0].responses)
    )
    without, figures = critic().prepare(examples[1:])
    found, others = critic().prepare([spoiled, *examples[1:]])
    assert others == pytest.approx(figures, rel=1e-6)
    np.testing.assert_allclose(token(found[1:], "advantages"), token(without, "advantages"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", 0.5),
        ("lam", 0.5),
        ("beta", 0.7),
        ("whiten_rewards", True),
        ("whiten_advantages", False),
    ],
)
def test_every_setting_of_advantages_changes_them(field: str, value: Any) -> None:
    plain, other = (critic(PPO(**given)).prepare(rollouts())[0] for given in ({}, {field: value}))
    assert not np.allclose(token(plain, "advantages"), token(other, "advantages"))


def test_a_target_moves_the_price_from_round_to_round() -> None:
    learner = critic(PPO(beta=0.1, target_kl=2.0, horizon=100))
    kl = learner.prepare(rollouts())[1]["kl"]
    expected = 0.1 * (1 + max(-0.2, min(0.2, kl / 2 - 1)) * 8 / 100)
    assert learner.prepare(rollouts())[1]["kl_coefficient"] == pytest.approx(expected, rel=1e-12)
    longer = critic(PPO(beta=0.1, target_kl=2.0, horizon=1000))
    longer.prepare(rollouts())
    assert abs(longer.controller.beta - 0.1) < abs(learner.controller.beta - 0.1)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_values_do_not_depend_on_how_a_round_is_cut(layout: Any) -> None:
    one, _ = critic(layout=layout, batch=BatchConfig(micro_size=1)).prepare(rollouts())
    whole, _ = critic(layout=layout).prepare(rollouts())
    np.testing.assert_allclose(token(one, "values"), token(whole, "values"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": math.nan}, "the prompt of row 2 has reward nan, expected a finite number"),
        ({"score": -math.inf}, "the prompt of row 2 has reward -inf, expected a finite number"),
        ({"ids": np.empty(0, np.int32), "token": {}}, "a response to the prompt of row 2 has no token"),
    ],
)
def test_what_cannot_be_learned_from_is_named_by_row(change: dict[str, Any], message: str) -> None:
    examples = rollouts()
    bad = dataclasses.replace(examples[2].responses[1], **change)
    examples[2] = dataclasses.replace(examples[2], responses=(examples[2].responses[0], bad))
    with pytest.raises(PreftuneError) as raised:
        critic().prepare(examples)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


# --- learning ---------------------------------------------------------------------------------------------------------


def learned(learner: Critic, examples: list[Example], steps: int) -> list[dict[str, float]]:
    micros = list(learner.feed.side(examples))
    return [learner.learn(micros, step) for step in range(steps)]


def test_it_learns_what_returns_are() -> None:
    learner = critic(PPO(value_clip=None, value_learning_rate=3e-3))
    examples, before = learner.prepare(rollouts(8))
    found = learned(learner, examples, 40)
    assert found[-1]["value_loss"] < 0.2 * found[0]["value_loss"]
    assert learner.prepare(rollouts(8))[1]["value_explained"] > before["value_explained"] + 0.5


def test_the_clip_holds_values_near_those_of_the_round() -> None:
    free, held = (critic(PPO(value_clip=clip, value_learning_rate=3e-3)) for clip in (None, 0.05))
    far, near = (learned(each, each.prepare(rollouts(8))[0], 20) for each in (free, held))
    assert far[-1]["value_clipped"] == 0
    assert near[-1]["value_clipped"] > 0.5
    assert near[-1]["value_loss"] > far[-1]["value_loss"]


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_cutting_a_batch_changes_nothing(layout: Any) -> None:
    found = []
    for micro_size in (None, 1):
        learner = critic(layout=layout, batch=BatchConfig(micro_size=micro_size))
        examples, _ = learner.prepare(rollouts())
        assert len(learner.feed.side(examples)) == (1 if micro_size is None else 4)
        figures = learned(learner, examples, 2)
        found.append((figures, {name: value.clone() for name, value in learner.tensors().items()}))
    (one, weights), (other, more) = found
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    for name in weights:
        torch.testing.assert_close(weights[name], more[name], rtol=1e-3, atol=1e-5)


def test_trees_and_padded_rows_learn_the_same() -> None:
    figures = []
    for layout in ("tree", "padded"):
        learner = critic(layout=layout)
        figures.append(learned(learner, learner.prepare(rollouts())[0], 3))
    for a, b in zip(*figures, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_its_learning_rate_is_its_own_and_follows_the_schedule() -> None:
    own = critic(PPO(value_learning_rate=5e-4), optim=OptimConfig(schedule="linear", warmup_ratio=0.0))
    assert critic().learning_rate == 1e-3
    learned(own, own.prepare(rollouts())[0], 3)
    assert own.optimizer.param_groups[0]["lr"] == pytest.approx(5e-4 * 0.8)


def test_a_gradient_that_is_not_finite_is_not_taken() -> None:
    learner = critic()
    examples, _ = learner.prepare(rollouts())
    spoiled = examples[0].responses[0]
    token = {**spoiled.token, "returns": np.full(spoiled.length, np.inf, np.float32)}
    broken = dataclasses.replace(examples[0], responses=(dataclasses.replace(spoiled, token=token),))
    before = {name: value.clone() for name, value in learner.tensors().items()}
    with pytest.raises(PreftuneError, match=r"the value network's gradient of step 1 is not finite .* lower"):
        learned(learner, [broken], 1)
    assert all(torch.equal(value, before[name]) for name, value in learner.tensors().items())


def test_a_line_of_metrics_is_the_mean_since_the_last() -> None:
    learner = critic()
    found = learned(learner, learner.prepare(rollouts())[0], 2)
    assert learner.line()["value_loss"] == pytest.approx((found[0]["value_loss"] + found[1]["value_loss"]) / 2)
    assert learner.line() == {}


def test_a_checkpoint_brings_everything_back_bit_by_bit(tmp_path: Path) -> None:
    objective = PPO(beta=0.1, target_kl=2.0, horizon=100)
    ours = critic(objective)
    examples, _ = ours.prepare(rollouts())
    learned(ours, examples, 2)
    digests = checkpoint.write_tensors(checkpoint.begin(tmp_path), 0, ours.tensors())
    numbers = json.loads(json.dumps(ours.numbers()))
    folder = checkpoint.finish(tmp_path, 2, {}, digests)
    theirs = critic(objective, model=network(seed=1))
    theirs.restore(checkpoint.Tensors(folder), numbers)
    assert theirs.controller.beta == ours.controller.beta != 0.1
    outcomes = []
    for learner in (ours, theirs):
        made, figures = learner.prepare(examples)
        micros = list(learner.feed.side(made))
        figures |= learner.learn(micros, 2) | learner.line()
        outcomes.append((figures, {name: value.clone() for name, value in learner.tensors().items()}))
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][1].keys() == outcomes[1][1].keys()
    assert all(torch.equal(value, outcomes[1][1][name]) for name, value in outcomes[0][1].items())


# --- what it begins as ------------------------------------------------------------------------------------------------


def test_it_begins_as_a_copy_of_the_policy_under_a_head_of_zeros() -> None:
    policy = PolicyModule(miniatures.build("llama"), "tree")
    made = value_network(policy, None, 0)
    assert (values(made, pack(rollouts())).value_K == 0).all()
    assert policy.layout == made.layout == "tree"
    ours, theirs = dict(policy.lm.named_parameters()), dict(made.lm.named_parameters())
    shared = [name for name in ours if name.startswith("model.")]
    assert shared
    for name in shared:
        assert torch.equal(ours[name], theirs[name])
        assert ours[name].data_ptr() != theirs[name].data_ptr()
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_it_leaves_adapters_of_the_policy_behind() -> None:
    from preftune.policy.loading import LoraConfig, ModelConfig, adapt

    base = miniatures.build("llama")
    plain = {name: value.clone() for name, value in base.state_dict().items()}
    policy = PolicyModule(adapt(base, ModelConfig(lora=LoraConfig(r=2)), seed=0), "tree")
    made = value_network(policy, None, 0)
    assert not any("lora" in name for name, _ in made.named_parameters())
    for name, value in made.lm.state_dict().items():
        assert name == "score.weight" or torch.equal(value, plain[name])
    assert any("lora" in name for name, _ in policy.named_parameters())


def test_it_begins_as_a_reward_model_where_one_is_given() -> None:
    policy, reward_model = PolicyModule(miniatures.build("llama"), "tree"), network()
    made = value_network(policy, reward_model, 0)
    assert made.lm is reward_model
    with pytest.raises(PreftuneError, match="cannot begin as LlamaForCausalLM: name a reward model"):
        value_network(policy, miniatures.build("llama"), 0)

"""The reward model's loss against numpy formulas in probabilities."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from preftune.data.packing import pack
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.batch import LogProbs, PlainBatch, swapped
from preftune.objectives.bradley_terry import BradleyTerry

CONFIDENCE, GAP = np.array([1.0, 0.75, 0.5, 0.25]), np.array([1.0, 2.0, 0.5, 3.0])
FORMS = [
    {},
    {"margin": "gap"},
    {"label_smoothing": 0.125},
    {"centring": 0.03},
    {"margin": "gap", "label_smoothing": 0.125, "centring": 0.03},
]


@pytest.fixture
def rewards():
    return tensor([1.5, -0.5, 0.25, 2.0, -1.0, -3.0, 0.75, 0.5], dtype=torch.float64)


def policy(reward_R):
    """A model whose log-probs must not be read."""
    return LogProbs(torch.full((3,), math.nan), reward_R=reward_R)


def run(objective, reward_R, batch):
    return objective(policy(reward_R), None, batch, objective.init())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("fields", FORMS)
def test_value_and_slope_are_those_of_the_formula(fields, batch, rewards):
    margin, smoothing, centring = (fields.get(key, 0) for key in ("margin", "label_smoothing", "centring"))
    chosen, rejected = rewards.numpy()[0::2], rewards.numpy()[1::2]
    right = CONFIDENCE * (1 - smoothing) + (1 - CONFIDENCE) * smoothing
    wins = sigmoid(chosen - rejected - (GAP if margin == "gap" else 0))
    loss = -np.log(wins**right * (1 - wins) ** (1 - right)) + centring * (chosen + rejected) ** 2
    objective, leaf = registry.build("bradley_terry", **fields), rewards.clone().requires_grad_()
    outcome = run(objective, leaf, batch)
    np.testing.assert_allclose(outcome.loss_E.detach().numpy(), loss, rtol=1e-6)
    assert torch.equal(outcome.rewards_R, rewards)
    assert not outcome.rewards_R.requires_grad
    slope = torch.autograd.grad(outcome.loss_E.sum(), leaf)[0].numpy()
    level = 2 * centring * (chosen + rejected)
    np.testing.assert_allclose(slope[0::2], wins - right + level, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(slope[1::2], right - wins + level, rtol=1e-6, atol=1e-12)


def test_value_by_hand(make_pairs):
    batch = pack(make_pairs([(1, 1), (2, 1)], gap=[2.0, math.log(3)]))
    reward_R = tensor([2.0, 0.0, 0.5 * math.log(3), 0.5 * math.log(3)])
    plain = run(BradleyTerry(centring=0.25), reward_R, batch).loss_E
    torch.testing.assert_close(plain, tensor([math.log(1 + math.exp(-2)) + 1, math.log(2) + math.log(3) ** 2 / 4]))
    rated = run(BradleyTerry(margin="gap"), reward_R, batch).loss_E  # 2 - 2, and 0 - log 3: 1 / (1 + 3)
    torch.testing.assert_close(rated, tensor([math.log(2), math.log(4)]))


@pytest.mark.parametrize("fields", FORMS)
def test_gradients_are_those_of_finite_differences(fields, batch, rewards):
    objective = registry.build("bradley_terry", **fields)
    assert torch.autograd.gradcheck(
        lambda reward_R: run(objective, reward_R, batch).loss_E, rewards.clone().requires_grad_()
    )


@pytest.mark.parametrize("fields", FORMS)
def test_the_opposite_label_with_the_opposite_confidence_and_gap_is_the_same(fields, batch, rewards):
    objective = registry.build("bradley_terry", **fields)
    found = [run(objective, rewards, each).loss_E for each in (batch, swapped(batch))]
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)


@pytest.mark.parametrize("fields", FORMS)
def test_the_level_of_rewards_is_free_unless_centred(fields, batch, rewards):
    objective = registry.build("bradley_terry", **fields)
    plain, raised = (run(objective, each, batch).loss_E for each in (rewards, rewards + 3))
    assert torch.allclose(plain, raised, rtol=1e-9) == ("centring" not in fields)


@settings(max_examples=60, deadline=None)
@given(values=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), confidence=st.floats(0, 1), gap=st.floats(-9, 9))
def test_values_and_gradients_are_finite_for_any_rewards(values, confidence, gap):
    one = torch.ones(1)
    batch = PlainBatch(
        response_K=torch.empty(0, dtype=torch.long),
        example_R=torch.zeros(2, dtype=torch.long),
        role_R=torch.arange(2),
        score_R=torch.full((2,), math.nan),
        length_R=torch.full((2,), 5),
        weight_E=one,
        confidence_E=one * confidence,
        gap_E=one * gap,
    )
    for fields in FORMS:
        leaf = tensor(values).requires_grad_()
        loss = run(registry.build("bradley_terry", **fields), leaf, batch).loss_E
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), leaf)[0].isfinite().all()


def test_pairs_stand_in_any_order(batch, rewards):
    objective = registry.build("bradley_terry", **FORMS[-1])
    order_R = tensor([5, 1, 0, 7, 2, 6, 4, 3])
    mixed = dataclasses.replace(batch, role_R=batch.role_R[order_R], example_R=batch.example_R[order_R])
    outcome = run(objective, rewards[order_R], mixed)
    assert torch.equal(outcome.loss_E, run(objective, rewards, batch).loss_E)
    assert torch.equal(outcome.rewards_R, rewards[order_R])


def test_it_needs_a_scalar_head_and_neither_reference_nor_log_probs(batch, rewards):
    objective = BradleyTerry()
    assert not objective.reference
    assert objective.needs == {"reward_R"}
    empty = LogProbs(torch.empty(0), reward_R=rewards)
    assert torch.equal(objective(empty, None, batch, {}).loss_E, run(objective, rewards, batch).loss_E)
    with pytest.raises(ValueError, match="BradleyTerry needs reward_R: give it in the policy's LogProbs"):
        objective(LogProbs(torch.zeros(len(batch.response_K))), None, batch, {})


def test_the_gap_is_asked_for_where_it_is_a_margin_only():
    assert BradleyTerry().columns == BradleyTerry.columns == frozenset()
    assert BradleyTerry(margin="gap").columns == {"gap"}
    modified = registry.build("bradley_terry", margin="gap", modifiers={"confidence": "ignore"})
    assert modified.columns == {"gap"}
    assert registry.terms(registry.spec_of(registry.terms(modified)))[0].objective == modified


def test_confidence_is_a_label_or_a_weight(batch, rewards):
    as_weight = registry.build("bradley_terry", modifiers={"confidence": "weight"})
    certain = dataclasses.replace(batch, confidence_E=torch.ones(4))
    assert torch.equal(run(as_weight, rewards, batch).loss_E, run(BradleyTerry(), rewards, certain).loss_E)
    assert torch.equal(as_weight.weight_E(batch), batch.weight_E * batch.confidence_E)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"margin": "rating"}, ": margin is the text 'rating', expected 'none' or 'gap'"),
        ({"label_smoothing": 0.5}, " is refused: label_smoothing must be in [0, 0.5), got 0.5"),
        ({"centring": -1}, " is refused: centring must be finite and >= 0, got -1"),
        (
            {"modifiers": {"temperature": 2.0}},
            ": modifiers.temperature is refused: BradleyTerry reads rewards of a scal",
        ),
        ({"modifiers": {"average": "mean"}}, ": modifiers.average is refused: BradleyTerry reads rewards of a scalar"),
        (
            {"modifiers": {"wpo": True}},
            ": modifiers.wpo is refused: BradleyTerry reads rewards of a scalar head, not log",
        ),
        ({"modifiers": {"ratio_penalty": 1.0}}, ": modifiers.ratio_penalty is refused: BradleyTerry compares with no"),
        (
            {"modifiers": {"reference_free": True}},
            ": modifiers.reference_free is refused: BradleyTerry compares with no",
        ),
        ({"modifiers": {"label_smoothing": 0.1}}, ": modifiers.label_smoothing is refused: BradleyTerry has its own"),
    ],
)
def test_refusals_are_one_sentence(given, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build("bradley_terry", **given)
    assert str(raised.value).startswith(f"objective bradley_terry{message}")
    assert "\n" not in str(raised.value)

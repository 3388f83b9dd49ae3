"""What the doctor measures, against separate forwards and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from preftune.data.examples import Example, Response
from preftune.data.packing import pack
from preftune.evaluation.sampling import Sampled, kl_on_samples, sample
from preftune.objectives.batch import Role
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference
from preftune.sandbox.preferences import base_model
from preftune.training.doctor import measuring
from preftune.training.processes import Group
from preftune.training.step import Micro

PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]


def noisy_model(seed: int = 0, spread: float = 0.02) -> nn.Module:
    torch.manual_seed(seed)
    model = base_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def answer(ids: list[int], ended: bool = True) -> Sampled:
    return Sampled(np.array(ids, np.int32), np.full(len(ids), -0.5, np.float32), ended)


def drawn(model: nn.Module, each: int = 40) -> list[Sampled]:
    return sample(model, PROMPTS, max_new_tokens=20, samples_per_prompt=each, seed=3, end_ids=[1], pad_id=0)


def micros(examples: list[Example]) -> list[Micro]:
    return [Micro([example], pack([example])) for example in examples]


def test_answers_are_counted() -> None:
    found = measuring.of_answers([answer([3, 4, 5, 6, 3, 4, 5, 6]), answer([3, 4], ended=False), answer([3, 4])])
    assert found["sample_length"] == 4.0
    assert found["sample_end_rate"] == pytest.approx(2 / 3)
    assert found["sample_repetition"] == pytest.approx(1 / 5)  # 3456 stands twice among the five windows
    assert found["sample_distinct"] == pytest.approx(2 / 3)
    assert found["sample_logp_per_token"] == -0.5


def test_scores_are_those_of_separate_forwards() -> None:
    model = noisy_model().eval()
    answers = drawn(model, each=3)
    examples = measuring.as_examples(PROMPTS, answers)
    scores = measuring.scored(PolicyModule(model, "tree"), micros(examples), Group())
    np.testing.assert_allclose(scores.whole, [one.logps.sum() for one in answers], atol=1e-4)
    np.testing.assert_allclose(scores.first, [one.logps[0] for one in answers], atol=1e-4)
    np.testing.assert_allclose(scores.last, [one.logps[-1] for one in answers], atol=1e-4)
    assert scores.length.tolist() == [len(one.ids) for one in answers]
    total = sum(float(one.logps.sum()) for one in answers)
    assert scores.per_token == pytest.approx(total / sum(len(one.ids) for one in answers), abs=1e-5)


def test_kl_of_answers_agrees_with_the_exact_one_over_positions() -> None:
    """Both estimate KL(policy || reference); on many answers they meet, and the reference itself is at 0."""
    model, other = noisy_model().eval(), base_model().eval()
    answers = drawn(model, each=400)
    exact = kl_on_samples(model, other, [PROMPTS[0]] * 400 + [PROMPTS[1]] * 400, answers)
    side = micros(measuring.as_examples(PROMPTS, answers))
    policy, reference = PolicyModule(model, "tree"), FrozenReference(PolicyModule(other, "tree"))
    own, theirs = (measuring.scored(one, side, Group()) for one in (policy, reference))
    found = measuring.against_reference(own, theirs)
    error = float(np.std(own.whole - theirs.whole) / np.sqrt(len(answers)))
    assert found["sample_kl"] > 5 * error
    assert found["sample_kl"] == pytest.approx(float(exact.mean()), abs=4 * error)
    assert found["sample_kl_per_token"] * own.length.sum() == pytest.approx(found["sample_kl"] * len(answers))
    same = measuring.against_reference(theirs, theirs)
    assert same["sample_kl"] == same["sample_kl_per_token"] == 0


def test_ches_is_that_of_hidden_states() -> None:
    model = noisy_model().eval()
    rng = np.random.default_rng(0)
    pairs = []
    for row in range(4):
        chosen, rejected = (rng.integers(3, 80, size) for size in (5 + row, 7))
        responses = (Response(chosen.astype(np.int32), Role.CHOSEN), Response(rejected.astype(np.int32), Role.REJECTED))
        pairs.append(Example(np.array(PROMPTS[0], np.int32), responses, row=row))
    expected = {}
    for pair in pairs:
        means = []
        for response in pair.responses:
            ids = torch.tensor([*PROMPTS[0], *response.ids.tolist()])[None]
            with torch.no_grad():
                hidden = model(ids, output_hidden_states=True).hidden_states[-1][0]
            # from the last token of the prompt to the last but one of the response
            means.append(hidden[len(PROMPTS[0]) - 1 : -1].sum(0) / len(response.ids))
        expected[pair.row] = float(means[0] @ means[1] - means[0] @ means[0])
    found = measuring.displacing(PolicyModule(model, "tree"), micros(pairs), Group())
    assert [value for value, _ in found] == sorted((value for value, _ in found), reverse=True)
    assert {row: value for value, row in found} == pytest.approx(expected, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=7), st.lists(st.integers(0, 3), max_size=7))
def test_edit_distance_is_that_of_the_definition(one: list[int], other: list[int]) -> None:
    def slow(a: list[int], b: list[int]) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return slow(a[1:], b[1:])
        return 1 + min(slow(a[1:], b), slow(a, b[1:]), slow(a[1:], b[1:]))

    assert measuring.edit_distance(np.array(one), np.array(other)) == slow(one, other)


def test_pairs_that_are_alike_come_first() -> None:
    def pair(row: int, other: list[int]) -> Example:
        responses = (
            Response(np.arange(4, dtype=np.int32), Role.CHOSEN),
            Response(np.array(other, np.int32), Role.REJECTED),
        )
        return Example(np.array([1], np.int32), responses, row=row)

    found = measuring.alike([pair(0, [9, 9, 9, 9]), pair(1, [0, 1, 2, 9]), pair(2, [0, 1])])
    assert found == [(-0.25, 1), (-0.5, 2), (-1.0, 0)]


def test_parameters_that_stay_are_named() -> None:
    model = nn.ModuleDict(
        {
            "moves": nn.Linear(64, 64),
            "stays": nn.Linear(64, 64),
            "frozen": nn.Linear(2, 2),
            "table": nn.Embedding(500, 8),
        }
    )
    model["frozen"].requires_grad_(False)
    parameters = measuring.Parameters(model)
    with torch.no_grad():
        for parameter in model["moves"].parameters():
            parameter += 1e-3
        model["stays"].weight[0, 0] += 1  # one of 4,096 is rounding's business
        model["table"].weight[7] += 1  # a token that was read
    assert parameters.stayed(Group()) == ["stays.weight", "stays.bias"]
    share = parameters.share(["stays.weight", "stays.bias"])
    assert share == pytest.approx((64 * 64 + 64) / (2 * (64 * 64 + 64) + 4000))
    assert measuring.frozen(model) == {
        "frozen": ("frozen.weight", "frozen.bias"),
        "frozen_share": pytest.approx(6 / 12326),
    }

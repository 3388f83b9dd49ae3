"""Parts of the objectives' contract: pairs by role, weights, mixes, and hyperparameters that are refused."""

import dataclasses
import math
import re

import pytest
import torch

from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.batch import LogProbs, pair_indices

SIDES = ("chosen", "rejected")


def test_on_pairs_names_what_is_missing_or_of_another_shape():
    two = torch.zeros(2)
    with pytest.raises(ValueError, match="reads lengths here: give chosen_lengths and rejected_lengths"):
        registry.build("ipo", average="mean").on_pairs(two, two, two, two)
    message = r"reference_rejected_logps has shape \(3,\), expected \(2,\) as policy_chosen_logps"
    with pytest.raises(ValueError, match=message):
        registry.build("dpo").on_pairs(two, two, two, torch.zeros(3))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"policy_chosen_logps": torch.tensor([-5, -6])},
            "policy_chosen_logps is of type torch.int64, expected a tensor",
        ),
        ({"reference_chosen_logps": torch.tensor([-5, -6])}, "reference_chosen_logps is of type torch.int64, expected"),
        (
            {"policy_rejected_logps": [-5.0, -6.0]},
            "policy_rejected_logps is of type list, expected a tensor of floating",
        ),
        ({"policy_chosen_logps": -5.0}, "policy_chosen_logps is of type float, expected a tensor of floating point"),
        ({"chosen_lengths": [3, 4]}, "chosen_lengths is of type list, expected a tensor"),
        (
            {"confidence": torch.tensor([1, 0])},
            "confidence is of type torch.int64, expected a tensor of floating point",
        ),
        ({"confidence": torch.tensor([1.0, 1.5])}, "confidence must be in [0, 1], got 1.5: it is the probability that"),
        ({"confidence": torch.tensor([-0.25, 1.0])}, "confidence must be in [0, 1], got -0.25: it is the probability"),
        (
            {"confidence": torch.tensor([1.0, torch.nan])},
            "confidence must be in [0, 1], got nan: it is the probability",
        ),
        (
            {f"{model}_{side}_logps": torch.zeros(0) for model in ("policy", "reference") for side in SIDES},
            "policy_chosen_logps is empty: give one pair or more",
        ),
    ],
)
@pytest.mark.parametrize("name", ["dpo", "ipo", "beta_dpo", "aot"])
def test_on_pairs_refuses_what_it_cannot_take_in_one_sentence(name, columns, message):
    two = {f"{model}_{side}_logps": -torch.ones(2) for model in ("policy", "reference") for side in SIDES}
    with pytest.raises(ValueError, match="^" + re.escape(message)) as raised:
        registry.build(name).on_pairs(**{**two, **columns})
    assert "\n" not in str(raised.value)


def test_on_pairs_takes_lengths_as_whole_numbers_and_the_ends_of_confidence():
    two = [-torch.ones(2)] * 4
    objective, lengths, p = registry.build("ipo", average="mean"), torch.tensor([3, 4]), torch.tensor([0.0, 1.0])
    whole, real = (objective.on_pairs(*two, each, each, confidence=p).loss for each in (lengths, lengths.float()))
    assert whole == real


def test_pairs_are_found_by_role_in_any_order_and_others_are_refused(batch):
    order = torch.tensor([1, 0, 2, 3, 7, 6, 4, 5])
    mixed = dataclasses.replace(batch, role_R=batch.role_R[order], example_R=batch.example_R[order])
    chosen, rejected = pair_indices(mixed)
    assert order[chosen].tolist() == [0, 2, 4, 6]
    assert order[rejected].tolist() == [1, 3, 5, 7]
    with pytest.raises(ValueError, match="of 4 examples 8 have a chosen and 0 a rejected response"):
        pair_indices(dataclasses.replace(batch, role_R=torch.zeros_like(batch.role_R)))


def test_weights_are_those_of_the_data(batch):
    assert torch.equal(registry.build("dpo").weight_E(batch), torch.tensor([1.0, 0.5, 2.0, 1.0]))


def test_a_weighted_mix_has_the_weighted_sum_of_the_gradients(batch, spread, draw):
    """Each term is a mean over its own weights: examples for DPO, tokens of chosen for SFT."""
    drawn, reference = spread(batch, draw(batch, 1)), spread(batch, draw(batch, 2))
    mix = registry.terms([{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.25}])

    def gradient(terms):
        policy = LogProbs(drawn.logps_K.clone().requires_grad_())
        total = torch.zeros((), dtype=torch.float64)
        for term in terms:
            weight_E = term.objective.weight_E(batch)
            outcome = term.objective(policy, reference, batch, term.objective.init())
            total = total + term.weight * (weight_E * outcome.loss_E).sum() / weight_E.sum()
        return torch.autograd.grad(total, policy.logps_K)[0]

    dpo, sft = gradient(registry.terms({"name": "dpo", "beta": 0.3})), gradient(registry.terms("sft"))
    torch.testing.assert_close(gradient(mix), dpo + 0.25 * sft, rtol=1e-12, atol=0)
    # by hand: a token of chosen pulls on the SFT term by weight / sum of weight * tokens = w / (2 + 3.5 + 8 + 1)
    chosen_K = batch.role_R[batch.response_K] == 0
    expected = -batch.weight_E[batch.example_R[batch.response_K]].double() / 14.5 * chosen_K
    torch.testing.assert_close(sft, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("dpo", {"beta": 0}, "objective dpo is refused: beta must be finite and > 0, got 0"),
        ("dpo", {"beta": -1}, "objective dpo is refused: beta must be finite and > 0, got -1"),
        ("dpo", {"beta": math.nan}, "objective dpo is refused: beta must be finite and > 0, got nan"),
        ("dpo", {"beta": math.inf}, "objective dpo is refused: beta must be finite and > 0, got inf"),
        ("dpo", {"beta": "0.1"}, "objective dpo: beta is the text '0.1', expected a number"),
        ("dpo", {"beta": True}, "objective dpo: beta is true, expected a number"),
        ("dpo", {"beta": None}, "objective dpo: beta is empty, expected a number"),
        ("dpo", {"beta": [0.1]}, "objective dpo: beta is a list, expected a number"),
        ("dpo", {"beta": torch.ones(1)}, "objective dpo: beta is of type Tensor, expected a plain value"),
        ("dpo", {"label_smoothing": 0.5}, "objective dpo is refused: label_smoothing must be in [0, 0.5), got 0.5"),
        ("dpo", {"label_smoothing": -0.1}, "objective dpo is refused: label_smoothing must be in [0, 0.5), got -0.1"),
        ("dpo", {"betta": 0.1}, "objective dpo has no field betta; did you mean beta?"),
        ("dpo", {"tau": 0.1}, "objective dpo has no field tau; known: beta, label_smoothing"),
        ("ipo", {"tau": 0}, "objective ipo is refused: tau must be finite and > 0, got 0"),
        ("ipo", {"tau": math.inf}, "objective ipo is refused: tau must be finite and > 0, got inf"),
        ("ipo", {"average": "median"}, "objective ipo: average is the text 'median', expected 'sum' or 'mean'"),
        ("sft", {"beta": 0.1}, "objective sft has no field beta; known: none"),
    ],
)
def test_refused_hyperparameters_are_one_sentence(name, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)

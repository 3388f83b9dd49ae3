"""Plackett-Luce against products of choice probabilities, written out response by response."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import pack
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.batch import LogProbs, PlainBatch, Role
from preftune.objectives.plackett_luce import PlackettLuce

# scores with an order, with ties in every place, of two, of one, and without any order
RANKINGS = [(0.5, 2.0, -1.0, 1.0), (1.0, 3.0, 1.0), (2.0, 2.0, 1.0, 1.0, 0.0), (0.0, 1.0), (4.0,), (1.0, 1.0)]


def ranked(rankings, roles=None):
    """A batch of examples, each with one response of one token for each score."""
    example_R = torch.tensor([e for e, scores in enumerate(rankings) for _ in scores])
    score_R = tensor([score for scores in rankings for score in scores], dtype=torch.float64)
    ones_E = torch.ones(len(rankings), dtype=torch.float64)
    return PlainBatch(
        response_K=torch.arange(len(example_R)),
        example_R=example_R,
        role_R=torch.full_like(example_R, int(Role.RANKED)) if roles is None else tensor(roles),
        score_R=score_R,
        length_R=torch.ones_like(example_R),
        weight_E=ones_E,
        confidence_E=ones_E,
        gap_E=ones_E * math.nan,
    )


def drawn(batch, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return [
        LogProbs(-scale * torch.rand(len(batch.role_R), generator=generator, dtype=torch.float64)) for _ in range(2)
    ]


def run(objective, policy, reference, batch):
    return objective(policy, reference, batch, objective.init())


def rewards(policy, reference, batch, beta):
    """Of each example's responses, as numpy arrays."""
    reward_R = beta * (policy.logps_K - reference.logps_K).numpy()
    return [reward_R[batch.example_R.numpy() == e] for e in range(len(batch.weight_E))]


def places(reward, scores, top=None):
    """For every place that counts: the response, those that compete for it, and how likely each is to get it."""
    for k in range(len(scores)):
        rivals = [j for j in range(len(scores)) if scores[j] < scores[k]]
        better = sum(score > scores[k] for score in scores)
        if rivals and (top is None or better < top):
            who = [k, *rivals]
            force = np.exp(reward[who])
            yield k, who, force / force.sum()


def loss_of(reward, scores, top=None):
    return -math.log(math.prod(chances[0] for _, _, chances in places(reward, scores, top)))


def slope_of(reward, scores, top=None):
    slope = np.zeros(len(scores))
    for k, who, chances in places(reward, scores, top):
        slope[who] += chances
        slope[k] -= 1
    return slope


@pytest.mark.parametrize("top", [None, 1, 2, 3])
def test_value_and_slope_are_those_of_the_product_of_choices(top):
    batch = ranked(RANKINGS)
    policy, reference = drawn(batch)
    leaf = policy.logps_K.clone().requires_grad_()
    outcome = run(PlackettLuce(beta=0.7, top=top), LogProbs(leaf), reference, batch)
    by_example = list(zip(rewards(policy, reference, batch, 0.7), RANKINGS, strict=True))
    expected = [loss_of(reward, scores, top) for reward, scores in by_example]
    np.testing.assert_allclose(outcome.loss_E.detach().numpy(), expected, rtol=1e-6, atol=1e-12)
    assert expected[4] == expected[5] == 0  # one response alone, and two of equal score
    assert min(expected[:4]) > 0.1
    (slope_K,) = torch.autograd.grad(outcome.loss_E.sum(), leaf)
    expected = np.concatenate([0.7 * slope_of(reward, scores, top) for reward, scores in by_example])
    np.testing.assert_allclose(slope_K.numpy(), expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(outcome.rewards_R.numpy(), np.concatenate([r for r, _ in by_example]), rtol=1e-6)
    assert not outcome.rewards_R.requires_grad


def test_value_by_hand():
    """exp(r) = 4, 2, 1, in this order: 4 / 7 and then 2 / 3. With the last two tied, 4 / 7 alone."""
    batch = ranked([(3.0, 2.0, 1.0), (3.0, 1.0, 1.0), (1.0, 2.0, 2.0)])
    policy = LogProbs(torch.log(tensor([4.0, 2.0, 1.0] * 3, dtype=torch.float64)))
    loss_E = run(PlackettLuce(beta=1.0), policy, LogProbs(torch.zeros(9)), batch).loss_E
    by_hand = tensor([21 / 8, 7 / 4, 6 / 2 * 5 / 1], dtype=torch.float64)  # of 2, 2 and 1: each with a rival of 4
    torch.testing.assert_close(loss_E.exp(), by_hand, rtol=1e-12, atol=0)


def test_the_loss_starts_at_the_log_of_the_number_of_orders():
    batch = ranked([(2.0, 1.0), (4.0, 3.0, 2.0, 1.0)])
    reference = drawn(batch)[1]
    loss_E = run(PlackettLuce(), reference, reference, batch).loss_E
    assert [round(x, 2) for x in loss_E.tolist()] == [0.69, 3.18] == [round(math.log(n), 2) for n in (2, 24)]
    assert "0.69 for 2 responses, 3.18 for 4" in PlackettLuce.__doc__


@pytest.mark.parametrize("top", [None, 1, 2, 3])
def test_probabilities_of_all_orders_sum_to_one(top):
    """4 responses in 24 orders; with top, orders of the first places, each of which stands for those that begin so."""
    orders = list(itertools.permutations([4.0, 3.0, 2.0, 1.0]))
    batch = ranked(orders)
    policy, reference = (LogProbs(logps.logps_K[:4].repeat(24)) for logps in drawn(batch))
    loss_E = run(PlackettLuce(beta=0.7, top=top), policy, reference, batch).loss_E
    alike = 1 if top is None else math.factorial(4 - top)
    assert loss_E.neg().exp().sum().item() / alike == pytest.approx(1, abs=1e-12)
    assert loss_E.unique().numel() > 3


def test_the_last_place_is_no_choice():
    batch = ranked(RANKINGS[:1])
    policy, reference = drawn(batch)
    losses = [run(PlackettLuce(top=top), policy, reference, batch).loss_E.item() for top in (None, 4, 3, 2, 1)]
    assert losses[0] == losses[1] == losses[2] > losses[3] > losses[4] > 0


def test_with_one_best_and_the_rest_tied_it_is_the_softmax_loss_of_s_dpo():
    batch = ranked([(1.0, 0.0, 0.0, 0.0)])
    policy, reference = drawn(batch)
    ratio = (policy.logps_K - reference.logps_K).numpy()
    expected = -math.log(1 / (1 + math.exp(math.log(sum(math.exp(0.7 * (ratio[j] - ratio[0])) for j in (1, 2, 3))))))
    for top in (None, 1):
        outcome = run(PlackettLuce(beta=0.7, top=top), policy, reference, batch)
        assert outcome.loss_E.item() == pytest.approx(expected, rel=1e-12)


def test_on_pairs_it_is_dpo_to_the_last_digit(batch, spread, draw):
    """Pairs of any length with confidences, and the same as rankings of two."""
    policy, reference = (spread(batch, draw(batch, seed)) for seed in (1, 2))
    certain = dataclasses.replace(batch, confidence_E=torch.ones(4))
    as_rankings = dataclasses.replace(
        certain,
        role_R=torch.full_like(batch.role_R, int(Role.RANKED)),
        score_R=torch.where(batch.role_R == Role.CHOSEN, 0.75, -2.5),
    )
    for ours, theirs in ((batch, batch), (certain, certain), (as_rankings, certain)):
        found = []
        for objective, seen in ((PlackettLuce(beta=0.3), ours), (registry.build("dpo", beta=0.3), theirs)):
            leaf = policy.logps_K.clone().requires_grad_()
            outcome = run(objective, LogProbs(leaf), reference, seen)
            found.append([outcome.loss_E, outcome.rewards_R, torch.autograd.grad(outcome.loss_E.sum(), leaf)[0]])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_far_apart_responses_keep_their_digits_in_float32():
    """At a margin of 30 nats the loss is exp(-30), of which a difference of two large numbers would leave nothing."""
    batch = ranked([(2.0, 1.0), (3.0, 2.0, 1.0)])
    policy, reference = LogProbs(tensor([-100.0, -130.0, -40.0, -70.0, -71.0])), LogProbs(torch.zeros(5))
    loss_E = run(PlackettLuce(beta=1.0, top=1), policy, reference, batch).loss_E
    expected = tensor([math.exp(-30), math.exp(-30) + math.exp(-31)])
    torch.testing.assert_close(loss_E, expected, rtol=1e-6, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-1, 0), st.floats(-1, 0), st.integers(0, 3)), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_values_and_gradients_are_finite_and_like_those_of_float64(examples):
    batch = ranked([[score for *_, score in responses] for responses in examples])
    columns = [tensor(c) * PlackettLuce.finite_up_to for c in zip(*[r for e in examples for r in e], strict=True)]
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = columns[0].to(dtype).requires_grad_()
        outcome = run(PlackettLuce(), LogProbs(leaf), LogProbs(columns[1].to(dtype)), batch)
        found.append([outcome.loss_E, torch.autograd.grad(outcome.loss_E.sum(), leaf)[0]])
    for single, double in zip(*found, strict=True):
        assert single.isfinite().all()
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-3)


def test_gradients_are_those_of_finite_differences():
    batch = ranked(RANKINGS)
    policy, reference = drawn(batch)
    for top in (None, 1, 2):

        def losses(logps_K, top=top):
            return run(PlackettLuce(beta=0.7, top=top), LogProbs(logps_K), reference, batch).loss_E

        assert torch.autograd.gradcheck(losses, policy.logps_K.clone().requires_grad_())


def test_responses_of_ragged_batches_stand_in_any_order():
    batch = ranked(RANKINGS)
    policy, reference = drawn(batch)
    objective = PlackettLuce(beta=0.7)
    plain = run(objective, policy, reference, batch)
    at = 0
    for example, scores in enumerate(RANKINGS):  # each alone
        alone = ranked([scores])
        sides = [LogProbs(logps.logps_K[at : at + len(scores)]) for logps in (policy, reference)]
        torch.testing.assert_close(
            run(objective, *sides, alone).loss_E, plain.loss_E[example, None], rtol=1e-12, atol=0
        )
        at += len(scores)
    order_R = torch.randperm(at, generator=torch.Generator().manual_seed(0))
    mixed = dataclasses.replace(
        batch, example_R=batch.example_R[order_R], role_R=batch.role_R[order_R], score_R=batch.score_R[order_R]
    )
    sides = [LogProbs(logps.logps_K[order_R]) for logps in (policy, reference)]
    outcome = run(objective, *sides, mixed)
    torch.testing.assert_close(outcome.loss_E, plain.loss_E, rtol=1e-12, atol=0)
    assert torch.equal(outcome.rewards_R, plain.rewards_R[order_R])
    assert torch.equal(objective.weight_E(mixed), objective.weight_E(batch))


def test_what_all_responses_share_and_what_scores_measure_does_not_matter():
    batch = ranked(RANKINGS)
    policy, reference = drawn(batch)
    objective = PlackettLuce(beta=0.7)
    plain = run(objective, policy, reference, batch).loss_E
    level = LogProbs(policy.logps_K - 5.0 * batch.example_R)
    torch.testing.assert_close(run(objective, level, reference, batch).loss_E, plain, rtol=1e-9, atol=1e-12)
    stretched = dataclasses.replace(batch, score_R=batch.score_R.exp() * 10)
    assert torch.equal(run(objective, policy, reference, stretched).loss_E, plain)


def test_the_loss_falls_as_the_first_gets_likelier_and_the_last_less_likely():
    batch = ranked([(3.0, 2.0, 1.0)])
    policy, reference = drawn(batch)
    for shift in (tensor([1.0, 0, 0]), tensor([0, 0, -1.0])):
        losses = [
            run(PlackettLuce(), LogProbs(policy.logps_K + k * shift), reference, batch).loss_E.item() for k in range(5)
        ]
        assert losses == sorted(losses, reverse=True)
        assert len(set(losses)) == 5


def test_examples_without_an_order_have_neither_loss_nor_weight():
    batch = dataclasses.replace(ranked(RANKINGS), weight_E=tensor([1.0, 0.5, 2.0, 3.0, 4.0, 5.0]))
    policy, reference = drawn(batch)
    assert PlackettLuce().weight_E(batch).tolist() == [1.0, 0.5, 2.0, 3.0, 0.0, 0.0]
    leaf = policy.logps_K.requires_grad_()
    loss_E = run(PlackettLuce(), LogProbs(leaf), reference, batch).loss_E
    assert loss_E[4:].tolist() == [0.0, 0.0]
    assert torch.autograd.grad(loss_E.sum(), leaf)[0][-3:].tolist() == [0.0] * 3


def test_baselines_do_not_compete():
    ranks, baseline = int(Role.RANKED), int(Role.BASELINE)
    batch = ranked([(2.0, 1.0, math.nan)], roles=[ranks, ranks, baseline])
    policy, reference = drawn(batch)
    pair = [LogProbs(logps.logps_K[:2]) for logps in (policy, reference)]
    loss_E = run(PlackettLuce(), policy, reference, batch).loss_E
    torch.testing.assert_close(loss_E, run(PlackettLuce(), *pair, ranked([(2.0, 1.0)])).loss_E, rtol=0, atol=0)


def test_packed_rankings_of_several_tokens_count_whole_responses():
    def ids(length):
        return np.arange(1, length + 1, dtype=np.int32)

    responses = [Response(ids(n), Role.RANKED, score) for n, score in ((3, 0.1), (1, 0.9), (2, 0.4))]
    batch = pack([Example(ids(2), tuple(responses))])
    policy = LogProbs(-torch.arange(1.0, 7.0, dtype=torch.float64))
    reference = LogProbs(torch.full((6,), -2.0, dtype=torch.float64))
    reward = 0.3 * np.array([-6 + 6, -4 + 2, -11 + 4])
    loss = run(PlackettLuce(beta=0.3), policy, reference, batch).loss_E.item()
    assert loss == pytest.approx(loss_of(reward, (0.1, 0.9, 0.4)), rel=1e-12)


def test_modifiers_that_make_sense_for_rankings_are_taken():
    batch = ranked(RANKINGS)
    policy, reference = drawn(batch)
    free = registry.build("plackett_luce", beta=0.7, modifiers={"reference_free": True})
    assert not free.reference
    zero = LogProbs(torch.zeros_like(reference.logps_K))
    expected = [loss_of(r, s) for r, s in zip(rewards(policy, zero, batch, 0.7), RANKINGS, strict=True)]
    np.testing.assert_allclose(run(free, policy, None, batch).loss_E.numpy(), expected, rtol=1e-6, atol=1e-12)
    cooler = registry.build("plackett_luce", beta=1.4, modifiers={"temperature": 2.0})
    plain = run(PlackettLuce(beta=0.7), policy, reference, batch).loss_E
    torch.testing.assert_close(run(cooler, policy, reference, batch).loss_E, plain, rtol=1e-12, atol=1e-15)
    assert torch.equal(cooler.weight_E(batch), PlackettLuce().weight_E(batch))


def test_tails_of_rankings_are_what_lies_beyond_the_shortest_response():
    batch = dataclasses.replace(
        ranked([(3.0, 2.0, 1.0)]), response_K=tensor([0, 1, 1, 2, 2, 2]), length_R=tensor([1, 2, 3])
    )
    policy, reference = LogProbs(-torch.ones(6, dtype=torch.float64)), LogProbs(torch.zeros(6, dtype=torch.float64))
    light = registry.build("plackett_luce", beta=1.0, modifiers={"tail_alpha": 0.5})
    loss = run(light, policy, reference, batch).loss_E.item()
    assert loss == pytest.approx(loss_of(np.array([-1.0, -1.5, -2.0]), (3, 2, 1)), rel=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 0}, "is refused: beta must be finite and > 0, got 0"),
        ({"top": 0}, "is refused: top must be >= 1, got 0: it is how many places count; leave it out to count all"),
        ({"top": 1.5}, ": top is the number 1.5, expected an integer"),
        ({"modifiers": {"wpo": True}}, ": modifiers.wpo is refused: it is about pairs, and PlackettLuce learns from"),
        (
            {"modifiers": {"confidence": "weight"}},
            ": modifiers.confidence is refused: it is about pairs and labels, and Plackett",
        ),
    ],
)
def test_refusals_are_one_sentence(given, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build("plackett_luce", **given)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_reference_is_needed():
    batch = ranked(RANKINGS)
    with pytest.raises(ValueError, match="PlackettLuce compares with a reference: give its log-probs"):
        run(PlackettLuce(), drawn(batch)[0], None, batch)

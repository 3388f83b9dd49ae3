"""Every modifier against an independent formula, on every objective that takes it; refusals are one sentence."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from preftune.data.packing import pack, pad
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.base import Objective, softened
from preftune.objectives.batch import LogProbs, Role, swapped
from preftune.objectives.dpo import DPO
from preftune.objectives.ipo import IPO
from preftune.objectives.modifiers import Modified, Modifiers, refusal, sees_differences_only
from preftune.objectives.pairs import PairObjective
from preftune.objectives.sft import SFT
from preftune.objectives.simpo import SimPO
from preftune.objectives.tokens import in_tail_K

NAMES = registry.names()
PAIRS = [name for name in NAMES if issubclass(registry.resolve(name), PairObjective)]
FIELDS = [field.name for field in dataclasses.fields(Modifiers)]
# a value of each field that changes something, with what it needs beside it
CHANGES = {
    "average": {"average": "mean"},
    "temperature": {"temperature": 2.0},
    "tail_alpha": {"tail_alpha": 0.5},
    "tail_of": {"tail_of": "policy", "tail_alpha": 0.5},
    "reference_free": {"reference_free": True},
    "confidence": {"confidence": "weight"},
    "label_smoothing": {"label_smoothing": 0.1},
    "wpo": {"wpo": True},
    "ratio_penalty": {"ratio_penalty": 0.5},
    "drop_penalty": {"drop_penalty": 0.5},
}


@pytest.fixture
def both(batch, spread, draw):
    """Log-probs of policy and reference on the batch; the policy's with the sums of squares that WPO needs."""
    tokens, others = draw(batch, 1), draw(batch, 3)
    policy = spread(batch, tokens)
    return dataclasses.replace(policy, log_sum_p2_K=spread(batch, others).logps_K), spread(batch, draw(batch, 2))


def run(objective, both, batch):
    return objective(*both, batch, objective.init())


def everything(objective, both, batch):
    """All that a modifier may change, as one tensor."""
    outcome = run(objective, both, batch)
    return torch.cat([outcome.loss_E, outcome.rewards_R.nan_to_num(), objective.weight_E(batch)])


def arrays(batch, both):
    """The batch as plain numpy: token log-probs of (chosen, rejected) under the policy and the reference, per pair."""
    response = batch.response_K.numpy()
    split = [[logps.logps_K.detach().numpy()[response == r] for r in range(8)] for logps in both]
    return [[(side[2 * e], side[2 * e + 1]) for e in range(4)] for side in split]


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def close(actual, expected):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-6)


def test_every_field_is_tried_here():
    assert list(CHANGES) == FIELDS


@pytest.mark.parametrize("name", NAMES)
def test_neutral_modifiers_change_nothing(name, batch_for, log_probs):
    inner = registry.build(name)
    batch = batch_for(inner)
    both = [log_probs(inner, batch, seed) for seed in (1, 2)]
    modified = Modified(inner, Modifiers())
    assert torch.equal(everything(modified, both, batch), everything(inner, both, batch))
    attributes = [key for key, hint in Objective.__annotations__.items() if hint.startswith("ClassVar")]
    assert {"reference", "data", "needs", "couples", "learning_rate"} <= set(attributes)
    for key in (*attributes, "needs_lengths", "needs_tokens"):
        assert getattr(modified, key) == getattr(inner, key)
    assert registry.build(name, modifiers={}) == inner
    assert registry.build(name, modifiers={f.name: f.default for f in dataclasses.fields(Modifiers)}) == inner


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", NAMES)
def test_each_modifier_changes_each_objective_or_is_refused_in_one_sentence(name, field, batch, batch_for, log_probs):
    inner = registry.build(name)
    reasons = [refusal(inner, part) for part in CHANGES[field] if refusal(inner, part)]
    if reasons:
        with pytest.raises(PreftuneError) as raised:
            registry.build(name, modifiers=CHANGES[field])
        message = str(raised.value)
        assert message.startswith(f"objective {name}: modifiers.")
        assert message.endswith(tuple(reasons))
        assert "\n" not in message
        assert "set " in message or "leave" in message or "multiply" in message or "mix " in message  # what to do
        return
    modified = registry.build(name, modifiers=CHANGES[field])
    without = {key: value for key, value in CHANGES[field].items() if key != field}
    before = registry.build(name, modifiers=without)
    pairs = batch_for(inner, "pairs")
    both = [log_probs(modified, pairs, seed) for seed in (1, 2)]
    if field == "confidence" and inner.confidence == "unused":  # which cannot do with doubt but for this modifier
        doubted = dataclasses.replace(pairs, confidence_E=batch.confidence_E)
        assert run(modified, both, doubted).loss_E.isfinite().all()
        with pytest.raises(PreftuneError, match="takes labels as certain"):
            run(before, both, doubted)
        return
    assert not torch.equal(everything(modified, both, pairs), everything(before, both, pairs))


@pytest.mark.parametrize("name", [name for name in PAIRS if registry.resolve(name).confidence == "mixed"])
def test_a_soft_label_is_the_mean_over_both_orders(name, make_pairs, spread, draw):
    """The opposite label is a batch in which the other response comes first, made by hand."""
    lengths, gaps, p = [(2, 5), (7, 3), (4, 4), (1, 6)], [1.0, 2.0, 0.5, 3.0], [1.0, 0.75, 0.5, 0.0]
    soft = pack(make_pairs(lengths, confidence=p, gap=gaps))
    right = pack(make_pairs(lengths, gap=gaps))
    wrong = pack(make_pairs([pair[::-1] for pair in lengths], gap=[-gap for gap in gaps]))
    tokens = [draw(soft, seed) for seed in (1, 2)]
    turned = [[side[r ^ 1] for r in range(8)] for side in tokens]
    objective, p_E = registry.build(name), tensor(p)
    outcomes = [
        run(objective, [spread(batch, side) for side in sides], batch)
        for batch, sides in ((soft, tokens), (right, tokens), (wrong, turned))
    ]
    expected = p_E * outcomes[1].loss_E + (1 - p_E) * outcomes[2].loss_E
    torch.testing.assert_close(outcomes[0].loss_E, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(outcomes[0].rewards_R, outcomes[1].rewards_R)  # a reward does not depend on the label


def test_swapping_a_batch_swaps_all_that_says_which_is_better(batch):
    other = swapped(batch)
    assert other.role_R.tolist() == [1, 0] * 4
    assert torch.equal(other.gap_E, -batch.gap_E)
    assert other.confidence_E.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert torch.equal(swapped(other).role_R, batch.role_R)
    assert batch.role_R.tolist() == [0, 1] * 4


def test_certain_labels_are_evaluated_once(make_pairs):
    seen = []
    softened(
        lambda batch: seen.append(batch) or run(SFT(), (LogProbs(torch.zeros(2)), None), batch),
        pack(make_pairs([(1, 1)])),
    )
    assert len(seen) == 1


def test_average_mean_divides_each_response_by_its_length(batch, both):
    tokens, others = arrays(batch, both)
    delta = [
        np.mean(w) - np.mean(rw) - np.mean(lo) + np.mean(rl) for (w, lo), (rw, rl) in zip(tokens, others, strict=True)
    ]
    p, margin = np.array([1.0, 0.75, 0.5, 0.25]), 0.3 * np.array(delta)
    modified = registry.build("dpo", beta=0.3, modifiers={"average": "mean"})
    outcome = run(modified, both, batch)
    close(outcome.loss_E, -p * log_sigmoid(margin) - (1 - p) * log_sigmoid(-margin))
    close(outcome.rewards_R[::2] - outcome.rewards_R[1::2], margin)
    assert modified.needs_lengths


def test_average_mean_makes_open_instructs_normalised_dpo_and_simpo_of_plain_ones(batch, both):
    """Three ways to the same numbers: IPO's own field, and SimPO as DPO without reference on means."""
    plain = dataclasses.replace(batch, confidence_E=torch.ones(4))
    mean, free = {"average": "mean"}, {"average": "mean", "reference_free": True}
    ours = run(registry.build("psi_po", tau=0.3, modifiers=mean), both, plain)
    close(ours.loss_E, run(IPO(tau=0.3, average="mean"), both, plain).loss_E.numpy())
    ours = run(registry.build("dpo", beta=2.0, modifiers=free), both, plain)
    close(ours.loss_E, run(SimPO(beta=2.0, gamma=0.0), both, plain).loss_E.numpy())


SEE_BETA_DELTA = ["dpo", "rdpo", "hinge", "exo", "discopop", "nca", "apo_zero", "apo_down", "simpo"]


@pytest.mark.parametrize("name", SEE_BETA_DELTA)
@settings(max_examples=25, deadline=None)
@given(temperature=st.floats(0.05, 20), seed=st.integers(0, 100))
def test_temperature_is_beta_divided_by_it_where_the_loss_sees_only_that(name, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    values = [-10 * torch.rand(3, generator=generator, dtype=torch.float64) for _ in range(4)]
    lengths = [tensor([2, 7, 4]), tensor([5, 3, 4])]
    objective = registry.build(name)
    colder = dataclasses.replace(objective, beta=objective.beta / temperature)
    ours = Modified(objective, Modifiers(temperature=temperature)).on_pairs(*values, *lengths)
    theirs = colder.on_pairs(*values, *lengths)
    torch.testing.assert_close(ours.loss_E, theirs.loss_E, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.margin_E, theirs.margin_E, rtol=1e-9, atol=1e-12)


def test_temperature_divides_log_ratios_where_beta_is_not_all_there_is():
    """IPO: (delta / T - 1 / (2 tau))^2, which no tau alone gives. Delta 6, T 4, tau 0.5: (1.5 - 1)^2."""
    given = [tensor([-4.0]), tensor([-9.0]), tensor([-6.0]), tensor([-5.0])]
    result = registry.build("ipo", tau=0.5, modifiers={"temperature": 4.0}).on_pairs(*given)
    assert result.loss.item() == 0.25
    assert result.delta_E.item() == 6  # delta is what the models say, whatever the loss makes of it


def test_tails_count_alpha_beyond_the_shorter_response(batch, both):
    tokens, others = arrays(batch, both)
    p = np.array([1.0, 0.75, 0.5, 0.25])
    for of, on_reference in (("both", 0.25), ("policy", 1.0)):
        delta = []
        for (w, lo), (rw, rl) in zip(tokens, others, strict=True):
            m = min(len(w), len(lo))
            policy = w[:m].sum() + 0.25 * w[m:].sum() - lo[:m].sum() - 0.25 * lo[m:].sum()
            reference = rw[:m].sum() + on_reference * rw[m:].sum() - rl[:m].sum() - on_reference * rl[m:].sum()
            delta.append(policy - reference)
        margin = 0.3 * np.array(delta)
        outcome = run(registry.build("dpo", beta=0.3, modifiers={"tail_alpha": 0.25, "tail_of": of}), both, batch)
        close(outcome.loss_E, -p * log_sigmoid(margin) - (1 - p) * log_sigmoid(-margin))
        close(outcome.rewards_R[::2] - outcome.rewards_R[1::2], margin)


def test_tails_start_at_log_2_on_both_and_not_on_the_policy_alone(batch, both):
    same = (both[1], both[1])
    losses = {
        of: run(registry.build("dpo", modifiers={"tail_alpha": 0.5, "tail_of": of}), same, batch).loss_E
        for of in ("both", "policy")
    }
    close(losses["both"], np.full(4, math.log(2)))
    assert (losses["policy"][[0, 1, 3]] - math.log(2)).abs().min() > 1e-3
    assert losses["policy"][2].item() == pytest.approx(math.log(2))  # equally long: no tail


def test_tails_are_found_in_trees_and_padded_rows_alike(make_pairs):
    examples = make_pairs([(2, 5), (4, 4), (3, 1)])
    for batch in (pack(examples), pad(examples)):
        expected = [False] * 2 + [False] * 2 + [True] * 3 + [False] * 8 + [False, True, True] + [False]
        assert in_tail_K(batch).tolist() == expected
        order = torch.tensor([3, 0, 1, 2])  # responses in another order, each with its tokens in order
        starts = torch.cumsum(batch.length_R, 0) - batch.length_R
        parts = [torch.arange(int(starts[r]), int(starts[r] + batch.length_R[r])) for r in (*order.tolist(), 4, 5)]
        shuffled = torch.cat(parts)
        moved = dataclasses.replace(batch, response_K=batch.response_K[shuffled])
        assert in_tail_K(moved).tolist() == tensor(expected)[shuffled].tolist()


def test_reference_free_is_a_reference_of_equal_log_probs(batch, both):
    modified = registry.build("dpo", beta=0.3, modifiers={"reference_free": True})
    assert not modified.reference
    tokens, _ = arrays(batch, both)
    margin = 0.3 * np.array([w.sum() - lo.sum() for w, lo in tokens])
    p = np.array([1.0, 0.75, 0.5, 0.25])
    for reference in (both[1], None):  # in a mix it is handed one, and must not read it
        outcome = modified((policy := both[0]), reference, batch, {})
        close(outcome.loss_E, -p * log_sigmoid(margin) - (1 - p) * log_sigmoid(-margin))
    result = modified.on_pairs(tensor([-4.0]), tensor([-9.0]))
    assert result.loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    with pytest.raises(ValueError, match="DPO compares with a reference: give its log-probs"):
        registry.build("dpo", modifiers={"temperature": 2.0})(policy, None, batch, {})


@pytest.mark.parametrize("name", [name for name in PAIRS if registry.resolve(name).reference])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), constant=st.floats(-3, 3))
def test_reference_free_is_taken_where_a_uniform_reference_cancels_and_nowhere_else(name, seed, constant):
    generator = torch.Generator().manual_seed(seed)
    a, b, c, d = (-5 * torch.rand(16, generator=generator, dtype=torch.float64) for _ in range(4))
    n, gap = torch.full((16,), 4), torch.ones(16)
    objective = registry.build(name)
    if not sees_differences_only(objective):
        assert "reads each log-ratio by itself" in refusal(objective, "reference_free")
        near, far = (objective.on_pairs(a, b, c + s, d + s, n, n, gap=gap).loss_E for s in (0, 4))
        assert (near - far).abs().max() > 1e-6
        return
    free = Modified(objective, Modifiers(reference_free=True)).on_pairs(a, b, None, None, n, n, gap=gap)
    uniform = torch.full_like(a, constant)
    with_one = objective.on_pairs(a, b, uniform, uniform, n, n, gap=gap)
    torch.testing.assert_close(free.loss_E, with_one.loss_E, rtol=1e-9, atol=1e-9)


def test_confidence_as_a_label_a_weight_or_not_at_all(batch, both):
    tokens, others = arrays(batch, both)
    delta = np.array(
        [w.sum() - rw.sum() - lo.sum() + rl.sum() for (w, lo), (rw, rl) in zip(tokens, others, strict=True)]
    )
    right, wrong, p = (delta - 1) ** 2, (delta + 1) ** 2, np.array([1.0, 0.75, 0.5, 0.25])
    weight = np.array([1.0, 0.5, 2.0, 1.0])
    for confidence, loss, weights in (
        ("label", p * right + (1 - p) * wrong, weight),
        ("weight", right, weight * p),
        ("ignore", right, weight),
    ):
        objective = registry.build("ipo", tau=0.5, modifiers={"confidence": confidence})
        close(run(objective, both, batch).loss_E, loss)
        close(objective.weight_E(batch), weights)


def test_label_smoothing_doubts_every_label(batch, both):
    """Of IPO: the minimum moves to (2p - 1)(1 - 2e) / (2 tau); of hinge, by its definition; of DPO it is cDPO."""
    tokens, others = arrays(batch, both)
    delta = np.array(
        [w.sum() - rw.sum() - lo.sum() + rl.sum() for (w, lo), (rw, rl) in zip(tokens, others, strict=True)]
    )
    q = np.array([0.9, 0.7, 0.5, 0.3])  # 1, .75, .5, .25 flipped with probability 0.1
    hinge = registry.build("hinge", beta=0.3, modifiers={"label_smoothing": 0.1})
    expected = q * np.maximum(0, 1 - 0.3 * delta) + (1 - q) * np.maximum(0, 1 + 0.3 * delta)
    close(run(hinge, both, batch).loss_E, expected)
    weighed = registry.build("hinge", beta=0.3, modifiers={"label_smoothing": 0.1, "confidence": "weight"})
    expected = 0.9 * np.maximum(0, 1 - 0.3 * delta) + 0.1 * np.maximum(0, 1 + 0.3 * delta)
    close(run(weighed, both, batch).loss_E, expected)
    close(weighed.weight_E(batch), np.array([1, 0.375, 1, 0.25]))
    doubted = dataclasses.replace(batch, confidence_E=tensor(q))
    close(run(DPO(), both, doubted).loss_E, run(DPO(label_smoothing=0.1), both, batch).loss_E.numpy())


def test_wpo_weighs_the_loss_by_how_likely_both_responses_are_now(batch, both):
    policy, _ = both
    response = batch.response_K.numpy()
    above = (policy.logps_K - policy.log_sum_p2_K).numpy()
    omega = np.array([np.exp(np.mean(above[response == r])) for r in range(8)])
    pair = omega[0::2] * omega[1::2]
    assert pair.max() > 1 > pair.min()  # so that the clamp shows, and spares some
    plain = run(DPO(), both, batch)
    free = registry.build("dpo", modifiers={"wpo": True})
    close(run(free, both, batch).loss_E, pair * plain.loss_E.numpy())
    clamped = registry.build("dpo", modifiers={"wpo": "clamped"})
    close(run(clamped, both, batch).loss_E, np.minimum(pair, 1) * plain.loss_E.numpy())
    assert free.needs == clamped.needs == {"log_sum_p2_K"}
    assert torch.equal(free.weight_E(batch), batch.weight_E)  # known before the forward, as the step wants it
    with pytest.raises(ValueError, match="wpo needs log_sum_p2_K"):
        run(free, (LogProbs(policy.logps_K), both[1]), batch)


def test_wpo_weights_have_no_gradient(batch, both):
    def gradient(objective, factor):
        leaf = both[0].logps_K.clone().requires_grad_()
        policy = dataclasses.replace(both[0], logps_K=leaf)
        loss = (factor * objective(policy, both[1], batch, {}).loss_E).sum()
        return torch.autograd.grad(loss, leaf)[0]

    objective = registry.build("dpo", modifiers={"wpo": True})
    factor = (run(objective, both, batch).loss_E / run(DPO(), both, batch).loss_E).detach()
    torch.testing.assert_close(gradient(objective, torch.ones(4)), gradient(DPO(), factor), rtol=1e-9, atol=1e-12)


def test_penalties_are_added(batch, both):
    tokens, others = arrays(batch, both)
    w, lo = (np.array([t[i].sum() - o[i].sum() for t, o in zip(tokens, others, strict=True)]) for i in (0, 1))
    p = np.array([1.0, 0.75, 0.5, 0.25])
    plain = run(IPO(), both, batch).loss_E.numpy()
    squares = registry.build("ipo", modifiers={"ratio_penalty": 0.3})
    close(run(squares, both, batch).loss_E, plain + 0.3 * (w**2 + lo**2))
    drops = registry.build("ipo", modifiers={"drop_penalty": 0.3})
    close(run(drops, both, batch).loss_E, plain + 0.3 * (p * np.maximum(0, -w) + (1 - p) * np.maximum(0, -lo)))
    assert max(-w) > 0 > min(-w)
    cooler = registry.build("ipo", modifiers={"ratio_penalty": 0.3, "temperature": 2.0, "confidence": "ignore"})
    close(run(cooler, both, batch).loss_E, ((w - lo) / 2 - 5) ** 2 + 0.3 * (w**2 + lo**2) / 4)


def test_penalties_leave_out_responses_that_only_estimate_a_baseline(batch, both):
    roles_R = batch.role_R.clone()
    roles_R[1] = int(Role.BASELINE)
    other = dataclasses.replace(batch, role_R=roles_R)
    ratio_R = both[0].sums_R(batch) - both[1].sums_R(batch)
    penalty_E = Modified(IPO(), Modifiers(ratio_penalty=1.0))._penalty_E(ratio_R, other)
    assert penalty_E[0].item() == pytest.approx(ratio_R[0].item() ** 2)
    assert penalty_E[1].item() == pytest.approx(ratio_R[2].item() ** 2 + ratio_R[3].item() ** 2)


@pytest.mark.parametrize(("name", "field", "scale"), [("kl_dpo", "kl_weight", 1.0), ("robust_dpo", "eta", 0.3**2)])
def test_robust_and_kl_dpo_are_dpo_with_a_ratio_penalty(name, field, scale, batch, both):
    own = registry.build(name, beta=0.3, **{field: 0.2})
    modified = registry.build("dpo", beta=0.3, modifiers={"ratio_penalty": 0.2 * scale})
    close(run(modified, both, batch).loss_E, run(own, both, batch).loss_E.numpy())


def test_gradients_are_those_of_finite_differences(batch, both):
    """All modifiers at once but WPO, whose weights have no gradient."""
    change = Modifiers(
        average="mean",
        temperature=2.0,
        tail_alpha=0.5,
        tail_of="policy",
        label_smoothing=0.1,
        ratio_penalty=0.3,
        drop_penalty=0.2,
    )
    objective = Modified(registry.build("exo"), change)

    def losses(logps_K):
        return objective(LogProbs(logps_K), both[1], batch, {}).loss_E

    assert torch.autograd.gradcheck(losses, both[0].logps_K.clone().requires_grad_())


def test_modifiers_work_together(batch, both):
    """Tail, mean, temperature, weight and penalty at once, against one numpy formula."""
    tokens, others = arrays(batch, both)
    ratios = []
    for (w, lo), (rw, rl) in zip(tokens, others, strict=True):
        m = min(len(w), len(lo))
        pair = [
            (t[:m].sum() + 0.5 * t[m:].sum() - r[:m].sum() - 0.5 * r[m:].sum()) / len(t) for t, r in ((w, rw), (lo, rl))
        ]
        ratios.append(np.array(pair) / 3.0)
    w, lo = np.array(ratios).T
    objective = registry.build(
        "dpo",
        beta=0.7,
        modifiers={
            "tail_alpha": 0.5,
            "average": "mean",
            "temperature": 3.0,
            "confidence": "weight",
            "ratio_penalty": 0.1,
        },
    )
    close(run(objective, both, batch).loss_E, -log_sigmoid(0.7 * (w - lo)) + 0.1 * (w**2 + lo**2))
    close(objective.weight_E(batch), np.array([1.0, 0.375, 1.0, 0.25]))


def test_mixes_of_modified_reference_free_and_reference_based_objectives(batch, both):
    terms = registry.terms(
        [
            {"name": "dpo", "weight": 0.5, "modifiers": {"reference_free": True}},
            {"name": "ipo", "weight": 2.0, "modifiers": {"temperature": 2.0}},
            {"name": "simpo", "modifiers": {"confidence": "ignore", "wpo": "clamped"}},
            {"name": "sft"},
        ]
    )
    assert [term.objective.reference for term in terms] == [False, True, False, False]
    assert registry.needs_reference(terms)
    assert registry.needs(terms) == {"log_sum_p2_K"}
    assert registry.data_kind(terms) == "pairs"
    assert all(run(term.objective, both, batch).loss_E.isfinite().all() for term in terms)
    assert registry.terms(registry.spec_of(terms)) == terms


def test_on_pairs_takes_the_modifiers_that_need_no_tokens():
    given = [tensor([-4.0]), tensor([-9.0]), tensor([-6.0]), tensor([-5.0])]
    cooler = registry.build("dpo", beta=1.0, modifiers={"average": "mean", "temperature": 2.0})
    result = cooler.on_pairs(*given, tensor([4]), tensor([2]))  # 2 / 4 + 4 / 2, halved
    assert result.margin.item() == pytest.approx(1.25)
    assert result.loss.item() == pytest.approx(math.log(1 + math.exp(-1.25)))
    for modifiers in ({"tail_alpha": 0.5}, {"wpo": True}):
        with pytest.raises(
            ValueError, match="Modified reads more than the log-probs of whole pairs: call it on a batch"
        ):
            registry.build("dpo", modifiers=modifiers).on_pairs(*given)
    with pytest.raises(ValueError, match="SFT reads more than"):
        SFT().on_pairs(*given)


def test_on_pairs_keeps_any_shape():
    values = [-torch.rand(2, 3, 5) for _ in range(4)]
    result = DPO().on_pairs(*values)
    assert result.loss_E.shape == result.margin_E.shape == result.delta_E.shape == (2, 3, 5)
    flat = DPO().on_pairs(*(value.flatten() for value in values))
    assert torch.equal(result.loss_E.flatten(), flat.loss_E)


@pytest.mark.parametrize(
    ("modifiers", "message"),
    [
        ({"average": "median"}, "objective dpo: modifiers: average is the text 'median', expected 'sum' or 'mean'"),
        ({"temperature": 0}, "objective dpo: modifiers is refused: temperature must be finite and > 0, got 0"),
        ({"temperature": "2"}, "objective dpo: modifiers: temperature is the text '2', expected a number"),
        ({"tail_alpha": 1.5}, "objective dpo: modifiers is refused: tail_alpha must be in [0, 1], got 1.5"),
        ({"tail_of": "policy"}, "objective dpo: modifiers is refused: tail_of says where tail_alpha acts, which is 1"),
        ({"label_smoothing": 0.5}, "objective dpo: modifiers is refused: label_smoothing must be in [0, 0.5), got 0.5"),
        (
            {"label_smoothing": 0.1},
            "objective dpo: modifiers.label_smoothing is refused: DPO has its own label_smoothing",
        ),
        ({"wpo": "clamp"}, "objective dpo: modifiers: wpo is the text 'clamp', expected true or false or 'clamped'"),
        ({"ratio_penalty": -1}, "objective dpo: modifiers is refused: ratio_penalty must be finite and >= 0, got -1"),
        ({"drop_penalty": -1}, "objective dpo: modifiers is refused: drop_penalty must be finite and >= 0, got -1"),
        (
            {"reference_free": True, "ratio_penalty": 1},
            "objective dpo: modifiers is refused: ratio_penalty is about the reference, which reference_free removes",
        ),
        ({"temprature": 2}, "objective dpo: modifiers has no field temprature; did you mean temperature?"),
        ({"temperature": object()}, "objective dpo: modifiers: temperature is of type object, expected a plain value"),
        (["mean"], "objective dpo: modifiers is ['mean'], expected a mapping such as {temperature: 2}"),
    ],
)
def test_refused_modifiers_are_one_sentence(modifiers, message):
    with pytest.raises(PreftuneError) as raised:
        registry.terms({"name": "dpo", "modifiers": modifiers})
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_modifier_beside_the_fields_is_sent_to_its_place():
    with pytest.raises(PreftuneError, match=r"objective dpo has no field average; did you mean modifiers\.average\?"):
        registry.build("dpo", average="mean")


def test_a_modified_objective_is_not_modified_again():
    with pytest.raises(ValueError, match="modified already: put all modifiers into one"):
        Modified(Modified(DPO(), Modifiers(temperature=2.0)), Modifiers(temperature=2.0))


def test_specs_of_modified_objectives_hold_all_fields_and_read_back():
    (term,) = registry.terms(Modified(DPO(beta=0.3), Modifiers(wpo="clamped")))
    spec = registry.spec_of([term])
    assert term.name == spec["name"] == "dpo"
    assert spec["beta"] == 0.3
    assert list(spec["modifiers"]) == FIELDS
    assert registry.terms(spec) == (term,)


def test_doubt_is_refused_where_labels_must_be_certain(batch, both):
    @dataclasses.dataclass(frozen=True)
    class Certain(DPO):
        confidence = "unused"

    with pytest.raises(PreftuneError) as raised:
        run(Certain(), both, batch)
    assert str(raised.value) == (
        "Certain takes labels as certain, but the data has confidences below 1: set modifiers.confidence to weight or "
        "ignore"
    )
    for confidence in ("weight", "ignore"):
        modified = Modified(Certain(), Modifiers(confidence=confidence))
        plain = run(Certain(), both, dataclasses.replace(batch, confidence_E=torch.ones(4)))
        assert torch.equal(run(modified, both, batch).loss_E, plain.loss_E)
    with pytest.raises(PreftuneError, match="takes labels as certain"):
        run(Modified(Certain(), Modifiers(temperature=2.0)), both, batch)
    with pytest.raises(ValueError, match=r"modifiers\.label_smoothing is refused: Certain has its own"):
        Modified(Certain(), Modifiers(label_smoothing=0.1))

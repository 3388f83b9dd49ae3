"""beta_dpo and dr_dpo, DPO that looks at the batch, against formulas of their own."""

import itertools
from collections import Counter
from dataclasses import replace

import miniatures
import mpmath
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.plain import paired, run, softplus
from torch import tensor

from preftune.data.packing import pad
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.batch import LogProbs
from preftune.objectives.beta_dpo import BetaDPO
from preftune.objectives.dpo import DPO
from preftune.objectives.dr_dpo import DrDPO
from preftune.policy.policy import PolicyModule, logps
from preftune.policy.reference import StoredReference
from preftune.policy.stored import Shards, keys_of
from preftune.training.step import Micro, Step

numbers = st.floats(-20, 20)
weighted_gaps = st.lists(st.tuples(numbers, st.sampled_from([1.0, 2.0, 0.5])), min_size=2, max_size=6)


def ratios_of(gaps):
    """Log-ratios of pairs with these differences, at various levels."""
    levels = np.linspace(-2, 1, len(gaps))
    return np.stack([np.asarray(gaps) + levels, levels], axis=1).ravel()


# --- beta_dpo ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.lists(st.tuples(numbers, st.sampled_from([1.0, 1.0, 2.0, 0.5])), min_size=2, max_size=6),
        min_size=1,
        max_size=3,
    ),
    beta=st.floats(0.01, 1),
    alpha=st.floats(0, 1),
    decay=st.sampled_from([0.9, 0.5, 0]),
)
def test_value_gradient_and_state_are_those_of_the_formula(steps, beta, alpha, decay):
    objective = BetaDPO(beta, alpha, filter_share=0.4, decay=decay, spread_min=1e-7, keep="likeliest")
    state, mean, sd = objective.init(), 0.0, 0.0
    for number, rows in enumerate(steps):
        gap, weight = np.array(rows).T
        outcome, losses, slopes = run(objective, paired(len(gap), weight), ratios_of(gap), state)
        kept = outcome.extras["kept"].numpy().astype(bool)
        batch_mean = np.average(gap, weights=weight)
        mean = decay * mean + (1 - decay) * batch_mean
        variance = np.average((gap - batch_mean) ** 2, weights=weight) * len(gap) / (len(gap) - 1)
        sd = decay * sd + (1 - decay) * np.sqrt(variance)
        distance = np.abs(gap - mean)
        assert kept.sum() == max(1, int(0.6 * len(gap) + 1e-9))
        assert distance[kept].max() <= distance[~kept].min() + 1e-6
        beta_b = max(beta * (1 + alpha * (np.average(gap[kept], weights=weight[kept]) - mean)), 1e-3)
        loss, slope = softplus(beta_b * gap)
        scale = kept * weight.sum() / weight[kept].sum()
        np.testing.assert_allclose(losses, scale * loss, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(slopes[0::2], scale * weight * beta_b * slope, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(slopes[1::2], -slopes[0::2], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(outcome.rewards_R, beta * ratios_of(gap), rtol=1e-9, atol=1e-9)
        assert np.average(losses, weights=weight) == pytest.approx(np.average(loss[kept], weights=weight[kept]))
        state = outcome.state
        found = [state[key].item() for key in ("mean", "sd", "step")]
        assert found == pytest.approx([mean, sd, number + 1], rel=1e-6, abs=1e-6)


def without_replacement(weights, count):
    """Probability of every set of indices, drawn one after the other from those that are left."""
    chances = Counter()
    for order in itertools.permutations(range(len(weights)), count):
        left, chance = sum(weights), 1.0
        for index in order:
            chance *= weights[index] / left
            left -= weights[index]
        chances[frozenset(order)] += chance
    return chances


@pytest.mark.parametrize(
    ("rows", "spread_min"),
    [(tensor([0, 1, 2, 3]), 1e-3), (tensor([7, 100, -1, -1]), 10.0)],  # rows of -1 are not known
)
def test_pairs_are_drawn_without_replacement_with_the_weights_of_the_paper(rows, spread_min):
    """Frequencies over 4000 steps, as the step is what a draw depends on beside the batch."""
    gap = np.array([0.0, 1.0, 2.5, -3.0])
    objective, spread = BetaDPO(filter_share=0.5, decay=0.0, spread_min=spread_min), max(gap.std(ddof=1), spread_min)
    weights = np.exp(-(((gap - gap.mean()) / spread) ** 2) / 2)
    seen, steps, batch = Counter(), 4000, replace(paired(4), row_E=rows)
    for step in range(steps):
        state = {**objective.init(), "step": tensor(step)}
        ratios = LogProbs(tensor(ratios_of(gap)))
        kept = objective(ratios, LogProbs(torch.zeros(8)), batch, state).extras["kept"]
        seen[frozenset(torch.nonzero(kept).flatten().tolist())] += 1
    expected = without_replacement(weights, 2)
    assert sum(expected.values()) == pytest.approx(1)
    statistic = sum((seen[kept] - steps * p) ** 2 / (steps * p) for kept, p in expected.items())
    assert statistic < 20.5  # chi-squared with 5 degrees of freedom: one in a thousand is above


def test_a_draw_depends_on_the_step_and_neither_on_chance_nor_on_the_order():
    objective, gaps = BetaDPO(filter_share=0.5), np.array([0.3, -1.0, 2.0, 0.9, 1.1, -0.2])
    order, rows = np.array([4, 2, 0, 5, 1, 3]), np.array([3, 17, 4, 0, 250, 1])

    def kept(gaps, rows, step):
        torch.manual_seed(step)  # of no matter
        state = {**objective.init(), "step": tensor(step), "sd": tensor(1.0)}
        batch = replace(paired(len(gaps)), row_E=tensor(rows))
        return run(objective, batch, ratios_of(gaps), state)[0].extras["kept"].numpy()

    drawn = [kept(gaps, rows, step) for step in range(8)]
    assert len({tuple(each) for each in drawn}) > 3
    for step, each in enumerate(drawn):
        np.testing.assert_array_equal(kept(gaps, rows, step), each)
        np.testing.assert_array_equal(kept(gaps[order], rows[order], step), each[order])


@pytest.mark.parametrize("keep", ["drawn", "likeliest"])
@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_rounding_does_not_say_which_pairs_stand_out(keep, decay):
    """Policy and reference agree up to 1e-6 nats, as training starts: the same pairs are kept in any order."""
    objective = BetaDPO(filter_share=0.5, decay=decay, keep=keep)
    found = set()
    for seed in range(8):
        generator = np.random.default_rng(seed)
        rows, noise = generator.permutation(16), 1e-6 * generator.standard_normal(32)
        kept = run(objective, replace(paired(16), row_E=tensor(rows)), noise)[0].extras["kept"].numpy()
        found.add(frozenset(rows[kept == 1].tolist()))
    assert len(found) == 1
    assert len(*found) == 8


@pytest.mark.parametrize("keep", ["drawn", "likeliest"])
def test_cutting_the_first_batch_keeps_the_same_pairs(keep, tmp_path):
    """A stored reference that is the policy up to 1e-6 nats, and padded rows, which round by how long others are."""
    sizes = np.random.default_rng(0).integers(1, 12, (16, 3))
    examples = [miniatures.pair(*map(int, size), row) for row, size in zip(range(40, 56), sizes, strict=True)]
    policy = PolicyModule(miniatures.build("llama"), "padded")
    term = registry.terms({"name": "beta_dpo", "filter_share": 0.5, "keep": keep})
    found = []
    for seed, cut in enumerate((1, 3, 16)):
        noise = torch.Generator().manual_seed(seed)
        stored = Shards(tmp_path / str(cut))
        for example in examples:
            with torch.no_grad():
                logps_K = logps(policy, pad([example])).logps_K
            rounded_K = (logps_K + 1e-6 * torch.randn(len(logps_K), generator=noise)).numpy()
            stored.write(keys_of([example]), np.array([len(rounded_K)]), rounded_K)
        step = Step(policy, StoredReference(stored), term, Accelerator(cpu=True), seed=0)
        cuts = [examples[at : at + cut] for at in range(0, 16, cut)]
        micros = [Micro(each, pad(each)) for each in cuts]
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
        scored = step.train(micros, (term[0].objective.init(),), optimizer, 0, None)
        found.append(torch.cat([piece["objective.kept"] for piece in scored.columns]))
        assert found[-1].sum() == 8
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_number_of_pairs_left_out_is_rounded_as_decimals_are():
    """30 * (1 - 0.9) is a little less than 3 in binary, and 3 pairs are kept."""
    assert 30 * (1 - 0.9) < 3
    outcome, _, _ = run(BetaDPO(filter_share=0.9), paired(30), ratios_of(np.linspace(-1, 2, 30)))
    assert outcome.extras["kept"].sum() == 3


def test_pairs_that_are_alike_are_kept_alike_at_the_start_of_training():
    """Policy and reference agree: all gaps are 0, and so are mean and sd."""
    outcome, losses, _ = run(BetaDPO(filter_share=0.5), paired(4), [0, 0] * 4)
    assert outcome.extras["kept"].sum() == 2
    assert losses.mean() == pytest.approx(np.log(2))
    # all alike, and far from a mean that still is near 0
    outcome, losses, slopes = run(BetaDPO(filter_share=0.5), paired(4), [5, 0] * 4)
    assert outcome.extras["kept"].sum() == 2
    assert np.isfinite([*losses, *slopes]).all()


def test_without_filter_and_alpha_it_is_dpo():
    ours, theirs = (
        run(objective, paired(3, [1, 2, 1]), ratios_of([1, -2, 4]))[1:]
        for objective in (BetaDPO(beta=0.3, alpha=0.0, filter_share=0.0), DPO(beta=0.3))
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_beta_has_a_floor():
    outcome, _, _ = run(BetaDPO(alpha=1, filter_share=0, beta_min=0.02), paired(2), ratios_of([-9.0, -9.0]))
    assert outcome.extras["beta"].tolist() == pytest.approx([0.02, 0.02])


def test_pairs_of_weight_0_are_not_among_those_kept():
    outcome, losses, _ = run(BetaDPO(filter_share=0.5), paired(4, [1, 0, 1, 0]), ratios_of([3, 0.1, 2, 0.2]))
    assert outcome.extras["kept"].sum() == 1
    assert not outcome.extras["kept"][[1, 3]].any()
    assert np.isfinite(losses).all()


# --- dr_dpo -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(numbers, st.sampled_from([0.0, 1.0, 2.5]), st.floats(0, 1)), min_size=1, max_size=6),
    beta=st.floats(0.01, 1),
    beta_prime=st.floats(0.1, 10),
)
def test_dr_dpo_is_the_formula(rows, beta, beta_prime):
    gap, weight, p = np.array(rows).T
    if not weight.any():
        return
    pair = [
        -c * mpmath.log(1 / (1 + mpmath.exp(-beta * g))) - (1 - c) * mpmath.log(1 / (1 + mpmath.exp(beta * g)))
        for g, c in zip(gap, p, strict=True)
    ]
    believed = [w * mpmath.exp(-each / beta_prime) for w, each in zip(weight, pair, strict=True)]
    expected = -beta_prime * mpmath.log(sum(believed) / sum(weight))
    share = np.array([float(each / sum(believed)) for each in believed])
    (_, up), (_, down) = softplus(beta * gap), softplus(-beta * gap)
    _, losses, slopes = run(DrDPO(beta, beta_prime), paired(len(gap), weight, p), ratios_of(gap))
    np.testing.assert_allclose(losses, np.full(len(gap), float(expected)), rtol=1e-6, atol=1e-12)
    slope = weight.sum() * share * beta * (p * up - (1 - p) * down)
    np.testing.assert_allclose(slopes[0::2], slope, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(slopes[1::2], -slope, rtol=1e-6, atol=1e-9)


def test_a_large_beta_prime_is_dpo_and_a_small_one_believes_the_best_fit_alone():
    ratios, gaps = ratios_of([1, -2, 4]), np.array([1, -2, 4])
    mean = np.log1p(np.exp(-0.3 * gaps)).mean()
    assert run(DrDPO(0.3, 1e6), paired(3), ratios)[1] == pytest.approx(mean, rel=1e-5)
    assert run(DrDPO(0.3, 1e-3), paired(3), ratios)[1] == pytest.approx(np.log1p(np.exp(-1.2)), rel=1e-2)
    *_, slopes = run(DrDPO(0.3, 1e-3), paired(3), ratios)
    assert np.flatnonzero(np.abs(slopes) > 1e-30).tolist() == [4, 5]


@settings(max_examples=30, deadline=None)
@given(gap=numbers, beta=st.floats(0.01, 1), beta_prime=st.floats(0.1, 10))
def test_dr_dpo_of_one_pair_is_dpo(gap, beta, beta_prime):
    ours, theirs = (run(each, paired(1), ratios_of([gap]))[1:] for each in (DrDPO(beta, beta_prime), DPO(beta)))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("beta_dpo", {"beta": 0}, "is refused: beta must be finite and > 0, got 0"),
        ("beta_dpo", {"alpha": -1}, "is refused: alpha must be finite and >= 0, got -1"),
        ("beta_dpo", {"filter_share": 1}, "is refused: filter_share must be in [0, 1), got 1"),
        ("beta_dpo", {"filter_share": -0.1}, "is refused: filter_share must be in [0, 1), got -0.1"),
        ("beta_dpo", {"decay": 1}, "is refused: decay must be in [0, 1), got 1"),
        ("beta_dpo", {"beta_min": 0}, "is refused: beta_min must be finite and > 0, got 0"),
        ("beta_dpo", {"spread_min": 0}, "is refused: spread_min must be finite and > 0, got 0"),
        ("beta_dpo", {"keep": "all"}, ": keep is the text 'all', expected 'drawn' or 'likeliest'"),
        ("beta_dpo", {"modifiers": {"label_smoothing": 0.1}}, ": modifiers.label_smoothing is refused: BetaDPO takes"),
        ("dr_dpo", {"beta": -1}, "is refused: beta must be finite and > 0, got -1"),
        ("dr_dpo", {"beta_prime": 0}, "is refused: beta_prime must be finite and > 0, got 0"),
        (
            "dr_dpo",
            {"modifiers": {"wpo": True}},
            ": modifiers.wpo is refused: DrDPO weighs the pairs of a ",
        ),
    ],
)
def test_refused_fields_are_one_sentence(name, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert str(raised.value).startswith(f"objective {name}{message if message[0] == ':' else ' ' + message}")
    assert "\n" not in str(raised.value)


def test_beta_dpo_refuses_doubt():
    with pytest.raises(PreftuneError, match="BetaDPO takes labels as certain, but the data has confidences below 1"):
        run(BetaDPO(), paired(2, None, [1, 0.9]), [1, 0, 1, 0])

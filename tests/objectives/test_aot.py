"""aot and aot_unpaired against formulas of their own: sorting by hand, and quantile functions in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.plain import labelled, paired, run, softplus
from torch import tensor

from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.aot import AOT
from preftune.objectives.aot_unpaired import AOTUnpaired
from preftune.objectives.coupled import quantiles
from preftune.objectives.dpo import DPO

numbers = st.integers(-80, 80).map(lambda n: n / 4)  # exact in binary, so that ties are ties
shares = st.sampled_from([0.0, 0.25, 0.5, 1.0])
weights = st.sampled_from([0, 1, 2, 5])


def mean_of(losses, weight):
    return np.average(losses, weights=weight)


def quantile_mean(first, first_weight, second, second_weight, beta):
    """The integral over t of softplus(beta * (Q1(t) - Q2(t))): each quantile read off where it is constant."""

    def steps(values, weight):
        order = np.argsort(values, kind="stable")
        ends = np.cumsum([Fraction(int(weight[i])) for i in order])
        return [values[i] for i in order], [end / ends[-1] for end in ends]

    (one, one_ends), (two, two_ends) = steps(first, first_weight), steps(second, second_weight)
    total, start = 0.0, Fraction(0)
    for end in sorted({*one_ends, *two_ends}):
        middle = (start + end) / 2
        q1, q2 = (
            next(value for value, its_end in zip(values, ends, strict=True) if its_end > middle)
            for values, ends in ((one, one_ends), (two, two_ends))
        )
        total, start = total + float(end - start) * softplus(beta * (q1 - q2))[0], end
    return total


# --- paired -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=8), beta=st.floats(0.01, 1))
def test_margins_are_sorted_against_the_references(rows, beta):
    ratio_w, ratio_l, reference_w, reference_l = np.array(rows).T
    theirs = reference_w - reference_l
    ours = ratio_w + reference_w - ratio_l - reference_l
    loss, slope = softplus(beta * (np.sort(ours) - np.sort(theirs)))
    ratios, reference = (np.stack(each, axis=1).ravel() for each in ((ratio_w, ratio_l), (reference_w, reference_l)))
    outcome, losses, slopes = run(AOT(beta=beta), paired(len(rows)), ratios, reference=reference)
    assert losses.mean() == pytest.approx(loss.mean(), rel=1e-6)
    if len({*ours}) == len(ours):  # which of equal margins is next to which of the reference's is anyone's choice
        order = np.argsort(ours)
        np.testing.assert_allclose(losses[order], loss, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(slopes[0::2][order], beta * slope, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(slopes[1::2][order], -beta * slope, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(outcome.rewards_R, beta * ratios, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(numbers, numbers, weights, st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=6)
)
def test_weights_and_confidences_are_shares_of_the_quantile_functions(rows):
    """A pair of confidence c has its margin with weight c, and the opposite margin with weight 1 - c."""
    ours, theirs, weight, p = (np.array(column) for column in zip(*rows, strict=True))
    if not weight.any():
        return
    share = 4 * np.concatenate([weight * p, weight * (1 - p)])
    expected = quantile_mean(np.concatenate([ours, -ours]), share, np.concatenate([theirs, -theirs]), share, 0.3)
    zeros = np.zeros(len(rows))
    ratios, reference = (np.stack([each, zeros], axis=1).ravel() for each in (ours - theirs, theirs))
    _, losses, _ = run(AOT(beta=0.3), paired(len(rows), weight, p), ratios, reference=reference)
    assert mean_of(losses, weight) == pytest.approx(expected, rel=1e-6)
    assert not losses[weight == 0].any()


@settings(max_examples=30, deadline=None)
@given(chosen=numbers, rejected=numbers, beta=st.floats(0.01, 1))
def test_with_one_pair_it_is_dpo(chosen, rejected, beta):
    ours, theirs = (run(kind(beta=beta), paired(1), [chosen, rejected])[1:] for kind in (AOT, DPO))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-9)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6),
    e=st.sampled_from([0.1, 0.25, 0.45]),
    beta=st.floats(0.01, 1),
)
def test_label_smoothing_mixes_the_loss_of_each_quantile_with_its_mirror_image(rows, e, beta):
    ours, theirs = np.array(rows).T
    zeros = np.zeros(len(rows))
    ratios, reference = (np.stack([each, zeros], axis=1).ravel() for each in (ours - theirs, theirs))
    (right, up), (wrong, down) = (softplus(sign * beta * (np.sort(ours) - np.sort(theirs))) for sign in (1, -1))
    loss, slope = (1 - e) * right + e * wrong, beta * ((1 - e) * up - e * down)
    _, losses, slopes = run(AOT(beta=beta, label_smoothing=e), paired(len(rows)), ratios, reference=reference)
    assert losses.mean() == pytest.approx(loss.mean(), rel=1e-6)
    if len({*ours}) == len(ours):
        order = np.argsort(ours)
        np.testing.assert_allclose(losses[order], loss, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(slopes[0::2][order], slope, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(slopes[1::2][order], -slope, rtol=1e-6, atol=1e-9)


def test_label_smoothing_is_another_loss_than_doubt():
    """Margins 1 and 3 against 0 and 0. Doubted by a quarter, they are -3, -1, 1, 3 with weights 1, 1, 3, 3, against 0
    throughout; smoothed, each quantile's loss is mixed, which for a constant reference is the same. Against -2 and 2
    it is not: the opposites stand elsewhere among the sorted."""
    for theirs, alike in (([0.0, 0.0, 0.0, 0.0], True), ([-2.0, 0.0, 2.0, 0.0], False)):
        ratios = np.array([1.0, 0.0, 3.0, 0.0]) - theirs
        smooth = run(AOT(beta=1, label_smoothing=0.25), paired(2), ratios, reference=theirs)[1].mean()
        doubted = run(AOT(beta=1), paired(2, None, [0.75, 0.75]), ratios, reference=theirs)[1].mean()
        assert (abs(smooth - doubted) < 1e-9) == alike
        assert alike or abs(smooth - doubted) > 0.1


def test_whose_margin_it_is_does_not_matter():
    """DPO sees one pair that wins by 4 nats more and one by 4 less; AOT sees the same distribution as before."""
    swapped = [4, 0, -4, 0]
    reference = [-3.0, -1.0, -1.0, -3.0]  # margins -2 and 2 under the reference, 2 and -2 under the policy
    assert run(AOT(beta=1), paired(2), swapped, reference=reference)[1].tolist() == pytest.approx([np.log(2)] * 2)
    assert run(DPO(beta=1), paired(2), swapped, reference=reference)[1].mean() > 2


# --- unpaired ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(numbers, st.booleans(), weights), min_size=2, max_size=8), beta=st.floats(0.01, 1))
def test_good_ones_are_sorted_against_bad_ones(rows, beta):
    ratio, good, weight = (np.array(column) for column in zip(*rows, strict=True))
    _, losses, slopes = run(AOTUnpaired(beta=beta), labelled(good, weight), ratio)
    if not weight[good].any() or not weight[~good].any():
        assert not losses.any()
        assert not slopes.any()
        return
    expected = quantile_mean(ratio[good], weight[good], ratio[~good], weight[~good], beta)
    assert mean_of(losses, weight) == pytest.approx(expected, rel=1e-6)
    assert (slopes[good] <= 0).all()
    assert (slopes[~good] >= 0).all()
    assert slopes.sum() == pytest.approx(0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    good=st.lists(numbers, min_size=3, max_size=3, unique=True),
    bad=st.lists(numbers, min_size=3, max_size=3, unique=True),
)
def test_equal_numbers_are_matched_one_by_one(good, bad):
    loss, slope = softplus(0.5 * (np.sort(good) - np.sort(bad)))
    _, losses, slopes = run(AOTUnpaired(beta=0.5), labelled([1, 1, 1, 0, 0, 0]), [*good, *bad])
    by_rank = [losses[:3][np.argsort(good)], losses[3:][np.argsort(bad)]]
    np.testing.assert_allclose(by_rank, [loss, loss], rtol=1e-6)  # half of its share of 1/3, times 6 examples
    np.testing.assert_allclose(slopes[:3][np.argsort(good)], 0.5 * slope * 2, rtol=1e-6)
    np.testing.assert_allclose(slopes[3:][np.argsort(bad)], -0.5 * slope * 2, rtol=1e-6)


@pytest.mark.parametrize("e", [0.1, 0.4])
def test_label_smoothing_mixes_good_ahead_of_bad_with_bad_ahead_of_good(e):
    good, bad = np.array([3.0, -1.0, 0.5]), np.array([2.0, 0.25, -4.0])
    (right, up), (wrong, down) = (softplus(sign * 0.5 * (np.sort(good) - np.sort(bad))) for sign in (1, -1))
    loss, slope = (1 - e) * right + e * wrong, 0.5 * ((1 - e) * up - e * down)
    _, losses, slopes = run(AOTUnpaired(beta=0.5, label_smoothing=e), labelled([1, 1, 1, 0, 0, 0]), [*good, *bad])
    np.testing.assert_allclose(losses[:3][np.argsort(good)], loss, rtol=1e-6)
    np.testing.assert_allclose(losses[3:][np.argsort(bad)], loss, rtol=1e-6)
    np.testing.assert_allclose(slopes[:3][np.argsort(good)], slope * 2, rtol=1e-6)
    np.testing.assert_allclose(slopes[3:][np.argsort(bad)], -slope * 2, rtol=1e-6)
    # doubt moves responses to the other sample, which is another loss
    ratios = np.stack([good, bad], axis=1).ravel()
    _, doubted, _ = run(AOTUnpaired(beta=0.5), paired(3, None, [1 - e] * 3), ratios)
    assert abs(doubted.mean() - losses.mean()) > 0.01


def test_two_against_three_by_hand():
    """Good 1, 5 on halves; bad 0, 2, 4 on thirds: (1, 0) for 1/3, (1, 2) and (5, 2) for 1/6 each, (5, 4) for 1/3."""
    _, losses, _ = run(AOTUnpaired(beta=1), labelled([1, 0, 1, 0, 0]), [5, 4, 1, 0, 2])
    f = [float(softplus(x)[0]) for x in (1, -1, 3, 1)]
    assert losses.mean() == pytest.approx(f[0] / 3 + f[1] / 6 + f[2] / 6 + f[3] / 3)
    own = [f[2] / 6 + f[3] / 3, f[3] / 3, f[0] / 3 + f[1] / 6, f[0] / 3, f[1] / 6 + f[2] / 6]
    assert losses.tolist() == pytest.approx([5 * each / 2 for each in own])


def test_pairs_serve_too_and_doubt_moves_a_response_to_the_other_sample():
    ratios, good = np.array([3.0, -1.0, 0.5, 2.0]), np.array([1.0, 0.0, 0.25, 0.75])
    _, losses, _ = run(AOTUnpaired(beta=0.5), paired(2, [1, 3], [1, 0.25]), ratios)
    weight = 4 * np.array([1, 1, 3, 3])
    expected = quantile_mean(ratios, weight * good, ratios, weight * (1 - good), 0.5)
    assert mean_of(losses, [1, 3]) == pytest.approx(expected, rel=1e-6)


# --- the coupling -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    one=st.lists(st.tuples(numbers, st.floats(0, 3)), min_size=1, max_size=6),
    two=st.lists(st.tuples(numbers, st.floats(0, 3)), min_size=1, max_size=6),
)
def test_couplings_rise_and_keep_every_weight(one, two):
    (x, v), (y, w) = (tensor(each, dtype=torch.float64).T for each in (one, two))
    at = quantiles(x, v, y, w)
    if v.sum() < 1e-6 or w.sum() < 1e-6:
        return
    assert (at.width_S >= 0).all()
    wide = at.width_S > 1e-12
    for values, weight, index_S in ((x, v, at.first_S), (y, w, at.second_S)):
        found = torch.zeros_like(weight).index_add(0, index_S, at.width_S)
        torch.testing.assert_close(found, weight / weight.sum(), rtol=1e-9, atol=1e-9)
        assert (torch.diff(values[index_S][wide]) >= 0).all()


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("beta", [0, -0.1, float("inf"), float("nan")])
def test_beta_is_positive(name, beta):
    with pytest.raises(PreftuneError, match=f"objective {name} is refused: beta must be finite and > 0, got {beta}"):
        registry.build(name, beta=beta)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("e", [-0.1, 0.5, float("nan")])
def test_label_smoothing_is_a_field_and_less_than_a_half(name, e):
    with pytest.raises(
        PreftuneError, match=rf"objective {name} is refused: label_smoothing must be in \[0, 0.5\), got"
    ):
        registry.build(name, label_smoothing=e)
    with pytest.raises(
        PreftuneError, match=r"modifiers.label_smoothing is refused: AOT\w* has its own label_smoothing"
    ):
        registry.build(name, modifiers={"label_smoothing": 0.1})

"""bco and bco_unpaired against formulas of their own, over several steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.plain import labelled, paired, run, softplus

from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.bco import BCO
from preftune.objectives.bco_unpaired import BCOUnpaired

numbers = st.floats(-20, 20)
pair = st.tuples(numbers, numbers, st.sampled_from([0.5, 1.0, 3.0]), st.floats(0, 1))
decays = st.sampled_from([1, 0.9, 0.3])
some_pairs = st.lists(pair, min_size=1, max_size=4)
judged = st.tuples(numbers, st.booleans(), st.sampled_from([0.5, 1.0, 3.0]))


def mean_so_far(batches, decay):
    """The weighted mean of (value, weight) over all batches up to the last one."""
    values = [value for batch in batches for value, _ in batch]
    weights = [weight * decay ** (len(batches) - 1 - age) for age, batch in enumerate(batches) for _, weight in batch]
    return np.average(values, weights=weights)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(some_pairs, min_size=1, max_size=4), beta=st.floats(0.01, 1), decay=st.sampled_from([1, 0.9, 0.3])
)
def test_value_gradient_and_shift_are_those_of_the_formula(steps, beta, decay):
    objective, halves = BCO(beta=beta, decay=decay), BCOUnpaired(beta=beta, decay=decay)
    state, other_state = objective.init(), halves.init()
    for number, rows in enumerate(steps):
        chosen, rejected, weight, p = (np.array(column) for column in zip(*rows, strict=True))
        seen = [[(beta * ratio, w) for c, r, w, _ in batch for ratio in (c, r)] for batch in steps[: number + 1]]
        shift = mean_so_far(seen, decay)
        chosen_up, chosen_down = softplus(beta * chosen - shift), softplus(shift - beta * chosen)
        rejected_up, rejected_down = softplus(beta * rejected - shift), softplus(shift - beta * rejected)
        batch, ratios = paired(len(rows), weight, p), np.stack([chosen, rejected], axis=1).ravel()
        outcome, losses, slopes = run(objective, batch, ratios, state)
        np.testing.assert_allclose(outcome.extras["shift"], np.full(len(rows), shift), rtol=1e-6, atol=1e-6)
        expected = p * (chosen_up[0] + rejected_down[0]) + (1 - p) * (rejected_up[0] + chosen_down[0])
        np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-9)
        chosen_slope = weight * beta * (p * chosen_up[1] - (1 - p) * chosen_down[1])
        rejected_slope = weight * beta * ((1 - p) * rejected_up[1] - p * rejected_down[1])
        np.testing.assert_allclose(slopes[0::2], chosen_slope, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(slopes[1::2], rejected_slope, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(outcome.rewards_R, beta * ratios, rtol=1e-9, atol=1e-12)
        half, half_losses, half_slopes = run(halves, batch, ratios, other_state)
        np.testing.assert_allclose(half_losses, losses / 2, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(half_slopes, slopes / 2, rtol=1e-9, atol=1e-12)
        state, other_state = outcome.state, half.state
    assert state["mean"].item() == pytest.approx(shift, rel=1e-6, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.lists(judged, min_size=1, max_size=5), min_size=1, max_size=3),
    beta=st.floats(0.01, 1),
    decay=st.sampled_from([1, 0.9]),
)
def test_labels_are_those_of_the_formula(steps, beta, decay):
    objective = BCOUnpaired(beta=beta, decay=decay)
    state = objective.init()
    for number, rows in enumerate(steps):
        ratio, good, weight = (np.array(column) for column in zip(*rows, strict=True))
        shift = mean_so_far([[(beta * x, w) for x, _, w in batch] for batch in steps[: number + 1]], decay)
        sign = np.where(good, 1, -1)
        loss, slope = softplus(sign * (beta * ratio - shift))
        outcome, losses, slopes = run(objective, labelled(good, weight), ratio, state)
        np.testing.assert_allclose(losses, loss, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(slopes, weight * sign * beta * slope, rtol=1e-6, atol=1e-9)
        state = outcome.state


@pytest.mark.parametrize("kind", [BCO, BCOUnpaired])
def test_without_a_shift_the_loss_is_that_of_two_binary_labels(kind):
    """TRL's bco_pair of today."""
    objective = kind(beta=0.5, shift="none")
    outcome, losses, _ = run(objective, paired(2), [3, -1, 1, 1])
    expected = [np.log1p(np.exp(-1.5)) + np.log1p(np.exp(-0.5)), np.log1p(np.exp(-0.5)) + np.log1p(np.exp(0.5))]
    assert losses.tolist() == pytest.approx([each / (1 if kind is BCO else 2) for each in expected])
    assert objective.init() == outcome.state == {}
    assert not outcome.extras


def test_the_shift_is_updated_before_it_is_used():
    """A first batch of equal rewards is on its own threshold, wherever it is."""
    _, losses, _ = run(BCO(beta=1), paired(1), [7, 7])
    assert losses.tolist() == pytest.approx([2 * np.log(2)])


@settings(max_examples=30, deadline=None)
@given(chosen=numbers, rejected=numbers, more=st.floats(0.1, 5))
def test_chosen_is_drawn_up_and_rejected_down_each_by_itself(chosen, rejected, more):
    at = BCO(beta=0.3, shift="none")
    here, up, down = (
        run(at, paired(1), ratios)[1][0]
        for ratios in ([chosen, rejected], [chosen + more, rejected], [chosen, rejected - more])
    )
    assert up < here
    assert down < here


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bco", "bco_unpaired"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0}, "objective {name} is refused: beta must be finite and > 0, got 0"),
        ({"beta": -0.1}, "objective {name} is refused: beta must be finite and > 0, got -0.1"),
        ({"decay": 0}, "objective {name} is refused: decay must be in (0, 1], got 0"),
        ({"decay": 1.1}, "objective {name} is refused: decay must be in (0, 1], got 1.1"),
        ({"shift": "none", "decay": 0.9}, "objective {name} is refused: decay is 0.9, but without a shift nothing "),
        ({"shift": "mean"}, "objective {name}: shift is the text 'mean', expected 'running' or 'none'"),
    ],
)
def test_refused_fields_are_one_sentence(name, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert str(raised.value).startswith(message.format(name=name))
    assert "\n" not in str(raised.value)


def test_each_takes_its_own_kind_of_data():
    with pytest.raises(ValueError, match="needs pairs, but of 2 examples 0 have a chosen"):
        run(BCO(), labelled([1, 0]), [1, 2])

"""KTO against formulas of its own."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.plain import batch_of, run

from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.batch import Role
from preftune.objectives.kto import KTO

NONE = float("nan")


def labelled(good, weight=None, confidence=None):
    """Examples of one judged and one mismatched response each."""
    scores = [score for each in good for score in (float(each), NONE)]
    return batch_of([(Role.LABELLED, Role.BASELINE)] * len(good), scores, weight, confidence)


def tried(objective, batch, ratios, mismatched):
    return run(objective, batch, np.stack([ratios, mismatched], axis=1).ravel())


def value(x, good, beta, lambda_d, lambda_u):
    """The loss of a response x nats above z0, and its slope: with hyperbolic functions in place of sigmoids."""
    weight, sign = (lambda_d, -1) if good else (lambda_u, 1)
    return weight * (1 + sign * np.tanh(beta * x / 2)) / 2, sign * weight * beta / 4 / np.cosh(beta * x / 2) ** 2


def test_the_shape_of_the_loss_by_hand():
    """z0 = (4 + 0 + 2) / 3 = 2; beta 0.5: 1 - s(1) is 1 / (1 + e)."""
    outcome, losses, _ = tried(KTO(beta=0.5), labelled([1, 0, 1]), [4, 0, 2], [4, 0, 2])
    one = 1 / (1 + np.exp(1))
    np.testing.assert_allclose(losses, [one, one, 0.5], rtol=1e-12)
    assert outcome.extras["z0"].tolist() == pytest.approx([2, 2, 2])
    # beta times the log-ratio; z0 is no part of it
    assert outcome.rewards_R.tolist() == pytest.approx([2, 2, 0, 0, 1, 1])


numbers = st.floats(-8, 8)
row = st.tuples(numbers, numbers, st.booleans(), st.sampled_from([0.5, 1.0, 3.0]), st.floats(0, 1))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(row, min_size=2, max_size=6),
    beta=st.floats(0.05, 2),
    lambdas=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
)
def test_value_and_gradient_are_those_of_the_formula(rows, beta, lambdas):
    ratios, mismatched, good, weight, confidence = (np.array(column) for column in zip(*rows, strict=True))
    z0 = max(0.0, np.average(mismatched, weights=weight))
    right, wrong = (
        np.array([value(x, g, beta, *lambdas) for x, g in zip(ratios - z0, each, strict=True)]).T
        for each in (good, ~good)
    )
    expected = confidence * right + (1 - confidence) * wrong
    _, losses, slopes = tried(KTO(beta, *lambdas), labelled(good, weight, confidence), ratios, mismatched)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(slopes[0::2], weight * expected[1], rtol=1e-6, atol=1e-9)
    assert not slopes[1::2].any()  # z0 has no gradient


def test_z0_is_never_negative():
    outcome, losses, _ = tried(KTO(beta=0.5), labelled([1, 1]), [1, 1], [-3, 1])
    assert outcome.extras["z0"].tolist() == [0, 0]
    assert losses[0] == pytest.approx(1 / (1 + np.exp(0.5)))


def test_z0_is_the_mean_over_all_or_over_those_that_have_moved():
    batch, ratios = labelled([1, 0, 1]), [1, 1, 1]
    outcomes = [tried(KTO(z0_mean=mean), batch, ratios, [6, 0, 0])[0] for mean in ("all", "nonzero")]
    assert [outcome.extras["z0"][0].item() for outcome in outcomes] == pytest.approx([2, 6])
    still = tried(KTO(z0_mean="nonzero"), batch, ratios, [0, 0, 0])[0]  # at the start of training
    assert still.extras["z0"].tolist() == [0, 0, 0]


def test_the_loss_of_a_pair_is_the_mean_over_its_responses():
    batch = batch_of([(Role.CHOSEN, Role.REJECTED, Role.BASELINE)] * 2, None, [1, 3], [1, 0.25])
    _, losses, slopes = run(KTO(beta=0.3, lambda_d=1.5), batch, [4, 1, 6, -2, 3, 2])
    z0 = (6 + 3 * 2) / 4
    for example, (chosen, rejected, p) in enumerate([(4, 1, 1), (-2, 3, 0.25)]):
        (good, good_slope), (bad, _) = (value(chosen - z0, label, 0.3, 1.5, 1) for label in (True, False))
        (as_good, _), (as_bad, as_bad_slope) = (value(rejected - z0, label, 0.3, 1.5, 1) for label in (True, False))
        assert losses[example] == pytest.approx((p * (good + as_bad) + (1 - p) * (bad + as_good)) / 2)
        if p == 1:
            assert slopes[:3].tolist() == pytest.approx([good_slope / 2, as_bad_slope / 2, 0])


@settings(max_examples=30, deadline=None)
@given(low=numbers, more=st.floats(0.01, 5), good=st.booleans())
def test_good_responses_are_drawn_up_and_bad_ones_down(low, more, good):
    losses = [tried(KTO(), labelled([good, 1]), [x, 0], [1, 1])[1][0] for x in (low, low + more)]
    assert (losses[0] > losses[1]) == good


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["beta", "lambda_d", "lambda_u"])
@pytest.mark.parametrize("number", [0, -1.0, float("inf"), float("nan")])
def test_fields_are_positive(field, number):
    with pytest.raises(PreftuneError) as raised:
        registry.build("kto", **{field: number})
    assert str(raised.value).startswith(f"objective kto is refused: {field} must be finite and > 0, got {number}")
    assert "\n" not in str(raised.value)


def test_z0_mean_is_one_of_two():
    with pytest.raises(PreftuneError, match="z0_mean is the text 'batch', expected 'all' or 'nonzero'"):
        registry.build("kto", z0_mean="batch")
    with pytest.raises(ValueError, match='z0_mean must be "all" or "nonzero"'):
        KTO(z0_mean="batch")


@pytest.mark.parametrize("missing", [[1], [1, 3, 5]])
def test_examples_without_a_mismatched_response_are_refused(missing):
    batch = labelled([1, 0, 1])
    roles_R, scores_R = batch.role_R.clone(), batch.score_R.clone()
    roles_R[missing], scores_R[missing] = int(Role.LABELLED), 1.0
    with pytest.raises(ValueError, match="mismatched") as raised:
        run(KTO(), dataclasses.replace(batch, role_R=roles_R, score_R=scores_R), range(6))
    assert str(raised.value) == (
        f"KTO needs a mismatched response for each example, but of 3 examples {3 - len(missing)} have one: add to each "
        "a response to another prompt, of role BASELINE"
    )


def test_examples_without_a_judgement_are_refused():
    batch = batch_of([(Role.LABELLED, Role.BASELINE), (Role.BASELINE,)], [1, NONE, NONE])
    with pytest.raises(ValueError, match="KTO needs judged responses, but of 2 examples 1 have one: give labelled "):
        run(KTO(), batch, [1, 2, 3])

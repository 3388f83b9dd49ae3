"""KL reward, generalised advantages, whitening and the KL controller, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.rlhf.advantages import KLController, generalised_advantages, token_rewards, whitened


def test_each_token_pays_for_its_nats_and_the_last_is_rewarded() -> None:
    """Log-ratios 0.5, -0.25, 1: at 0.2 a nat -0.1, 0.05, -0.2, and 3 on top of the last."""
    old, reference = np.array([-1.0, -2.0, -0.5]), np.array([-1.5, -1.75, -1.5])
    np.testing.assert_allclose(token_rewards(old, reference, 3.0, beta=0.2), [-0.1, 0.05, 2.8], rtol=1e-12)
    np.testing.assert_allclose(token_rewards(old, reference, 3.0, beta=0.0), [0, 0, 3], rtol=0)


def test_advantages_of_three_tokens() -> None:
    """gamma 0.9, lam 0.5; rewards 1, 0, 2; values 0.5, 1, 1.5.

    Errors from the end: 2 - 1.5 = 0.5; 0 + 0.9 * 1.5 - 1 = 0.35; 1 + 0.9 * 1 - 0.5 = 1.4. Each adds 0.45 of the next:
    0.5; 0.35 + 0.45 * 0.5 = 0.575; 1.4 + 0.45 * 0.575 = 1.65875.
    """
    found = generalised_advantages(np.array([1.0, 0.0, 2.0]), np.array([0.5, 1.0, 1.5]), gamma=0.9, lam=0.5)
    np.testing.assert_allclose(found, [1.65875, 0.575, 0.5], rtol=1e-12)


def test_the_ends_of_lam() -> None:
    """1: return less value. 0: the error of one step."""
    rewards, values = np.array([0.25, -0.5, 2.0]), np.array([1.0, 0.5, -1.0])
    np.testing.assert_allclose(generalised_advantages(rewards, values, 1.0, 1.0), [0.75, 1.0, 3.0], rtol=1e-12)
    np.testing.assert_allclose(generalised_advantages(rewards, values, 1.0, 0.0), [-0.25, -2.0, 3.0], rtol=1e-12)


def test_whitening_with_and_without_the_mean() -> None:
    """1, 3, 5, 7: mean 4, variance 5."""
    values = [np.array([1.0, 3.0]), np.array([5.0, 7.0])]
    scale = 1 / math.sqrt(5 + 1e-8)
    np.testing.assert_allclose(np.concatenate(whitened(values)), np.array([-3, -1, 1, 3]) * scale, rtol=1e-12)
    kept = np.concatenate(whitened(values, keep_mean=True))
    np.testing.assert_allclose(kept, 4 + np.array([-3, -1, 1, 3]) * scale, rtol=1e-12)


def test_what_does_not_count_is_scaled_by_the_others() -> None:
    found = whitened([np.array([1.0, 3.0]), np.array([100.0])], [True, False])
    np.testing.assert_allclose(np.concatenate(found), [-1, 1, 98], rtol=1e-7)


def test_values_that_are_all_alike_have_no_advantage() -> None:
    assert np.concatenate(whitened([np.array([2.0, 2.0]), np.array([2.0])])).tolist() == [0, 0, 0]


def test_the_controller_by_hand() -> None:
    """Target 6, horizon 1000. 12 nats are 100% above, of which 20% are heeded: 0.1 * (1 + 0.2 * 500 / 1000) = 0.11.
    3 nats are 50% below: 0.11 * (1 - 0.2 * 0.5) = 0.099. 6.3 nats are 5% above: 0.099 * (1 + 0.05 * 0.5)."""
    controller = KLController(0.1, target=6.0, horizon=1000)
    for kl, expected in ((12.0, 0.11), (3.0, 0.099), (6.3, 0.101475), (6.0, 0.101475)):
        controller.update(kl, responses=500)
        assert controller.beta == pytest.approx(expected, rel=1e-12)


def test_without_a_target_the_price_stays_and_no_round_turns_its_sign() -> None:
    fixed, quick = KLController(0.1), KLController(0.1, target=6.0, horizon=10)
    for controller in (fixed, quick):
        controller.update(0.0, responses=10_000)
    assert fixed.beta == 0.1
    assert quick.beta == pytest.approx(0.08)

"""What is chosen on validation prompts."""

import pytest

from preftune.studies.frontier.cells import Cell, Outcome, Preferences
from preftune.studies.frontier.choice import best_rate, best_strength


def outcome(rate=1e-3, strength=0.1, failed=None, **figures):
    cell = Cell("listed", "dpo", strength, rate, Preferences(), 64, 0, "validation")
    return Outcome(cell, failed, {"reference": 1.0, "attainable": 0.5, **figures})


def test_a_rate_that_goes_nowhere_is_not_chosen_for_its_small_regret():
    still = outcome(1e-4, reward=1.1, regret=0.05)
    good = outcome(1e-3, reward=1.8, regret=0.2)
    far = outcome(1e-2, reward=2.0, regret=0.4)
    assert best_rate([still, good, far]).cell.rate == 1e-3


def test_of_rates_that_all_make_things_worse_the_least_bad_is_chosen():
    bad, worse = outcome(1e-3, reward=0.9, regret=1.2), outcome(1e-2, reward=0.2, regret=2.0)
    assert best_rate([worse, bad]).cell.rate == 1e-3


def test_failures_and_unknown_regrets_come_last():
    failed = outcome(1e-2, failed="it diverged")
    unknown = outcome(3e-3, reward=2.0, regret=None)
    known = outcome(1e-3, reward=1.9, regret=0.7)
    assert best_rate([failed, unknown, known]).cell.rate == 1e-3
    assert best_rate([failed, unknown]).cell.rate == 3e-3
    assert best_rate([failed]) is None


@pytest.mark.parametrize(
    ("reached", "regrets", "expected"),
    [
        ((0.1, 0.4, 0.7), (0.1, 0.3, 0.5), 1),  # the first has the least regret, and did not go far
        ((0.1, 0.2, 0.3), (0.1, 0.3, 0.5), 2),  # nobody did: the farthest
        ((0.1, 0.4, None), (0.1, 0.3, None), 1),  # beyond the end of a sampled curve regret is not known
    ],
)
def test_the_strength_of_least_regret_among_those_that_went_far(reached, regrets, expected):
    outcomes = [
        outcome(strength=float(i), reward=2.0, attainable=share, regret=regret)
        for i, (share, regret) in enumerate(zip(reached, regrets, strict=True))
    ]
    assert best_strength(outcomes) == expected


def test_no_strength_where_all_failed():
    assert best_strength([outcome(failed="it diverged")]) is None

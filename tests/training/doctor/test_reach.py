"""How far objectives pull, against closed forms."""

from __future__ import annotations

import math

import pytest

from preftune.objectives.registry import terms
from preftune.training.doctor.reach import reach

GONE = math.log(19)  # 1 - sigmoid(x) = 0.05, a tenth of one half
GRID = 1.04  # places are this far apart


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"name": "dpo", "beta": 0.1}, GONE / 0.1),
        ({"name": "dpo", "beta": 2.0}, GONE / 2.0),
        ({"name": "ipo", "tau": 0.1}, 0.9 / 0.2),
        ({"name": "ipo", "tau": 0.1, "average": "mean"}, 15 * 0.9 / 0.2),  # of responses of 15 tokens
        ({"name": "hinge", "beta": 0.5}, 1 / 0.5),
        # each response counts half of delta: s (1 - s) is a tenth of 1 / 4 at 3.6 / beta nats
        ({"name": "kto", "beta": 0.1}, 2 * math.acosh(math.sqrt(10)) * 2 / 0.1),
        # gamma only shifts it: s(gamma - beta d / 15) = s(gamma) / 10
        ({"name": "simpo", "beta": 2.0, "gamma": 0.0}, 15 * GONE / 2.0),
        ([{"name": "sft", "weight": 0.1}, {"name": "dpo", "beta": 0.1}], GONE / 0.1),
    ],
)
def test_reach_is_that_of_the_formula(objective: object, expected: float) -> None:
    found = reach(terms(objective), 15, 15)
    assert found is not None
    assert expected / 1.001 <= found <= GRID * expected


@pytest.mark.parametrize("name", ["sft", "orpo", "plackett_luce", "tdpo"])
def test_what_has_no_such_scale_has_no_reach(name: str) -> None:
    assert reach(terms(name), 15, 15) is None


def test_a_pull_that_never_ends_is_infinite() -> None:
    assert reach(terms("cpo"), 15, 15) == math.inf  # its likelihood term pulls on

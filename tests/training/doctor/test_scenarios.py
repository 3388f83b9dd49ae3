"""Each rule fires on a sick run of the built-in world, and no longer once it is cured; healthy runs are left in peace.

How often they do over several seeds and settings: benchmarks/training_doctor.py, docs/log.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scenarios import CURED, HEALTHY, SICK, Scenario, healthy

from preftune.training.doctor.rules import RULES

Carried = Callable[[Scenario], dict[str, Any]]
BY_NAME = {rule.name: rule for rule in RULES}


def test_every_rule_has_a_scenario() -> None:
    assert {scenario.rule for scenario in SICK.values()} | {"chosen_likelihood_falls"} == set(BY_NAME)
    assert SICK.keys() == CURED.keys()


@pytest.mark.parametrize("name", SICK)
def test_a_sick_run_is_told_so(name: str, carried: Carried, capsys: pytest.CaptureFixture[str]) -> None:
    sick, outcome = SICK[name], carried(SICK[name])
    rule = BY_NAME[sick.rule]
    (line,) = [line for line in outcome["found"] if line["rule"] == rule.name]  # once, and not again
    assert line["severity"] == rule.severity
    assert line["explanation"] == rule.explanation
    assert line["remedy"] == rule.remedy
    assert isinstance(line["value"], float)
    assert any(character.isdigit() for character in line["figure"])
    assert {line["rule"] for line in outcome["standing"]} <= {line["rule"] for line in outcome["found"]}


@pytest.mark.parametrize("name", CURED)
def test_a_cured_run_is_not(name: str, carried: Carried) -> None:
    assert CURED[name].rule not in {line["rule"] for line in carried(CURED[name])["found"]}


@pytest.mark.parametrize("name", HEALTHY)
def test_clean_runs_are_left_in_peace(name: str, carried: Carried) -> None:
    fields, rate = HEALTHY[name][0]
    outcome = carried(healthy(name, fields, rate, count=512))
    assert [line["rule"] for line in outcome["found"] if line["severity"] == "warning"] == []
    assert outcome["lines"][-1]["kind"] == "eval"


def test_displacement_names_the_rows_that_drive_it(carried: Carried) -> None:
    """The pairs of highest CHES are more alike than others are."""
    from scenarios import swapped_words

    sick = SICK["likelihood displacement"]
    (line,) = [one for one in carried(sick)["found"] if one["rule"] == sick.rule]
    rows = swapped_words(768, 0)
    assert len(line["rows"]) == len(set(line["rows"])) == 5
    assert all(0 <= row < len(rows) for row in line["rows"])
    assert line["rows"] == next(one for one in carried(sick)["standing"] if one["rule"] == sick.rule)["rows"]

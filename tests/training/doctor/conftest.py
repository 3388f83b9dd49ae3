"""Runs that several tests look at, each carried out once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scenarios import Scenario

from preftune import api

Carried = Callable[[Scenario], dict[str, Any]]


@pytest.fixture(scope="session")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """Carries a scenario out. Gives the findings when they were made, and those that stand at the end."""
    known: dict[int, dict[str, Any]] = {}

    def carry_out(scenario: Scenario) -> dict[str, Any]:
        if id(scenario) not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(api, "write_report", lambda folder: None)  # it takes longer than these runs
                run = scenario.train(tmp_path_factory.mktemp("run") / "run")
            lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
            found = [line for line in lines if line["kind"] == "doctor"]
            known[id(scenario)] = {"path": run.path, "found": found, "standing": run.summary["doctor"], "lines": lines}
        return known[id(scenario)]

    return carry_out

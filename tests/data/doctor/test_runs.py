"""A run whose data the doctor has looked at: what it was told stands with it, and its config gives the same data."""

from __future__ import annotations

import json
from pathlib import Path

from preftune import api, train, yaml_tree
from preftune.config import RunConfig
from preftune.sandbox.preferences import rows


def test_rows_given_as_objects_are_left_out_once(tmp_path: Path) -> None:
    given = rows(24)
    sick = [*given, given[3], {**given[5], "chosen": given[5]["rejected"], "rejected": given[5]["chosen"]}]
    settings = {"data": {"doctor": {"duplicates": "drop", "cycles": "error"}}, "evaluate": {"samples": 0}}
    run = train("sandbox", sick, output=tmp_path / "first", quiet=True, config=settings, train={"max_steps": 1})
    told = run.summary["messages"]
    assert told[0].startswith("1 row left out: 1 row repeats an earlier one (given data row 24 is the same as row 3)")
    assert told[1].startswith(
        "2 rows contradict each other (1 question, 1 of them without a majority) (given data row 5"
    )
    config = yaml_tree.load(
        RunConfig, run.path / "config.yaml", [f"output.path={tmp_path}/second"], tagged=("objective",)
    )
    assert config.data.doctor.duplicates == config.data.doctor.cycles == "ignore"
    again = api.run(config, show=False)
    first, second = (json.loads((path / "manifest.json").read_text()) for path in (run.path, again.path))
    assert first["data_sha256"] == second["data_sha256"]
    assert first["records"] == second["records"]
    assert sum(first["records"].values()) == 25

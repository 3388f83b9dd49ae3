"""Every objective, found by discovery, trains through the ordinary trainer: all weights or adapters, with its reference
live or stored, on the built-in world.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import preftune
from preftune import Run
from preftune.data.records import Demonstration, Judged, Preference, Record
from preftune.objectives import registry
from preftune.sandbox.preferences import pairs

SETTINGS: dict[str, Any] = {
    "train": {"max_steps": 3, "log_every": 1},
    "batch": {"size": 8},
    "evaluate": {"samples": 0},
    "quiet": True,
}


@pytest.fixture(scope="module")
def preferences() -> list[Preference]:
    """Pairs with everything that an objective may read."""
    return [replace(pair, confidence=0.6 + i % 5 / 10, gap=0.5 + i % 7) for i, pair in enumerate(pairs(32))]


@pytest.fixture(scope="module")
def data(preferences: list[Preference]) -> dict[str, list[Record]]:
    """The same responses as each kind of data."""
    judged = [
        Judged(pair.prompt, response, good, pair.where)
        for pair in preferences
        for response, good in ((pair.chosen, True), (pair.rejected, False))
    ]
    shown = [Demonstration(pair.prompt, pair.chosen, pair.where) for pair in preferences]
    return {"pairs": list(preferences), "labels": list(judged), "demonstrations": list(shown)}


def trained(name: str, records: list[Record], output: Path, blocks: dict[str, Any]) -> Run:
    config = {**blocks, "data": {"held_out": 0}}
    return preftune.train("sandbox", records, name, output=output, config=config, **SETTINGS)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", registry.names())
def test_every_objective_trains(
    name: str, adapter: bool, data: dict[str, list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = registry.build(name)
    if objective.data not in data:
        pytest.skip(f"there are no {objective.data} here")
    monkeypatch.chdir(tmp_path)  # where stored log-probs are kept
    records = data[objective.data]
    if objective.data == "pairs" and objective.confidence == "unused":  # it takes labels as certain
        records = [replace(pair, confidence=None) for pair in records]
    model = {"model": {"lora": {}}} if adapter else {}
    run = trained(name, records, tmp_path / "live", model)
    lines = [line for line in run.history if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)
    if not objective.reference:
        return
    stored = trained(name, records, tmp_path / "stored", {**model, "reference": {"kind": "stored"}})
    again = [line["loss"] for line in stored.history if line["kind"] == "train"]
    assert again == pytest.approx([line["loss"] for line in lines], rel=1e-4, abs=1e-5)

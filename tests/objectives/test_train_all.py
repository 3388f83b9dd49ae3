"""Every objective, found by discovery, trains through the ordinary trainer: all weights with the reference live and
stored, and adapters; on the built-in world, for 20 steps on one batch, at one learning rate for all.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import preftune
from preftune import PreftuneError, Run, api
from preftune.data.records import Demonstration, Judged, Preference, Ranking, Record
from preftune.objectives import registry
from preftune.sandbox.preferences import pairs

STEPS, EXAMPLES = 20, 6
SETTINGS: dict[str, Any] = {
    "train": {"max_steps": STEPS, "log_every": 1},
    "batch": {"size": EXAMPLES},
    "optim": {"learning_rate": 1e-3},
    "evaluate": {"samples": 0},
    "quiet": True,
}
# Whose loss may rise while it learns: it has factors without gradient, which grow as responses become likelier.
WEIGHED = {"wpo"}
# Objectives on rollouts have no data to learn from: tests/rlhf/test_policy_gradient_runs.py trains them.
OF_DATA = [name for name in registry.names() if registry.resolve(name).data != "rollouts"]


@pytest.fixture(scope="module")
def preferences() -> list[Preference]:
    """Pairs with everything that an objective may read."""
    return [replace(pair, confidence=0.6 + i % 5 / 10, gap=0.5 + i % 7) for i, pair in enumerate(pairs(EXAMPLES))]


@pytest.fixture(scope="module")
def data(preferences: list[Preference]) -> dict[str, list[Record]]:
    """The same responses as each kind of data, as many records of each."""
    judged = [
        Judged(pair.prompt, pair.chosen if row % 2 else pair.rejected, bool(row % 2), pair.where)
        for row, pair in enumerate(preferences)
    ]
    ranked = [
        Ranking(pair.prompt, (pair.rejected, pair.chosen, other.rejected), (0.5, 1.0, 0.0), pair.where)
        for pair, other in zip(preferences, preferences[1:] + preferences[:1], strict=True)
    ]
    shown = [Demonstration(pair.prompt, pair.chosen, pair.where) for pair in preferences]
    return {"pairs": list(preferences), "labels": list(judged), "rankings": list(ranked), "demonstrations": list(shown)}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored log-probs are kept where the run is started. Reports take longer than these runs, and have their tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "write_report", lambda folder: None)


def trained(name: str, data: dict[str, list[Record]], **blocks: Any) -> list[float]:
    """The losses of a run, which must learn."""
    objective = registry.build(name)
    records = data[objective.data]
    if objective.data == "pairs" and objective.confidence == "unused":  # it takes labels as certain
        records = [replace(pair, confidence=None) for pair in records]
    output = Path(f"run-{len(list(Path().iterdir()))}")
    config = {**blocks, "data": {"held_out": 0}}
    run: Run = preftune.train("sandbox", records, name, output=output, config=config, **SETTINGS)
    lines = [line for line in run.history if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)
    if name in WEIGHED:
        assert lines[-1]["delta"] > lines[0]["delta"] + 0.3
    else:
        assert lines[-1]["loss"] < lines[0]["loss"]
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("name", OF_DATA)
def test_every_objective_trains_all_weights_with_a_live_and_a_stored_reference(
    name: str, data: dict[str, list[Record]]
) -> None:
    losses = trained(name, data)
    if not registry.resolve(name).reference:
        return
    stored = {"reference": {"kind": "stored"}}
    if "kl_K" in registry.resolve(name).needs:  # of which stored log-probs say nothing
        with pytest.raises(PreftuneError, match="live"):
            trained(name, data, **stored)
        return
    assert trained(name, data, **stored) == pytest.approx(losses, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", OF_DATA)
def test_every_objective_trains_adapters_with_a_live_and_a_stored_reference(
    name: str, data: dict[str, list[Record]]
) -> None:
    losses = trained(name, data, model={"lora": {}})
    objective = registry.resolve(name)
    if objective.reference and "kl_K" not in objective.needs:
        again = trained(name, data, model={"lora": {}}, reference={"kind": "stored"})
        assert again == pytest.approx(losses, rel=1e-3, abs=1e-4)

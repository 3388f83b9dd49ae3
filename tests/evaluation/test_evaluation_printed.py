"""What `evaluate` prints: what it was compared with, and why a figure is missing."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.runs import DATA, Made
from rich.console import Console

from preftune.evaluation.calibration import calibrate
from preftune.evaluation.evaluate import evaluate
from preftune.report.evaluation_table import show_evaluation

HEAD: dict[str, Any] = {"model": "m", "data": {"pairs": 1, "kind": "pairs", "prompts": 1, "path": "d"}}


def printed(figures: dict[str, Any]) -> str:
    console = Console(record=True, width=120, file=io.StringIO())
    show_evaluation(figures, console)
    return console.export_text()


def test_labels_that_are_all_alike_say_what_is_missing(made: Made, tmp_path: Path) -> None:
    rows = [{**row, "label": True} for row in DATA["labels"][:8]]
    data = tmp_path / "labels.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = evaluate(made("kto"), data=data, out=tmp_path / "out", prompts=0, quiet=True)
    text = printed(done.figures)
    assert "all that were held out are judged good" in text
    assert "held out  " not in text
    assert "log-prob per token" in text
    assert "reward" in text
    assert done.figures["responses"]["good"]["responses"] == 8
    assert done.figures["responses"].keys() == {"good"}


def test_both_kinds_of_labels_have_accuracies(made: Made, tmp_path: Path) -> None:
    text = printed(evaluate(made("kto"), out=tmp_path, prompts=0, quiet=True).figures)
    assert "preference accuracy" in text
    assert "judged bad" in text
    assert "no accuracy" not in text


@pytest.mark.parametrize(
    ("margins", "why"),
    [([-1.0, -2.0, 0.5], "margins are not above 0 on average"), ([1.0, 2.0, 0.5], "no margin is below 0")],
)
def test_a_missing_temperature_is_explained(margins: list[float], why: str) -> None:
    found = calibrate(np.array(margins), np.arange(3), [b"a", b"b", b"c"])
    assert found.temperature is None
    pairs = {"accuracy": 0.5, "margin": sum(margins) / 3}
    text = printed({**HEAD, "pairs": pairs, "calibration": {"ece": found.ece}})
    assert f"no temperature: none is best, since {why}" in text


def test_kl_says_to_what() -> None:
    side = dict.fromkeys(("mean_length", "end_rate", "repetition", "distinct_1", "distinct_2"), 1.0)
    generation = {"prompts": 1, "samples_per_prompt": 1, "temperature": 1.0, "policy": side}
    generation["kl"] = {"per_response": 1.5, "per_token": 0.1}
    other = {**HEAD, "against": "runs/other", "own_reference": False, "generation": generation}
    assert "KL to runs/other: 1.5 nats" in printed(other)
    assert "KL to the reference: 1.5 nats" in printed({**other, "own_reference": True})

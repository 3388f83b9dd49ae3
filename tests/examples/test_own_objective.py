"""A user's own objective, from another folder, without editing anything here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import preftune
from preftune.objectives import build

EXAMPLES = Path(__file__).parents[2] / "examples"
NAME = "own_objective:Savage"


def cli(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`preftune ...` in a folder of its own, with the examples on the path as any package is."""
    path = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "from preftune.cli import main; main()", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def test_it_is_at_most_thirty_lines() -> None:
    assert len((EXAMPLES / "own_objective.py").read_text().splitlines()) <= 30


def test_value_and_gradient_are_those_of_the_formula(importable: None) -> None:
    objective = build(NAME, beta=0.5)
    chosen = torch.tensor([-4.0, -3.0, -9.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-6.0, -3.0, -2.0], dtype=torch.float64)
    result = objective.on_pairs(chosen, rejected, torch.full_like(rejected, -5.0), torch.full_like(rejected, -5.0))
    (gradient,) = torch.autograd.grad(result.loss_E.sum(), chosen)
    for delta, loss, slope in zip((2.0, 0.0, -7.0), result.loss_E.tolist(), gradient.tolist(), strict=True):
        wrong = 1 / (1 + math.exp(0.5 * delta))
        assert loss == pytest.approx(wrong**2, rel=1e-12)
        assert slope == pytest.approx(-2 * 0.5 * wrong**2 * (1 - wrong), rel=1e-12)


def test_it_trains_from_the_command_line_in_another_folder(tmp_path: Path) -> None:
    words = ["objective.beta=0.2", "train.max_steps=20", "train.log_every=1", "evaluate.samples=1"]
    done = cli(
        tmp_path, "train", "--model", "sandbox", "--data", "sandbox", f"objective.name={NAME}", *words, "--out", "run"
    )
    assert done.returncode == 0, done.stderr
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (kept["objective"]["name"], kept["objective"]["beta"]) == (NAME, 0.2)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["steps"] == 20
    assert summary["before"]["loss"] == pytest.approx(0.25, abs=1e-6)  # sigmoid(0)^2
    assert summary["after"]["loss"] < 0.25


def test_it_trains_from_python(importable: None, tmp_path: Path) -> None:
    from own_objective import Savage  # type: ignore[import-not-found]

    out = tmp_path / "run"
    run = preftune.train("sandbox", "sandbox", Savage(beta=0.2), output=out, quiet=True, train={"max_steps": 5})
    assert run.summary["objective"] == NAME
    assert run.summary["before"]["loss"] == pytest.approx(0.25, abs=1e-6)


def test_it_is_explained_like_ours(tmp_path: Path) -> None:
    done = cli(tmp_path, "objectives", NAME)
    assert done.returncode == 0, done.stderr
    for words in ("Savage DPO", "loss = sigmoid(-beta * delta)^2", "beta (float, default 0.1)", f"name: {NAME}"):
        assert words in done.stdout
    done = cli(tmp_path, "objectives", "own_objective:Savige")
    assert done.returncode == 2
    assert done.stderr == "error: objective own_objective:Savige: module own_objective has no Savige; " + (
        "did you mean Savage?\n"
    )

"""Stopping and going on at the command line, as a scheduler and a person do it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
WORDS = ("train", "--model", "sandbox", "--data", "sandbox", "--out", "run", "-q")
SETTINGS = ("train.max_steps=2000", "train.log_every=1", "evaluate.samples=0", "data.limit=64", "batch.size=4")


def started(folder: Path) -> subprocess.Popen[str]:
    """A run of its own process, which trains by now."""
    command = [sys.executable, "-W", "error", "-m", "preftune", *WORDS, *SETTINGS]
    process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    lines = folder / "run" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not lines.exists() or len(lines.read_bytes().splitlines()) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_ends_with_a_checkpoint_and_a_sentence(tmp_path, preftune, number, code):
    process = started(tmp_path)
    os.kill(process.pid, number)
    said = process.communicate(timeout=60)[1].splitlines()

    assert process.returncode == code
    assert said[-2] == f"note: {number.name}: stopping after this step, with a checkpoint"
    assert said[-1].startswith(f"{number.name} stopped the run after step ")
    assert said[-1].endswith("of 2000, with a checkpoint; to go on: preftune train --resume run")
    step = int(said[-1].split()[6])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(step + 1))

    refused = preftune("train", "--resume", "run", "train.max_steps=5")
    assert refused.code == 2
    assert refused.err.startswith("error: train.max_steps cannot change when a run goes on")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--resume", "run", "--model", "sandbox"), "so --model has no place beside it"),
        (("--resume", "run", "--lora"), "so --lora has no place beside it"),
        (("--resume", "run", "my.yaml"), "so my.yaml has no place beside it"),
        (("--resume", "run"), "run is no run folder, it has no config.yaml"),
        (("--resume", "file"), "file is no run folder, it has no config.yaml"),
    ],
)
def test_what_cannot_go_on_is_refused(preftune, tmp_path, words, said):
    (tmp_path / "file").write_text("")
    found = preftune("train", *words)
    assert found.code == 2
    assert said in found.err
    assert len(found.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_that_ended_shows_what_it_came_to(preftune, run_folder):
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    said = preftune("train", "--resume", str(run_folder))
    assert said.code == 0
    assert "6 steps in" in said.out
    assert {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before


@pytest.mark.parametrize("broken", ["manifest.json", "config.yaml"])
def test_a_run_folder_that_was_tampered_with_is_refused(preftune, run_folder, tmp_path, broken):
    shutil.copytree(run_folder, "run")
    Path("run/summary.json").unlink()
    Path("run", broken).write_text("{")
    said = preftune("train", "--resume", "run")
    assert said.code == 2
    assert broken in said.err
    assert len(said.err.splitlines()) == 1

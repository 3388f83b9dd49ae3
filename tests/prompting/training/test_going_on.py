"""Rounds that are killed, in training, while proposing and while judging, go on as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from preftune.data.sources import rows
from preftune.errors import PreftuneError
from preftune.evaluation.models import find
from preftune.prompting.training import Trained, resume_prompts, train_prompts

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
TIMES = {"train_seconds", "asked_seconds"}
STEPS = 12


@pytest.fixture
def folder(settings: Callable[..., dict[str, Any]], world: Path, tmp_path: Path, trained: Trained) -> Path:
    """A folder with a user's config and module, and the last prompt that a judge is asked about."""
    how = {"rounds": 2, "discriminator": "own:drawn", "facts": False, "max_new_tokens": 24, "measured": 0}
    config = settings(
        prompts=how,
        train={"max_steps": STEPS, "log_every": 1},
        batch={"size": 4},
        output={"save_every": 2, "keep_last": 1},
    )
    del config["output"]["path"]
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "own.py").write_text((world / "own.py").read_text())
    cases = [row["case"] for _, row in rows(str(trained.path / "data" / "round-1.jsonl"))]
    last = [case["original"] for case in cases if case["kind"] == "rewrite"][-1]
    (tmp_path / "last.json").write_text(json.dumps(last))
    return tmp_path


def started(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "preftune", "prompts", "train", *words, "-q"],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def killed(process: subprocess.Popen[str], when: Callable[[], bool]) -> None:
    """Kill it as soon as something is so."""
    with process:
        end = time.monotonic() + 120
        while not when():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.005)
        process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and what it said."""
    with process:
        said = process.communicate(timeout=120)[1]
        return process.returncode, said


def count(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


def came_to(folder: Path) -> Iterator[object]:
    """All that does not depend on the clock."""
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        yield {key: value for key, value in json.loads(line).items() if key not in TIMES}
    for number in (1, 2):
        yield (folder / f"data/round-{number}.jsonl").read_bytes()
        yield (folder / f"round-{number}" / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes that are killed have it: sums are rounded in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_rounds_that_are_killed_anywhere_come_to_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    here, last = folder / "killed", json.loads(Path("last.json").read_text())
    killed(started(folder, "my.yaml", "--out", "killed"), lambda: count(here / "round-1/metrics.jsonl") > STEPS // 2)
    with pytest.raises(PreftuneError, match=r"the rounds in .* have not finished: .*preftune prompts train --resume"):
        find(here)

    code, said = ended(started(folder, "--resume", "killed", KILL_AT=last))  # its judge kills it
    assert code == -signal.SIGKILL, said
    assert (here / "round-1/summary.json").is_file()
    assert count(here / "kept/replies.jsonl") > 0, "what was proposed is kept"
    assert count(here / "kept/verdicts.jsonl") == 0

    resume_prompts("killed", quiet=True)
    whole = yaml.safe_load(Path("my.yaml").read_text()) | {"output": {"path": "whole"}}
    train_prompts(whole, quiet=True)

    assert list(came_to(here)) == list(came_to(folder / "whole"))
    for name in ("replies.jsonl", "verdicts.jsonl"):
        ids = [row["id"] for _, row in rows(str(here / "kept" / name))]
        assert len(set(ids)) == len(ids) == count(folder / "whole" / "kept" / name), "nothing was asked twice"
    resumed = json.loads((here / "round-1/manifest.json").read_text())["resumed"]
    assert next(each["step"] for each in resumed) >= 2, "from a checkpoint"


def test_a_folder_that_was_never_begun_is_no_obstacle(rounds, tmp_path) -> None:
    (tmp_path / "rounds" / "data").mkdir(parents=True)
    for name in ("manifest.json", "template.yaml", "prompts.json"):  # killed before prompts.yaml was there
        (tmp_path / "rounds" / name).write_text("{}")
    assert rounds(prompts={"rounds": 1, "measured": 0}).rounds


def test_half_a_line_and_another_current_folder_are_no_obstacle(trained, world, tmp_path, monkeypatch) -> None:
    path = tmp_path / "rounds"
    shutil.copytree(trained.path, path, ignore=shutil.ignore_patterns("round-2", "summary.json", "report.html"))
    lines = (path / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (path / "rounds.jsonl").write_bytes(lines[0] + lines[1][:20])
    monkeypatch.setattr(sys, "path", [str(world), *sys.path])
    again = resume_prompts(path, quiet=True)
    weights = [each / "round-2" / "model" / "model.safetensors" for each in (path, trained.path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert len(again.rounds) == 2


def test_models_are_found_from_another_current_folder(settings, world, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(world)
    how = {"rounds": 1, "measured": 0, "template": "short.yaml"}
    folder = train_prompts(settings(prompts=how, model={"path": "base/model"}), quiet=True).path
    config = yaml.safe_load((folder / "prompts.yaml").read_text())
    assert config["model"]["path"] == str(world / "base" / "model")
    assert config["prompts"]["template"] == str(world / "short.yaml")


def test_rounds_that_are_over_stay_as_they_are(trained) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")}
    again = resume_prompts(trained.path, quiet=True)
    assert again.rounds == trained.rounds
    assert {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")} == before


@pytest.mark.parametrize("change", ["prompts.rounds=3", "objective.tau=1", "prompts.template=x"])
def test_what_decides_the_rounds_cannot_change(trained, change) -> None:
    with pytest.raises(PreftuneError, match=f"{change.partition('=')[0]} cannot change when rounds go on"):
        resume_prompts(trained.path, changes=[change])


@pytest.mark.parametrize("name", ["template.yaml", "prompts.json", "data/round-2.jsonl", "prompts.yaml"])
def test_a_file_that_was_tampered_with_is_named(trained, name, tmp_path) -> None:
    path = tmp_path / "rounds"
    shutil.copytree(trained.path, path, ignore=shutil.ignore_patterns("round-2", "summary.json"))
    lines = (path / "rounds.jsonl").read_text().splitlines(keepends=True)
    (path / "rounds.jsonl").write_text(lines[0])
    (path / name).write_text("{")
    with pytest.raises(PreftuneError) as refused:
        resume_prompts(path, quiet=True)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)

"""A sweep on the built-in world, from the command line and from Python."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import preftune
from preftune import Run, cli
from preftune.sandbox.preferences import rows as sandbox_rows

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
CONFIG = """
model: {{path: sandbox}}
data: {{path: {data}, held_out: 0.3}}
optim: {{learning_rate: 5e-3}}
train: {{max_steps: {steps}}}
batch: {{size: 16}}
evaluate: {{samples: 0, max_new_tokens: 24}}
doctor: {{answers: 0}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sandbox_rows(160)))
    return path


@pytest.fixture(scope="module")
def config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "my.yaml"
    path.write_text(CONFIG.format(data=data, steps=6))
    return path


def run(*words: str, expected: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["preftune", *words])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    assert code == expected


@pytest.fixture(scope="module")
def swept(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A sweep's folder, and the words that made it."""
    folder = tmp_path_factory.mktemp("sweep") / "here"
    words = ["sweep", str(config), "objective.name=dpo,ipo,simpo", "objective.beta=0.1,1", "--out", str(folder)]
    words += ["--reward", "sandbox", "--prompts", "12", "--samples", "2", "--kl-budget", "50"]
    run(*words)
    return folder, words


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


def test_each_combination_is_an_ordinary_run(swept: tuple[Path, list[str]]) -> None:
    folder, _ = swept
    assert sorted(path.name for path in (folder / "runs").iterdir()) == [
        *("dpo-beta=0.1", "dpo-beta=1", "ipo", "simpo-beta=0.1", "simpo-beta=1")
    ]
    summary = Run(folder / "runs" / "dpo-beta=1").summary
    assert summary["steps"] == 6
    assert (folder / "runs" / "ipo" / "model" / "config.json").is_file()


def test_the_reference_is_computed_once_for_all(swept: tuple[Path, list[str]]) -> None:
    folder, _ = swept
    said = {path.stem: path.read_text() for path in (folder / "logs").iterdir()}
    assert "0 of 160 examples reused, 160 computed" in said["dpo-beta=0.1"]
    for name in ("dpo-beta=1", "ipo"):
        assert "160 of 160 examples reused, 0 computed" in said[name]
    assert "log-probs of the reference" not in said["simpo-beta=1"]


def test_the_points_are_what_evaluations_of_the_runs_say(swept: tuple[Path, list[str]]) -> None:
    folder, _ = swept
    from preftune.sandbox.world import true_reward

    for point in result(folder)["points"]:
        run_folder = folder / point["folder"]
        evaluation = json.loads((run_folder / "evaluation.json").read_text())
        lines = [json.loads(line) for line in (run_folder / "generations.jsonl").read_text().splitlines()]
        assert len(lines) == 24
        assert point["value"] == pytest.approx(sum(true_reward(line["policy"]) for line in lines) / 24)
        assert point["reference"] == pytest.approx(sum(true_reward(line["against"]) for line in lines) / 24)
        assert point["kl"] == evaluation["generation"]["kl"]["per_response"]
        assert point["figures"]["accuracy"] == evaluation["pairs"]["accuracy"]
        assert point["ci95"][0] < point["value"] < point["ci95"][1]
        gain = point["value"] - point["reference"]
        assert sum(point["gain_ci95"]) / 2 == pytest.approx(gain)
    assert result(folder)["measure"]["kind"] == "reward"


def test_the_table_and_the_page_say_the_same(swept: tuple[Path, list[str]]) -> None:
    folder, _ = swept
    found = result(folder)
    with (folder / "sweep.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == [point["name"] for point in found["points"]]
    assert float(rows["ipo"]["reward"]) == next(p["value"] for p in found["points"] if p["name"] == "ipo")
    assert (rows["ipo"]["objective.name"], rows["ipo"]["objective.beta"]) == ("ipo", "")
    page = (folder / "sweep.html").read_text()
    assert found["recommended"]["why"] in page.replace("&#39;", "'")
    assert "runs/dpo-beta%3D0.1/report.html" in page
    assert "http" not in page[: page.index("<script")].replace("http-equiv", "")
    assert found["notes"][0] == "objective.beta is a field of dpo and simpo: runs of ipo go without"


def test_the_same_command_keeps_what_is_there(swept: tuple[Path, list[str]], capfd: pytest.CaptureFixture[str]) -> None:
    folder, words = swept
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("evaluation.json")}
    before = result(folder)
    run(*words, "--json")
    found = json.loads(capfd.readouterr().out)
    assert found["points"] == before["points"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("evaluation.json")} == times


def test_another_measure_trains_nothing_anew(
    swept: tuple[Path, list[str]], capfd: pytest.CaptureFixture[str], config: Path
) -> None:
    folder, _ = swept
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    run(
        "sweep",
        str(config),
        "objective.name=dpo,ipo",
        "--out",
        str(folder),
        "--judge",
        "sandbox",
        "--prompts",
        "6",
        "-q",
    )
    points = result(folder)["points"]
    assert [point["name"] for point in points] == ["dpo", "ipo"]
    assert "win_rate" in json.loads((folder / "runs" / "ipo" / "evaluation.json").read_text())
    assert points[0]["figures"]["judge_check"]["pairs"] == 48
    assert all(path.stat().st_mtime_ns == at for path, at in times.items())  # ipo is there, dpo without beta is new
    assert "win rate" in capfd.readouterr().out


def test_from_python_with_preference_accuracy(config: Path, tmp_path: Path) -> None:
    done: list[str] = []
    found = preftune.sweep(
        config,
        {"objective.beta": [0.1, 0.5], "train.max_steps": 2},
        output=tmp_path / "s",
        prompts=4,
        tell=lambda at, count, point: done.append(f"{at}/{count} {point.name}"),
    )
    assert done == ["1/2 beta=0.1", "2/2 beta=0.5"]
    assert found.measure.kind == "accuracy"
    assert found.recommended is None or (found.recommended / "model").is_dir()
    assert [point.value for point in found.points] == [point.figures["accuracy"] for point in found.points]


def test_a_run_that_fails_is_told_and_the_others_stay(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", str(config), "optim.learning_rate=1e-3,1e6", "train.max_steps=3", "--prompts", "4"]
    run(*words, "--out", str(tmp_path / "s"), expected=1)
    said = capfd.readouterr()
    assert "learning_rate=1e6 failed: " in said.out
    first, second = result(tmp_path / "s")["points"]
    assert first["value"] is not None
    assert second["failed"]
    assert "What failed" in (tmp_path / "s" / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["objective.name=dpo,kto", "data.held_out=0"], "run dpo of the sweep: nothing is held out to measure it on"),
        (["objective.name=dpo,rebel"], "run rebel of the sweep: objective rebel learns from gap, but"),
        (["objective.name=dpo,bradley_terry"], "run bradley_terry of the sweep: its objective trains a reward model"),
        (["objective.beta=1,2", "--judge", "sandbx"], "did you mean sandbox"),
        (["objective.beta=1,2", "--judge", "sandbox", "--reward", "sandbox"], "name one of them"),
        (["objective.beta=1,2", "--kl-budget", "-1"], "the KL budget is -1.0"),
        (["model.path=sandbox,./nowhere"], "run path=._nowhere of the sweep: "),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_trains(
    words: list[str], says: str, config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run("sweep", str(config), *words, "--out", str(tmp_path / "s"), expected=2)
    said = capfd.readouterr().err
    assert says in said
    assert said.startswith("error: ")
    assert not (tmp_path / "s").exists()


def test_a_run_of_another_config_is_not_taken_for_this_one(
    swept: tuple[Path, list[str]], tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = swept
    other = tmp_path / "other.yaml"
    other.write_text(CONFIG.format(data=data, steps=7))
    run("sweep", str(other), "objective.name=ipo,dpo", "objective.beta=0.1,1", "--out", str(folder), expected=2)
    assert "holds a run with another train.max_steps" in capfd.readouterr().err


def test_the_plan_alone_trains_nothing(config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("sweep", str(config), "objective.beta=0.1,1", "--plan", "--out", str(tmp_path / "s"))
    assert "2 runs over objective.beta, measured by held-out preference accuracy" in capfd.readouterr().err
    assert not (tmp_path / "s").exists()


def test_processes_share_the_reference_and_go_on_after_a_kill(data: Path, tmp_path: Path) -> None:
    """Two runs at a time, killed in the midst, with all that they started; then the same command again."""
    file = tmp_path / "my.yaml"
    file.write_text(CONFIG.format(data=data, steps=60) + "output: {save_every: 5}\n")
    words = [sys.executable, "-W", "error", "-m", "preftune", "sweep", str(file), "objective.beta=0.1,1"]
    words += ["--out", "s", "--prompts", "4"]
    first = subprocess.Popen(
        [*words, "--jobs", "2"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    runs = [tmp_path / "s" / "runs" / name for name in ("beta=0.1", "beta=1")]
    try:
        until = time.monotonic() + 100
        while not list((runs[1] / "checkpoints").glob("*")):
            assert time.monotonic() < until
            assert first.poll() is None, first.communicate()
            time.sleep(0.02)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert not (runs[1] / "summary.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        run(*words[5:])
    assert [point["failed"] for point in result(tmp_path / "s")["points"]] == ["", ""]
    assert json.loads((runs[1] / "manifest.json").read_text())["resumed"][0]["step"] >= 1
    said = [path.read_text() for path in sorted((tmp_path / "s" / "logs").iterdir())]
    assert sum("0 of 160 examples reused, 160 computed" in text for text in said) == 1

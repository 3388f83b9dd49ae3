import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name: str, cwd: Path, *words: str, timeout: int = 120) -> str:
    """Runs an example as a user does, and gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_api_is_four_lines_and_aligns(tmp_path: Path) -> None:
    lines = (EXAMPLES / "python_api.py").read_text().partition('"""\n\n')[2].splitlines()
    assert len([line for line in lines if line]) == 4

    assert float(script("python_api.py", tmp_path)) > 0.55
    assert (tmp_path / "runs" / "python-api" / "curves.html").is_file()
    assert (tmp_path / "runs" / "python-api" / "model" / "model.safetensors").is_file()


def test_an_lstm_in_at_most_thirty_lines_aligns(tmp_path: Path) -> None:
    assert len((EXAMPLES / "lstm.py").read_text().splitlines()) <= 30

    accuracy = float(script("lstm.py", tmp_path))
    summary = json.loads((tmp_path / "runs" / "lstm" / "summary.json").read_text())
    assert summary["layout"] == "padded"
    assert summary["before"]["preference_accuracy"] == 0.5
    assert accuracy == summary["after"]["preference_accuracy"] > 0.55


@pytest.mark.slow
def test_gsm8k_quick(tmp_path: Path) -> None:
    shown = script("gsm8k/run.py", tmp_path, "--quick", "--out", "out")

    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())
    assert results["parameters"] <= 10_000_000
    assert results["seconds"]["in all"] < 60
    rules = [score["rule"] for score in results["scores"]]
    assert len(set(rules)) == 6
    table = (out / "results.md").read_text()
    for score in results["scores"]:
        low, high = score["ci95"]
        assert 0 <= low <= score["accuracy"] <= high <= 1
        line = f"| {score['rule']} | {score['accuracy']:.3f} | {low:.3f} to {high:.3f} |"
        assert line in table
        assert f"{score['accuracy']:.3f}" in shown
    dpo = json.loads((out / "dpo" / "summary.json").read_text())
    assert results["scores"][1]["accuracy"] == dpo["before"]["policy_accuracy"]
    assert results["scores"][2]["accuracy"] == dpo["after"]["preference_accuracy"]
    for name in ("sft", "dpo", "ipo"):
        assert (out / name / "report.html").is_file()
    manifest = (out / "ipo" / "config.yaml").read_text()
    assert "sft/model" in manifest, "preference training starts from what SFT left"

    shown = script("gsm8k/shortcuts.py", tmp_path, "--runs", "out")
    readme = (EXAMPLES / "gsm8k" / "README.md").read_text()
    assert ".785 (.722 to .838) |" in readme
    assert "0.785  (0.722 to 0.838)" in shown
    for name in ("dpo", "ipo"):
        assert f"{name}, 260 pairs in which the better author is right" in shown
        assert f"{name}, 71 pairs in which the worse author is right" in shown

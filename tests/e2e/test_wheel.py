"""What is installed from a wheel: everything that the program needs, and nothing of this repository around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if built.returncode and ("hatchling" in built.stderr or "Connection" in built.stderr):
        pytest.skip("a wheel needs hatchling, which is not installed, and there is no network to fetch it")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("preftune-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_code_data_and_types_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    wanted = {
        str(file.relative_to(source))
        for file in (source / "preftune").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {
        "preftune/py.typed",
        "preftune/sandbox/base/model.safetensors",
        "preftune/report/templates/page.html.jinja",
    } <= wanted
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 8_000_000


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Unpacked where nothing of the repository is in reach; the libraries are those of this environment."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = "import preftune, sys; from preftune.cli import main; print(preftune.__file__, file=sys.stderr); main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-c", command, "demo", "--pairs", "64", "-q", "--out", "run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [str(tmp_path / "site" / "preftune" / "__init__.py")]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for when in ("before", "after"):
        low, high = summary[when]["true_reward_ci95"]
        assert low < summary[when]["true_reward"] < high
        assert summary[when]["kl"] >= 0
        assert {"preference_accuracy", "margin"} <= set(summary[when])
    assert summary["before"]["kl"] == 0
    assert summary["after"]["kl"] > 0
    assert set(summary["difference"]) == {"true_reward", "true_reward_ci95"}
    assert "true reward" in (tmp_path / "run" / "report.html").read_text()

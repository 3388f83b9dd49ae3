"""The configs for several processes: accelerate's own loader takes them, and one of them is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from preftune.sandbox.preferences import rows

FOLDER = Path(__file__).parents[2] / "examples" / "distributed"
CONFIGS = sorted((FOLDER / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_them(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes >= 2
    assert str(config.distributed_type.value) == ("MULTI_GPU" if path.name == "ddp.yaml" else "FSDP")
    if path.name != "ddp.yaml":
        assert config.fsdp_config["fsdp_version"] == 2
    assert config.mixed_precision == "no"  # which would be ignored: train.precision decides


def test_the_readme_lists_them_all_and_says_which_were_run() -> None:
    lines = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| [")]
    listed = {line.split("](")[1].partition(")")[0]: line for line in lines}
    assert listed.keys() == {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")}
    assert [name for name, line in listed.items() if "parsed only" not in line] == ["accelerate/two-cpu-processes.yaml"]


def test_accelerate_launches_two_processes_that_share_the_weights(tmp_path: Path) -> None:
    data, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(24)))
    config = str(FOLDER / "accelerate" / "two-cpu-processes.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", config]
    words = ["-m", "preftune", "train", "--model", "sandbox", "--data", str(data), "--out", str(run), "-q"]
    done = subprocess.run(
        [*launch, *words, "train.max_steps=2", "evaluate.samples=0"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((run / "manifest.json").read_text())["processes"] == 2
    summary = json.loads((run / "summary.json").read_text())
    assert summary["memory"]["weights"] < 0.51 * (run / "model" / "model.safetensors").stat().st_size
    assert (run / "report.html").is_file()
    assert done.stdout.count("report:") == 1  # one process speaks

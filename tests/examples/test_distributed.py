"""The configs for several processes: accelerate's own loader takes them, and one of them is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from preftune.sandbox.preferences import rows
from tests.distributed.conftest import WITH_DEEPSPEED

FOLDER = Path(__file__).parents[2] / "examples" / "distributed"
CONFIGS = sorted((FOLDER / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_them(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes >= 2
    kinds = {"ddp.yaml": "MULTI_GPU", "deepspeed-zero2.yaml": "DEEPSPEED"}
    kind = str(config.distributed_type.value)
    assert kind == kinds.get(path.name, "FSDP")
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == 2
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
    assert config.mixed_precision == "no"  # which would be ignored: train.precision decides


def test_the_readme_lists_them_all_and_says_which_were_run() -> None:
    lines = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| [")]
    listed = {line.split("](")[1].partition(")")[0]: line for line in lines}
    assert listed.keys() == {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")}
    ran = {name for name, line in listed.items() if "parsed only" not in line}
    assert ran == {"accelerate/two-cpu-processes.yaml", "accelerate/deepspeed-zero2.yaml"}


def launched(name: str, folder: Path) -> dict[str, Any]:
    """The summary of a run on two CPU processes that a config of accelerate starts."""
    data, run = folder / "pairs.jsonl", folder / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(24)))
    config = [str(FOLDER / "accelerate" / name), "--num_processes", "2"]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", *config]
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
    assert (run / "report.html").is_file()
    assert done.stdout.count("report:") == 1  # one process speaks
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return {**summary["memory"], "model": (run / "model" / "model.safetensors").stat().st_size}


def test_accelerate_launches_two_processes_that_share_the_weights(tmp_path: Path) -> None:
    memory = launched("two-cpu-processes.yaml", tmp_path)
    assert memory["weights"] < 0.51 * memory["model"]


@WITH_DEEPSPEED
def test_accelerate_launches_two_processes_that_share_moments_by_deepspeed(tmp_path: Path) -> None:
    memory = launched("deepspeed-zero2.yaml", tmp_path)
    assert memory["weights"] > 0.95 * memory["model"]
    # two moments, and the copy of the weights that DeepSpeed changes
    assert memory["optimizer"] == pytest.approx(3 / 2 * memory["gradients"], rel=0.01)

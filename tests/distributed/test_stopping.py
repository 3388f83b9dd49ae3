"""Several processes stop together and go on as if they never had; one goes on with what two have saved."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import preftune
from preftune.training import checkpoint
from preftune.training.checkpoint import Tensors
from tests.distributed.conftest import WITH_DEEPSPEED

ALWAYS = ("ddp", "fsdp2")
STRATEGIES = (*ALWAYS, pytest.param("deepspeed", marks=WITH_DEEPSPEED))
TIMES = {"seconds", "pairs_per_second", "tokens_per_second", "padding_share"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of `stopping.py`, on two processes."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--redirects", "3"]
    script = str(Path(__file__).with_name("stopping.py"))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_CBWR": "AUTO,STRICT",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    words = [
        sys.executable,
        *words,
        "--log-dir",
        str(folder / "logs"),
        script,
        str(folder),
        *ALWAYS,
        *(["deepspeed"] if find_spec("deepspeed") else []),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    logs = "".join(log.read_text() for log in folder.rglob("std*.log"))
    assert done.returncode == 0, done.stderr + logs
    return folder


def lines(run: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read]


def measured(run: Path) -> list[dict[str, Any]]:
    """Without the doctor's lines, which quote figures that other roundings may change."""
    return [line for line in lines(run) if line["kind"] != "doctor"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_promise_15_two_processes_go_on_as_if_never_stopped(runs, strategy):
    calm, again = runs / f"{strategy}-calm", runs / f"{strategy}-again"
    weights = [load_file(run / "model" / "model.safetensors") for run in (calm, again)]
    if strategy != "fsdp2":
        assert lines(again) == lines(calm)
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    else:  # CPU kernels round as operands lie in memory, and weights that FSDP2 gathers lie elsewhere each time
        for line, other in zip(measured(calm), measured(again), strict=True):
            for key in line.keys() - {"kind", "chosen_reward_histogram", "rejected_reward_histogram"}:
                assert other[key] == pytest.approx(line[key], rel=1e-3, abs=1e-3), (key, line["step"])
        for name, value in weights[0].items():
            assert float((weights[1][name] - value).abs().mean()) < 1e-5, name
    assert [one["step"] for one in json.loads((again / "manifest.json").read_text())["resumed"]] == [4]
    assert checkpoint.saved(calm) == [3, 6]
    assert checkpoint.saved(again) == [3, 4, 6]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_process_writes_what_it_alone_holds(runs, strategy):
    folder = runs / f"{strategy}-calm" / checkpoint.name_of(6)
    sizes = [(folder / "state" / f"tensors-{process}.safetensors").stat().st_size for process in (0, 1)]
    share = sizes[1] / sum(sizes)
    # with ZeRO, half of the moments, beside the weights and the other half of the moments
    low, high = {"ddp": (0, 0.01), "deepspeed": (0.3, 0.36), "fsdp2": (0.4, 0.6)}[strategy]
    assert low <= share <= high


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_process_goes_on_with_what_two_have_saved(runs, strategy, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / f"{strategy}-calm", run)
    (run / "summary.json").unlink()
    checkpoint.clear(run, {3})
    saved = Tensors(run / checkpoint.name_of(3))
    model = load_file(run / checkpoint.name_of(3) / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(saved.whole(f"weights.lm.{name}"), model[name])

    preftune.resume(run, quiet=True, changes=["train.strategy=auto"])

    calm = load_file(runs / f"{strategy}-calm" / "model" / "model.safetensors")
    mine = load_file(run / "model" / "model.safetensors")
    furthest = max(float((mine[name] - calm[name]).abs().max()) for name in calm)
    assert furthest < 1e-3, "weights move by 1e-2 in a step, and Adam's first steps are signs of gradients"
    for one, other in zip(measured(run), measured(runs / f"{strategy}-calm"), strict=True):
        assert (one["kind"], one["step"]) == (other["kind"], other["step"])
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)

"""Two processes (gloo) on one machine, as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from preftune.sandbox.preferences import rows
from tests.distributed import runs

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# DeepSpeed, by the ZeRO stage that `accelerate launch` would ask for.
ZERO = {"zero1": 1, "zero2": 2}
WITH_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


def asked(strategy: str) -> str:
    """`train.strategy` of one of our strategies."""
    return "deepspeed" if strategy in ZERO else strategy


def staged(strategy: str) -> dict[str, str]:
    """What `accelerate launch` would put into the environment, beside that DeepSpeed is wanted."""
    return {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(ZERO[strategy])} if strategy in ZERO else {}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 pairs of the built-in world, in a file."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(33)))
    return path


@pytest.fixture(scope="session")
def one_process(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a run of `runs.RUNS` in this process; each once."""
    folder, done = tmp_path_factory.mktemp("one"), dict[str, Path]()

    def run(name: str) -> Path:
        if name not in done:
            done[name] = runs.run(name, pairs, folder)
        return done[name]

    return run


@pytest.fixture(scope="session")
def two_processes(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes runs of `runs.RUNS` with two processes that share one strategy, and a cache of their own; gives their
    folder. What names them together is made once."""
    done = dict[tuple[str, str], tuple[Path, subprocess.CompletedProcess[str]]]()

    def launch(strategy: str, names: str) -> Path:
        if (strategy, names) not in done:
            folder = tmp_path_factory.mktemp(strategy)
            words = (str(Path(runs.__file__)), str(pairs), str(folder), asked(strategy), names)
            environment = {**ENVIRONMENT, **staged(strategy), "PREFTUNE_CACHE": str(folder / "cache")}
            command = [*TORCHRUN, *words]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
            done[strategy, names] = folder, ended
        folder, ended = done[strategy, names]
        assert ended.returncode == 0, ended.stderr[-4000:]
        return folder

    return launch

"""What becomes of a process when another one ends: it ends too, and one of them says why."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed import fates
from tests.distributed.conftest import ENVIRONMENT, TORCHRUN


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def pair(fate: str, folder: Path) -> list[subprocess.Popen[str]]:
    """Two processes without a launcher that would end one for the other."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, str(Path(fates.__file__)), fate],
            env={**ENVIRONMENT, **shared, "RANK": rank, "LOCAL_RANK": rank, "MADE": str(folder / "made")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]


def said(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


def test_processes_meet_wait_and_end_together(tmp_path: Path) -> None:
    ended = [(*process.communicate(timeout=60), process.returncode) for process in pair("ends well", tmp_path)]
    for index, (out, err, code) in enumerate(ended):
        assert code == 0, err
        assert out.strip() == f"process {index} of 2 reads 0 7 [0, 1]"
        assert not said(err)


@pytest.mark.parametrize("fate", ["stops", "refuses", "waits", "both refuse"])
def test_no_process_outlives_another(fate: str, tmp_path: Path) -> None:
    first, second = pair(fate, tmp_path)
    try:
        _, err = first.communicate(timeout=60)
        if fate == "stops":
            second.kill()
        _, others = second.communicate(timeout=60)
    finally:
        for process in (first, second):
            process.kill()
    assert first.returncode == 2, err
    (line,) = said(err) + said(others)
    if fate == "stops":
        assert "process 0 of 2 lost another one" in line
        assert "no sign of life of process 1" in line
    else:
        assert line == "error: this is refused"
        assert second.returncode == 2
    assert "Traceback" not in err


def test_a_launched_run_ends_within_a_minute_of_a_kill(pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("train", "--model", "sandbox", "--data", str(pairs), "--out", str(folder), "-q", "train.log_every=1")
    more = ("train.epochs=10000", "evaluate.samples=0", "train.check_memory=false")
    launcher = subprocess.Popen(
        [*TORCHRUN, "-m", "preftune", *words, *more], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() or len((folder / "metrics.jsonl").read_text().splitlines()) < 4:
            assert launcher.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        workers = psutil.Process(launcher.pid).children()
        (second,) = [one for one in workers if one.environ()["RANK"] == "1"]
        killed = time.monotonic()
        os.kill(second.pid, signal.SIGKILL)
        _, err = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode != 0
    assert time.monotonic() - killed < 60
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    (line,) = said(err)
    assert "lost another one, which was killed" in line
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(text)

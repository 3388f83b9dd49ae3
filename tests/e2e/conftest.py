"""preftune as its users meet it: a command line in a process of its own, the same in this process, and one run to look
at from all sides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from preftune import Run, cli
from preftune.sandbox.preferences import rows as sandbox_rows

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def shell(tmp_path: Path) -> Command:
    """Runs Python with these words, in a process and a folder of its own, warnings as errors, without network."""

    def run(*words: str, timeout: int = 120) -> Said:
        done = subprocess.run(
            [sys.executable, "-W", "error", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=ENVIRONMENT,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def preftune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `preftune ...` in this process and an empty folder: a traceback would come out as an exception."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a user's own modules are looked for in the current folder

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["preftune", *words])
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        said = capfd.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    """Pairs of the built-in world."""
    return sandbox_rows(96)


@pytest.fixture(scope="session")
def pairs_file(rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WORDS = (
    "optim.learning_rate=1e-3",
    "train.max_steps=6",
    "train.log_every=2",
    "evaluate.every=4",
    "evaluate.samples=2",
    "evaluate.max_new_tokens=12",
    "data.held_out=0.25",
)


@pytest.fixture(scope="session")
def run_folder(pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the command line, and all that it left."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    words = ["train", "--model", "sandbox", "--data", str(pairs_file), "--out", str(folder), "-q", *WORDS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["preftune", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return folder


@pytest.fixture(scope="session")
def lora_run(rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that trained adapters, with its model in hand."""
    from preftune import train

    return train(
        "sandbox",
        rows,
        output=tmp_path_factory.mktemp("runs") / "lora",
        quiet=True,
        config={"model": {"lora": {"r": 4}}},
        train={"max_steps": 4},
        optim={"learning_rate": 1e-2},
        evaluate={"samples": 0},
    )

"""docs/prompts/data.md: its commands work as they stand, with a server of the built-in model."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompting.adding import command

from preftune.prompting.records import read_pairs
from preftune.serving.command import open_model
from preftune.serving.server import Server

PAGE = Path(__file__).parents[2] / "docs" / "prompts" / "data.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(open_model("sandbox"), port=0) as running:
        yield running


@pytest.mark.skipif(sys.platform == "win32", reason="the page's commands are for a POSIX shell")
def test_every_command_of_the_page_works(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    (tmp_path / "makers.py").write_text(next(text for kind, text in blocks if kind == "python"))
    run = command(monkeypatch, capsys)
    ran = 0
    for line in "".join(text for kind, text in blocks if kind == "bash").splitlines():
        words = shlex.split(line.replace("http://127.0.0.1:8000/v1", server.url), comments=True)
        if words[:2] == ["preftune", "prompts"]:
            done = run(*words[2:])
            assert done.code == 0, done.err
            ran += 1
        elif words[:2] != ["preftune", "serve"]:
            subprocess.run(line, shell=True, check=True)
    sys.modules.pop("makers", None)
    assert ran == 4
    assert list(read_pairs(tmp_path / "runs" / "pairs" / "pairs.jsonl"))
    sums = list(read_pairs(tmp_path / "published.jsonl"))
    assert [each.chosen for each in sums] == ["Add 19 and 23. Show each step.", "Add 7 and 5. Show each step."]

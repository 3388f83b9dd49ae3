"""`preftune prompts optimize` and `serve` as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from task_prompts import PLAN

from preftune.cli.prompting import options
from preftune.errors import PreftuneError
from preftune.evaluation.judges import EndpointUse
from preftune.prompting.optimize import Optimized, OptimizeSettings
from preftune.prompting.optimizing import optimize_given
from preftune.report.optimized import show

TESTS = Path(__file__).parents[1]
NAIVE = "Tom has 3 apples.\nHow many?"
BETTER = ("--model", "task_prompts:better")


def command(*words: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)]), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "preftune", "prompts", *words],
        input=given,
        capture_output=True,
        env=environment,
        timeout=120,
    )


def test_a_prompt_a_file_and_standard_input(tmp_path: Path) -> None:
    found = command("optimize", NAIVE, *BETTER)
    assert (found.returncode, found.stdout.decode(), found.stderr) == (0, NAIVE + PLAN + "\n", b"")
    found = command("optimize", *BETTER, given=b"\xef\xbb\xbfSay \xe2\x80\x9chi\xe2\x80\x9d.\r\n")
    assert (found.returncode, found.stdout.decode()) == (0, f"Say “hi”.{PLAN}\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"Count to {i}."}) + "\n" for i in range(3)))
    out = tmp_path / "out"
    first = command("optimize", "--file", str(rows), *BETTER, "--json", "--out", str(out))
    assert first.returncode == 0, first.stderr.decode()
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert [line["optimized"] for line in lines] == [f"Count to {i}.{PLAN}" for i in range(3)]
    written = (out / "optimized.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in written.splitlines()] == ["p0", "p1", "p2"]
    kept = {path: path.read_bytes() for path in (out / "kept").rglob("*.jsonl")}
    again = command("optimize", "--file", str(rows), *BETTER, "--json", "--out", str(out))
    assert (again.stdout, (out / "optimized.jsonl").read_bytes()) == (first.stdout, written)
    assert kept == {path: path.read_bytes() for path in (out / "kept").rglob("*.jsonl")}, "nothing is written twice"


def test_the_original_and_the_reason(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Add 2 and 3.\nWhy?\n", encoding="utf-8")
    found = command("optimize", "-f", str(prompts), "--model", "task_prompts:same", "--candidates", "1")
    assert (found.returncode, found.stdout.decode()) == (0, "Add 2 and 3.\n\nWhy?\n")
    told = found.stderr.decode().splitlines()
    assert told == [
        f"prompt {i}: left as it is: the rewrite is not used: it is the same as the prompt" for i in range(2)
    ]


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\x89PNG\xff\x00")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down = f"endpoint:http://127.0.0.1:{closed.getsockname()[1]}/v1#m"
    for words, given, told in (
        (("",), None, "the prompt is empty, expected text"),
        ((), b"\x89PNG\xff", "standard input is no UTF-8 text (byte 0): give text"),
        ((), b"a" * 100_000, "prompt 0 has 100,000 characters, expected at most 32,768"),
        (("-f", str(binary)), None, "is no UTF-8 text (byte 0)"),
        (("a", "--model", down, "--max-calls", "0"), None, "the budget of calls is 0, expected at least 1"),
        (("a", "--protect-pattern", "("), None, "--protect-pattern '(' is no regular expression"),
    ):
        model = () if "--model" in words else BETTER
        found = command("optimize", *words, *model, given=given)
        (line,) = found.stderr.decode().splitlines()
        assert (found.returncode, found.stdout) == (2, b""), words
        assert line.startswith("error: "), line
        assert told in line, line


def test_what_cannot_be_done_is_one_sentence(tmp_path: Path) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("a\n")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down = f"endpoint:http://127.0.0.1:{closed.getsockname()[1]}/v1#m"
        for prompt, file, model, told in (
            ("a", None, down, "gave no answer, asked 1 times"),
            ("a", None, " ", "nobody is named who rewrites"),
            ("a", None, "task_prompts:bettr", "task_prompts has no function 'bettr'"),
            ("a", rows, "sandbox", "give one of them"),
            (None, tmp_path / "none.txt", "sandbox", "does not exist"),
            ("a\udc89", None, "sandbox", "the prompt is no UTF-8 text"),
            ("a " * 4000, None, "sandbox", r"sandbox takes none of 1 prompts \(the prompt has"),
        ):
            with pytest.raises(PreftuneError, match=told):
                optimize_given(prompt, file, model, OptimizeSettings(), use=EndpointUse(retries=0))
    with pytest.raises(PreftuneError, match="--new-numbers is 'some', expected none, counters or any"):
        options.new_numbers("some")


def test_the_difference_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = Optimized("Add 2 and 3", "Please add 2 and 3", "", ())
    show([found], diff=True)
    assert capsys.readouterr().out == "prompt:\n[-Add-] 2 and 3\noptimised:\n{+Please add+} 2 and 3\n"


def test_the_server_serves_until_it_is_ended() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])}
    words = [sys.executable, "-m", "preftune", "prompts", "serve", "task_prompts:better", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        match = re.match(r"(http://\S+) serves task_prompts:better, which rewrites prompts; Ctrl-C ends it\n", line)
        assert match, line
        body = json.dumps({"prompt": NAIVE}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{match[1]}/completions", body)) as answer:
            assert json.loads(answer.read())["choices"][0]["text"] == NAIVE + PLAN
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        assert running.stdout.read() == "stopped\n"

"""A small world behind HTTP: models that rewrite sums, answer them, and judge answers; and the command line on it."""

from __future__ import annotations

import io
import json
import re
import sys
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from loopback import Body, Proxy, listening

from preftune import cli

MODELS = ("careful", "hasty", "forgetful", "adder", "picky", "fair", "first")
PROMPT = re.compile(r"\[Prompt\]\n(.*?)\n\[End of prompt\]", re.DOTALL)


def answered(path: str, body: Body) -> Body:
    """What each of the models says."""
    if path == "/v1/models":
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]}
    text = said(body["model"], body["messages"][-1]["content"])
    read = len(body["messages"][-1]["content"].split())
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": read, "completion_tokens": len(text.split())},
    }


def said(model: str, text: str) -> str:
    if model in ("careful", "hasty", "forgetful"):
        found = PROMPT.search(text)
        assert found is not None
        prompt = found[1]
        if model == "forgetful":  # loses a number
            return re.sub(r"\d+$", "it", prompt)
        return f"{prompt}\nWork step by step." if model == "careful" else f"{prompt}\nBe quick."
    if model == "picky" and "quick" in text:
        body = io.BytesIO(b'{"error": {"message": "no hurry here"}}')
        raise urllib.error.HTTPError("", 400, "Bad Request", Message(), body)
    if model in ("adder", "picky"):
        a, b = map(int, re.findall(r"\d+", text)[:2])
        return f"The answer is {a + b if 'step by step' in text else a + b + 1}"
    first, second = (int(each) for each in re.findall(r"The answer is (\d+)", text)[:2])
    if model == "first":
        return "Verdict: 1"
    a, b = map(int, re.findall(r"\d+", text[text.index("[Task]") :])[:2])
    return "Verdict: 1" if first == a + b else "Verdict: 2" if second == a + b else "Verdict: tie"


@contextmanager
def adding() -> Iterator[Proxy]:
    """The models, listening."""
    with listening(answered) as proxy:
        yield proxy


def sums(count: int) -> list[dict[str, Any]]:
    """Naive prompts with their right answers."""
    return [{"prompt": f"Add {i + 1} and {3 * i + 20}", "answer": 4 * i + 21} for i in range(count)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs `preftune prompts ...`; a traceback would come out as an exception."""

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["preftune", "prompts", *map(str, words)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        found = capsys.readouterr()
        return Said(code, found.out, found.err)

    return run

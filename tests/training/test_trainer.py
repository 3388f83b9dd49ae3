"""The loop around the step: what it looks at, and when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import miniatures
import pytest
import torch
from transformers import AutoTokenizer

import preftune
from preftune import api
from preftune.errors import PreftuneError
from preftune.policy.loading import built_in_folder
from preftune.training import feed, trainer
from preftune.training.scored import fetch
from preftune.training.step import Step

ROWS = [
    {
        "prompt": f"a {genre} about a {subject} .",
        "chosen": "the plot was good ." if i % 2 else "the music was great and the plot was good .",
        "rejected": "the plot was bad and the music was not good ." if i % 3 else "the plot was bad .",
    }
    for i, (genre, subject) in enumerate(
        (g, s) for g in ("comedy", "drama", "thriller") for s in ("city", "war", "family", "robot")
    )
]


@pytest.fixture(autouse=True)
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these runs, and have their tests."""
    monkeypatch.setattr(api, "write_report", lambda folder: None)


def run(folder: Path, rate: float = 1e-3, objective: Any = "dpo", **train: Any) -> preftune.Run:
    tokenizer = AutoTokenizer.from_pretrained(built_in_folder())
    blocks = {
        "data": {"held_out": 0},
        "batch": {"tokens": 80, "micro_tokens": 50},
        "optim": {"learning_rate": rate},
        "train": {"device": "cpu", "precision": "fp32", "log_every": 4, "max_steps": 10, **train},
        "evaluate": {"samples": 0},
    }
    lm = miniatures.build("qwen3", noise=0.15, vocab_size=len(tokenizer))
    return preftune.train(lm, ROWS, objective, tokenizer=tokenizer, output=folder, quiet=True, config=blocks)


def lines(done: preftune.Run) -> list[dict[str, Any]]:
    times = {"seconds", "pairs_per_second", "tokens_per_second"}
    read = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in times} for line in read]


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are looked at when a line is due, and batches are packed ahead."""
    monkeypatch.setattr(trainer, "AT_HAND", frozenset())
    monkeypatch.setitem(feed.AHEAD, "cpu", 2)


@pytest.mark.parametrize("objective", ["dpo", "bco"])
def test_when_values_are_fetched_changes_nothing(tmp_path, request, objective):
    at_once = run(tmp_path / "at once", objective=objective)
    request.getfixturevalue("like_a_gpu")
    late = run(tmp_path / "late", objective=objective)
    assert [line["step"] for line in lines(late)] == [4, 8, 10]
    assert lines(late) == lines(at_once)
    first, second = at_once.model.state_dict(), late.model.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_values_are_fetched_once_for_each_line(tmp_path, monkeypatch, like_a_gpu):
    fetched: list[int] = []
    monkeypatch.setattr(Step, "whole", lambda self, many: fetched.append(len(many)) or fetch(many))
    run(tmp_path / "run")
    assert fetched == [4, 4, 2]


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_that_explodes_stops_with_the_same_words_whenever_it_is_noticed(tmp_path, request, steps):
    def message(folder: Path) -> str:
        with pytest.raises(PreftuneError) as stopped:
            run(folder, rate=100.0, log_every=steps)
        return str(stopped.value)

    at_once = message(tmp_path / "at once")
    assert "before step" in at_once or "is not finite" in at_once
    request.getfixturevalue("like_a_gpu")
    assert message(tmp_path / "late") == at_once

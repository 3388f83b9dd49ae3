"""Tokenising in other processes: the same outcome, the same errors, and none that hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preftune.data import dataset, workers
from preftune.data.dataset import DataConfig, Examples
from preftune.data.rendering import RenderingConfig
from preftune.data.tokenising import Tokeniser
from preftune.data.workers import Workers, worker_count
from preftune.errors import PreftuneError
from preftune.sandbox.preferences import base_tokenizer, rows

LINE = b'0 %d ["Demonstration", "The music", " was vivid.", 1.0]\n'


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test tokenises for itself, in chunks of 16 records."""
    monkeypatch.setattr("preftune.data.tokenising.CHUNK", 16)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def prepared(given: list[Any], workers: int | None, **rendering: Any) -> Examples:
    config = DataConfig(workers=workers, rendering=RenderingConfig(**rendering))
    return dataset.render(dataset.read(config, given, 0), base_tokenizer(), config)


def arrow(cache: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((cache / "data" / "tokens").rglob("*.arrow"))]


def test_the_outcome_does_not_depend_on_the_number_of_processes(
    fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = rows(60)
    given[7] = {**given[7], "chosen": given[7]["chosen"] + " very" * 60}  # left out: too long
    alone = prepared(given, 1, max_length=60)
    (written,) = arrow(fresh_cache)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "other"))
    several = prepared(given, 2, max_length=60)
    assert arrow(tmp_path / "other") == [written]
    assert several.messages == alone.messages
    assert "1 left out: 1 because prompt and response are longer" in alone.messages[0]
    # what stops a run stops it in the same words
    given[20], given[50] = ({"prompt": "The", "chosen": f"{i}", "rejected": ""} for i in range(2))
    given[40] = {**given[40], "prompt": "The music was viv", "chosen": "id", "rejected": "ider"}
    said = []
    for count in (1, 2):
        with pytest.raises(PreftuneError) as raised:
            prepared(given, count)
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_a_process_that_ends_by_itself_and_one_that_refuses(fresh_cache: Path) -> None:
    tokenizer = base_tokenizer()
    tokenizer.eos_token = None
    lines = [[LINE % row] for row in range(9)]
    with Workers(Tokeniser(tokenizer, RenderingConfig()), ["f"], 1) as pool:
        (process,) = pool._processes
        refusing = pool.map(lines)
        with pytest.raises(PreftuneError, match="the tokenizer has no eos_token"):
            next(refusing)
    assert process.returncode == -signal.SIGKILL, "it is ended with the pool"
    with Workers(Tokeniser(base_tokenizer(), RenderingConfig()), ["f"], 1) as pool:
        found = pool.map(lines)
        assert len(next(found).batch) == 1
        os.kill(pool._processes[0].pid, signal.SIGKILL)
        with pytest.raises(PreftuneError, match=r"ended by itself \(exit code -9\): .*set data.workers to a smaller"):
            list(found)


def test_a_tokenizer_that_does_not_travel_works_here(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = rows(40)
    tokenizer = base_tokenizer()
    tokenizer.of_mine = lambda: None  # which cannot be pickled
    config = DataConfig(workers=2)
    found = dataset.render(dataset.read(config, given, 0), tokenizer, config)
    assert len(found.train) + len(found.held_out) == 40
    assert any("this process tokenises alone: the tokenizer cannot be handed on" in line for line in found.messages)


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert worker_count(None, 1_000, 1024) == 1, "small data is not worth another process"
    assert worker_count(None, 3 * workers.ENOUGH, 1024) == 3
    assert worker_count(None, 10**6, 1024) == 8
    assert worker_count(1, 10**6, 1024) == 1
    assert worker_count(12, 10**6, 1024) == 12
    assert worker_count(12, 3_000, 1024) == 3

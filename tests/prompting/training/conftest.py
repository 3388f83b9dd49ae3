"""A little optimiser that writes sentences that end, and rounds that were trained once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prompting.training.optimisers import OWN, PAIRS, TEMPLATE, Settings, config_of, in_rounds

from preftune.prompting.records import write_pairs
from preftune.prompting.training import Trained, train_prompts


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, a template, a user's own module, and a base model that has learned to rewrite a little."""
    path = tmp_path_factory.mktemp("optimisers")
    write_pairs(path / "pairs.jsonl", PAIRS)
    (path / "short.yaml").write_text(TEMPLATE)
    (path / "own.py").write_text(OWN)
    train_prompts(
        {
            "model": {
                "path": "scratch:qwen3",
                "scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "vocab_size": 300, "context": 256},
            },
            "data": {"path": str(path / "pairs.jsonl")},
            "objective": "sft",
            "prompts": {"template": str(path / "short.yaml"), "extra": True},
            "optim": {"learning_rate": 1e-2},
            "train": {"epochs": 8, "device": "cpu", "check_memory": False},
            "batch": {"size": 8},
            "evaluate": {"samples": 0},
            "output": {"path": str(path / "base")},
        },
        quiet=True,
    )
    return path


@pytest.fixture
def settings(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Makes a config whose run is a folder of this test."""
    monkeypatch.setattr(sys, "path", [str(world), *sys.path])
    return lambda name="run", **blocks: config_of(world, tmp_path / name, **blocks)


@pytest.fixture
def rounds(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    """Trains in rounds, in a folder of this test."""
    monkeypatch.setattr(sys, "path", [str(world), *sys.path])
    return lambda name="rounds", **blocks: train_prompts(in_rounds(world, tmp_path / name, **blocks), quiet=True)


@pytest.fixture(scope="session")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two rounds whose rewrites were accepted by lot; nobody changes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(world), *sys.path])
        found = train_prompts(in_rounds(world, tmp_path_factory.mktemp("trained") / "rounds"), quiet=True)
    assert 0 < found.rounds[0]["accepted"] < found.rounds[0]["proposed"]
    return found

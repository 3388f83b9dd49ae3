"""Runs of all kinds, trained once; and the built-in model behind HTTP, with something to break in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluation.runs import DATA, KINDS, SETTINGS, Made
from loopback import Proxy, forwarding, listening

from preftune import train
from preftune.serving.command import open_model
from preftune.serving.server import Server


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each kind of data."""
    folder, found = tmp_path_factory.mktemp("data"), {}
    for kind, lines in DATA.items():
        found[kind] = folder / f"{kind}.jsonl"
        found[kind].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


@pytest.fixture(scope="session")
def made(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Gives the folder of a run of a kind, which is trained once."""
    found: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in found:
            objective, data, blocks = KINDS[kind]
            folder = tmp_path_factory.mktemp("runs") / kind
            model = blocks.get("model", {}).get("path", "sandbox")
            train(
                model,
                files[data],
                objective,
                output=folder,
                quiet=True,
                config={**SETTINGS, **blocks},
                train={"max_steps": 4},
            )
            found[kind] = folder
        return found[kind]

    return make


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server(open_model("sandbox"), port=0) as running:
        yield running


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with listening(forwarding(server.url)) as between:
        yield between

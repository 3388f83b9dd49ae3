"""The built-in model behind HTTP, once for all tests of this folder, and something to break in between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loopback import Proxy, forwarding, listening

from preftune.serving.command import open_model
from preftune.serving.server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server(open_model("sandbox"), port=0) as running:
        yield running


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with listening(forwarding(server.url)) as between:
        yield between

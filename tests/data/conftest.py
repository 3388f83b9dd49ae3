from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.data.records import Record


@pytest.fixture
def shared_data() -> Path:
    """Real data that lies beside the repository and is no part of it."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data beside the repository is absent")
    return folder


@pytest.fixture
def read() -> Callable[..., list[Record]]:
    """Rows given in Python -> records."""
    from preftune.data import records, sources

    def read_rows(*rows: dict, layout: str | None = None, drops: records.Drops | None = None) -> list[Record]:
        return list(records.records(sources.rows(list(rows)), layout, drops))

    return read_rows

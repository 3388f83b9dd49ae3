"""Rows cost memory by the hundred bytes, whatever they hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "doctor.py"


@pytest.mark.slow
def test_memory_hardly_grows_with_the_rows() -> None:
    """A quick form of benchmarks/doctor.py: its bound, 300 bytes a pair, and a little for what differs from run to run.
    A pair's line is 580 bytes long, and took 2,600 as objects."""
    few, many = 1_000, 8_000
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, str(BENCHMARK), "--pairs", str(few), str(many), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    small, large = map(json.loads, done.stdout.splitlines())
    assert (small["rows"], large["rows"]) == (few, many)
    assert (large["peak_mb"] - small["peak_mb"]) * 2**20 < 300 * (many - few) + 6 * 2**20, done.stdout
    assert large["heavy"] == "[]", "neither torch nor transformers"
    for found in (small, large):
        assert found["found"]["near_duplicates"] == found["rows"] // 100
        assert found["found"]["contradictions"] == 2 * found["rows"] // 100

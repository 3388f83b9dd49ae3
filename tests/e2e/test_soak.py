"""A run whose processes are killed again and again ends as one that nobody disturbed; in full: make soak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "scripts" / "soak.py"


@pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/fd").exists(), reason="kills need Linux")
def test_promise_15_kill_9_at_any_moment_loses_nothing_but_the_steps_since_the_last_checkpoint(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    words = [sys.executable, str(SOAK), "--kills", "6", "--seed", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 6
    assert len(found["moments"]) >= 2

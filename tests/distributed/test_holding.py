"""A step whose gradient is not finite on one process changes the weights on none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.distributed import holding
from tests.distributed.conftest import ENVIRONMENT, TORCHRUN, WITH_DEEPSPEED, ZERO, asked, staged


@WITH_DEEPSPEED
@pytest.mark.parametrize("strategy", list(ZERO))
def test_an_infinite_loss_of_one_process_changes_no_weight(strategy: str, tmp_path: Path) -> None:
    words = [*TORCHRUN, str(Path(holding.__file__)), str(tmp_path / "run"), asked(strategy)]
    done = subprocess.run(words, env={**ENVIRONMENT, **staged(strategy)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "run" / "failure.json").is_file()

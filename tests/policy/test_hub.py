"""With a hub at which nobody answers: a port of this machine that is closed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.policy.loading import built_in_folder

COMMIT = "0123456789" * 4
LOAD = """
import sys
from preftune.policy.loading import ModelConfig, load
from preftune.errors import PreftuneError
try:
    loaded = load(ModelConfig(path=sys.argv[1], lora={"r": 2}), 0, list)
    print(loaded.lm.peft_config["default"].base_model_name_or_path, len(loaded.tokenizer))
except PreftuneError as error:
    print(error)
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that holds one model, org/name."""
    folder = tmp_path / "hub" / "models--org--name"
    shutil.copytree(built_in_folder(), folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return tmp_path


def load(path: str, cache: Path) -> str:
    """What loading says, all of it: retries would say so."""
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOAD, path],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_HOME": str(cache),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "OMP_NUM_THREADS": "1",
        },
        check=True,
    )
    return said.stdout + said.stderr


def test_an_id_that_cannot_be_had_is_refused_at_once_and_in_one_line(cache):
    said = load("org/other", cache)
    assert said.startswith("cannot load model org/other: it is no folder here and not in the cache, and the Hugging ")
    assert said.count("\n") == 1


def test_a_model_in_the_cache_needs_no_hub(cache):
    assert load("org/name", cache) == "org/name 96\n"

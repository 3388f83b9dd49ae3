"""How near methods come to the exact optimum: the quick form, through the front door; the full one is a make target."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.errors import PreftuneError
from preftune.sandbox import listed
from preftune.studies import reach
from preftune.studies.reach import PROMPTS, Reached

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    command = [sys.executable, "-W", "error", "-m", "preftune", "study", "reach", "--quick", "-o", "here"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"online DPO +│ 0 ", done.stdout)
    return folder / "here"


def test_each_method_gets_most_of_what_can_be_gained_and_none_beats_the_optimum(out: Path) -> None:
    found = [json.loads(line)["found"] for line in (out / "results.jsonl").read_text().splitlines()]
    assert [one["method"] for one in found] == ["PPO", "online DPO", "DPO"]
    for one in found:
        assert 0 <= one["regret"] < 0.25  # of a tenth of the samples that the full form takes
        assert 0.2 < one["kl"] < 3
        assert sum(one["components"].values()) == pytest.approx(one["reward"], abs=1e-6)
    assert [one["samples"] for one in found] == [3072, 4096, 4096]


def test_what_stands_there_is_not_run_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (out / "results.jsonl").read_bytes()
    monkeypatch.setattr(reach, "train", lambda *_, **__: pytest.fail("it was run again"))
    assert len(reach.study(out, quick=True)) == 3
    assert (out / "results.jsonl").read_bytes() == before


def test_results_that_are_damaged_are_named(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("{")
    with pytest.raises(PreftuneError, match=r"results\.jsonl cannot be read"):
        reach.study(tmp_path, quick=True)


def test_near_is_a_twentieth_where_half_of_all_can_be_gained() -> None:
    def one(regret: float, attainable: float) -> Reached:
        return Reached("DPO", 0, 1, 1.0, 1.0, {}, 1.0, regret, attainable)

    assert one(0.05, 0.5).held
    assert not one(0.051, 0.5).held
    assert not one(0.01, 0.49).held


def test_its_prompts_are_training_prompts_all_different() -> None:
    assert len(set(PROMPTS)) == 8
    assert set(PROMPTS) <= set(listed.TRAIN)


def test_the_makefile_runs_the_full_form() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^study-reach: .*\n\t.*preftune study reach --out ", makefile, re.M)

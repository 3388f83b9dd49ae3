"""The two roads in their quick form, from the command line: every stage is a real run in a process of its own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.errors import PreftuneError
from preftune.report.rlhf_vs_dpo import page
from preftune.studies import rlhf_vs_dpo
from preftune.studies.rlhf_vs_dpo import QUICK, Compared, Look, Memory, Stage, configs

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    command = [sys.executable, "-W", "error", "-m", "preftune", "study", "rlhf-vs-dpo", "--quick", "-q", "-o", "here"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Where each road leads" in done.stdout
    assert done.stderr == ""
    return folder / "here"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_stages_are_what_their_runs_say(out: Path) -> None:
    stages = rows(out / "stages.csv")
    assert [(one["road"], one["name"]) for one in stages] == [
        ("DPO", "DPO"),
        ("RLHF", "reward model"),
        ("RLHF", "PPO"),
    ]
    for one, folder in zip(stages, ("dpo", "reward-model", "ppo"), strict=True):
        run = out / "seed-0" / folder
        summary = json.loads((run / "summary.json").read_text())
        assert int(one["steps"]) == summary["steps"] > 0
        assert 0 < float(one["training"]) < float(one["wall"])
        sampled = [
            line["tokens_sampled"]
            for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if line["kind"] == "round"
        ]
        assert int(one["generated"]) == max(sampled, default=0)
        assert (int(one["generated"]) > 0) == (folder == "ppo")


def test_both_roads_begin_at_the_same_policy_and_leave_it(out: Path) -> None:
    looks = rows(out / "curves.csv")
    for road in ("DPO", "RLHF"):
        own = [look for look in looks if look["road"] == road]
        assert [int(look["step"]) for look in own] == sorted(int(look["step"]) for look in own)
        assert float(own[0]["kl"]) == 0
        assert float(own[-1]["kl"]) > 0.01
        for look in own:
            parts = sum(float(look[name]) for name in ("story", "acting", "craft"))
            assert parts == pytest.approx(float(look["reward"]), abs=1e-6)
    starts = [look for look in looks if look["step"] == "0"]
    assert starts[0]["reward"] == starts[1]["reward"]
    assert float(starts[1]["seconds"]) > float(starts[0]["seconds"]) == 0  # the reward model comes first


def test_memory_was_watched_in_every_stage(out: Path) -> None:
    seen = rows(out / "memory.csv")
    assert {one["stage"] for one in seen} == {"DPO", "reward model", "PPO"}
    for stage in ("DPO", "reward model", "PPO"):
        sizes = [int(one["bytes"]) for one in seen if one["stage"] == stage]
        assert len(sizes) > 20
        assert max(sizes) > 2e8  # torch alone


def test_the_page_holds_what_was_measured(out: Path) -> None:
    text = (out / "index.html").read_text(encoding="utf-8")
    for title in ("Where each road is after", "True reward against KL", "components of the reward", "Memory of each"):
        assert title in text
    assert "value network" in text


def test_seeds_that_are_done_are_kept(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = json.loads((out / "results.json").read_text())
    monkeypatch.setattr(rlhf_vs_dpo, "_memory", lambda *_: [Memory(**one) for one in kept["memory"]])
    monkeypatch.setattr(rlhf_vs_dpo, "_run", lambda *_, **__: pytest.fail("a stage was run again"))
    again = rlhf_vs_dpo.study(out, quick=True)
    assert [vars(stage) for stage in again.stages] == kept["stages"]


def test_a_seed_of_another_form_or_half_written_is_run_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, files = out / "seed-0" / "found.json", configs(QUICK)
    assert rlhf_vs_dpo._kept(kept, QUICK, files) is not None
    assert rlhf_vs_dpo._kept(kept, rlhf_vs_dpo.FULL, files) is None
    assert rlhf_vs_dpo._kept(kept, QUICK, {**files, "DPO": "seed: 1\n"}) is None
    half = out / "half.json"
    half.write_bytes(kept.read_bytes()[:100])
    assert rlhf_vs_dpo._kept(half, QUICK, files) is None
    half.unlink()


def test_a_stage_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**configs(QUICK), "DPO": "objective: {name: dpo, betta: 1}\n"}
    monkeypatch.setattr(rlhf_vs_dpo, "configs", lambda form: broken)
    with pytest.raises(PreftuneError, match=r"the stage DPO of seed 0 failed in .*seed-0: .*betta") as error:
        rlhf_vs_dpo.study(tmp_path, quick=True)
    assert len(str(error.value).splitlines()) == 1


def test_lines_settings_and_means_are_counted_by_hand() -> None:
    texts = {
        "DPO": "model:\n  path: sandbox\n\nobjective:\n  name: dpo\n  beta: 0.3\n",
        "PPO": "seed: 1\n",
        "reward model": "seed: 1\n",
    }
    parts = {"story": 0.1, "acting": 0.2, "craft": 0.3}
    stages = [
        Stage("DPO", "DPO", 0, 3.0, 1.0, 5, 0, 9, 10, 0.7),
        Stage("RLHF", "reward model", 0, 3.0, 1.0, 5, 0, 9, 10, 0.8),
        Stage("RLHF", "PPO", 0, 3.0, 3.0, 5, 70, 9, 10),
    ]
    looks = [Look(road, 0, 5, 1.0, 0, value, 1.0, 1.0, parts) for road, value in (("DPO", 0.6), ("RLHF", 0.5))]
    memory = [Memory(name, 100, [0.0], [1]) for name in ("DPO", "reward model", "PPO")]
    found = Compared(QUICK, stages, looks, memory, texts)
    assert found.lines("DPO") == 5
    assert found.settings("DPO") == {"objective.name": "dpo", "objective.beta": 0.3}
    assert "took 4.0 times DPO's training time; true reward went to 0.50" in page(found, "x").headline

"""Online runs from end to end, on the built-in world."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import miniatures
import pytest
import torch
from safetensors.torch import load_file

import preftune
import preftune.sandbox.preferences
from preftune.errors import PreftuneError
from preftune.rlhf import rounds
from preftune.sandbox.world import prompts
from preftune.training.stopping import Stopped

PROMPTS = [{"prompt": prompt} for prompt in prompts()[0][:24]]
APART = [{"prompt": prompt} for prompt in prompts()[1][:8]]
ONLINE = {"judge": "sandbox", "rounds": 3, "prompts": 8, "samples": 2, "max_new_tokens": 12, "held_out": 8}
SETTINGS = {
    "batch": {"size": 4},
    "optim": {"learning_rate": 1e-3},
    "evaluate": {"samples": 1, "max_new_tokens": 8},
    "doctor": {"answers": 2},
    "train": {"log_every": 1, "device": "cpu"},
    "output": {"save_every": 1, "keep_last": 9},
}
TIMES = {"seconds", "pairs_per_second", "tokens_per_second"}


def train(folder, objective="dpo", online=None, **settings):
    return preftune.train(
        "sandbox",
        PROMPTS,
        objective,
        held_out=APART,
        output=folder,
        quiet=True,
        config={**SETTINGS, **settings, "online": {**ONLINE, **(online or {})}},
    )


def lines(folder, kind=None):
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in TIMES}
        for line in found
        if kind in (None, line["kind"])
    ]


@pytest.mark.parametrize(
    ("objective", "online"),
    [
        ("dpo", {}),
        ({"name": "ipo", "tau": 0.5}, {"labels": "soft"}),
        ("simpo", {"labels": "sampled"}),
        ("kto", {}),
        ("sft", {"samples": 3}),
        ("plackett_luce", {"samples": 3}),
        ("odpo", {}),
        ("dpo", {"reference": "last_round"}),
        ("dpo", {"reference": "moving"}),
        ([{"name": "dpo"}, {"name": "sft", "weight": 0.1}], {}),
    ],
)
def test_every_kind_of_objective_learns_in_rounds(tmp_path, objective, online):
    run = train(tmp_path / "run", objective, online)
    found = lines(run.path, "round")
    assert [line["round"] for line in found] == [0, 1, 2]
    steps = run.summary["steps"] // 3
    assert [line["step"] for line in found] == [0, steps, 2 * steps]
    assert abs(found[0].get("kl", 0.0)) < 1e-4  # the policy as it began
    assert found[2]["tokens_sampled"] == sum(line["tokens"] for line in found)
    assert {"reward", "reward_ci95"} <= run.summary["after"].keys()
    start, end = preftune.sandbox.preferences.base_model().state_dict(), run.model.state_dict()
    assert any(not torch.equal(start[name], end[name]) for name in start)
    kept = [json.loads(line) for line in (run.path / "rollouts.jsonl").read_text().splitlines()]
    assert [line["round"] for line in kept] == [0] * 4 + [1] * 4 + [2] * 4


def test_the_reward_rises(tmp_path):
    """16 rounds of online DPO; a policy that did not learn would stay where it began, within 0.2."""
    rows = [{"prompt": prompt} for prompt in prompts()[0]]
    run = preftune.train(
        "sandbox", rows, {"name": "dpo", "beta": 0.3}, held_out=[{"prompt": p} for p in prompts()[1]],
        output=tmp_path / "run", quiet=True, batch={"size": 64}, optim={"learning_rate": 2e-3},
        evaluate={"samples": 0}, doctor={"answers": 0},
        online={"judge": "sandbox", "rounds": 16, "prompts": 128, "max_new_tokens": 40, "held_out": 128},
    )  # fmt: skip
    assert run.summary["before"]["reward"] < 0.2
    assert run.summary["after"]["reward"] > 0.8


def equal(folder, whole):
    """Two runs have come to the same, bit by bit."""
    assert lines(folder) == lines(whole)
    assert (folder / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()
    one, other = (load_file(path / "model" / "model.safetensors") for path in (folder, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("reference", ["fixed", "moving", "last_round"])
def test_a_run_that_is_stopped_again_and_again_ends_like_one_that_was_not(tmp_path, monkeypatch, reference):
    online = {"reference": reference, "epochs": 2}
    whole = train(tmp_path / "whole", "dpo", online).path
    learn, folder = rounds.Rounds.learn, tmp_path / "run"

    def stopping(self, micros, step):
        learn(self, micros, step)
        if step in (0, 3, 6):  # in the middle of a round, at its end, in the middle of the next
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(rounds.Rounds, "learn", stopping)
    with pytest.raises(Stopped):
        train(folder, "dpo", online)
    for _ in range(2):
        with pytest.raises(Stopped):
            preftune.resume(folder, quiet=True)
    equal(preftune.resume(folder, quiet=True).path, whole)


JUDGE = """
import os, signal
from pathlib import Path
from preftune.sandbox.world import true_reward

def judge(response):
    calls = Path("calls")
    calls.write_text(calls.read_text() + "." if calls.exists() else ".")
    if len(calls.read_text()) in ({}):
        os.kill(os.getpid(), signal.SIGKILL)
    return true_reward(response)
"""
TRAIN = """
import sys
sys.path[:0] = ["."]
import json, preftune
given = json.load(open("given.json"))
run = {"held_out": given["apart"], "output": "run", "quiet": True, "config": given["config"]}
preftune.train("sandbox", given["rows"], "dpo", **run)
"""


def test_a_run_that_is_killed_while_a_judge_scores_loses_nothing(tmp_path):
    """kill -9 in the first evaluation, in the middle of a round, and in the last evaluation."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([".", *sys.path])}
    online = {**ONLINE, "judge": "killing:judge"}
    given = {"rows": PROMPTS, "apart": APART, "config": {**SETTINGS, "online": online}}
    for name, calls in (("whole", "0,"), ("killed", "12, 50, 64")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "killing.py").write_text(JUDGE.format(calls))
        (folder / "given.json").write_text(json.dumps(given))
        (folder / "go.py").write_text(TRAIN)
        code = subprocess.run([sys.executable, "go.py"], cwd=folder, env=environment, capture_output=True).returncode
        for _ in range(4):
            if code == 0:
                break
            assert code == -signal.SIGKILL
            command = [sys.executable, "-m", "preftune", "train", "--resume", "run", "-q"]
            found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            code = found.returncode
        assert code == 0, found.stderr
    equal(tmp_path / "killed" / "run", tmp_path / "whole" / "run")
    assert len((tmp_path / "killed" / "calls").read_text()) > 64


def test_a_judge_that_fails_in_the_middle_leaves_a_checkpoint_from_which_the_run_goes_on(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole").path
    module = tmp_path / "flaky.py"
    module.write_text(
        "from preftune.sandbox.world import true_reward\nbad = False\n"
        "def judge(response):\n    return float('nan') if bad else true_reward(response)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import flaky  # type: ignore[import-not-found]

    learn = rounds.Rounds.learn

    def spoiling(self, micros, step):
        learn(self, micros, step)
        flaky.bad = step == 3

    monkeypatch.setattr(rounds.Rounds, "learn", spoiling)
    with pytest.raises(PreftuneError) as error:
        train(tmp_path / "run", "dpo", {"judge": "flaky:judge"})
    said = str(error.value)
    assert said.startswith("round 2: judge flaky:judge gave nan on answer 0 to row ")
    assert said.endswith(
        f"checkpoints/step-000004 is kept: mend it, then go on with preftune train --resume {tmp_path / 'run'}"
    )
    flaky.bad = False
    monkeypatch.setattr(rounds.Rounds, "learn", learn)
    folder = preftune.resume(tmp_path / "run", quiet=True).path
    equal(folder, whole)


def test_what_does_not_go_together_is_refused_before_anything_is_loaded(tmp_path):
    for objective, online, settings, said in (
        ("tdpo", {}, {}, "compares whole next-token distributions"),
        ("bradley_terry", {}, {}, "trains a reward model, which gives no answers"),
        ("dpo", {"samples": 1}, {}, "online.samples=1"),
        ("dpo", {"judge": "nobody"}, {}, "online.judge: there is no judge 'nobody'"),
        ("dpo", {}, {"reference": {"kind": "stored"}}, "reference.kind=stored is for data that is there"),
        ("dpo", {"reference": "last_round"}, {"reference": {"path": "sandbox"}}, "each say what the reference is"),
        ("dpo", {}, {"batch": {"tokens": 100}}, "set batch.size"),
        ("dpo", {}, {"evaluate": {"every": 1}, "output": {"keep_best": "loss"}}, "output.keep_best=loss"),
    ):
        with pytest.raises(PreftuneError, match=re.escape(said)):
            train(tmp_path / "run", objective, online, **settings)
        assert not (tmp_path / "run").exists()


def test_prompts_alone_are_for_online_runs(tmp_path):
    with pytest.raises(PreftuneError, match="the data has prompts alone, to which the policy samples answers"):
        preftune.train("sandbox", PROMPTS, "sft", output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_long_prompt_leaves_no_room(tmp_path):
    lm = miniatures.build("gpt2", max_position_embeddings=16, vocab_size=256)
    tokenizer = preftune.sandbox.preferences.base_tokenizer()
    rows = [{"prompt": " ".join(["The cast was good."] * 4)}, {"prompt": "A quiet drama about the sea."}]
    run = {"output": tmp_path / "run", "quiet": True, "tokenizer": tokenizer, "config": {**SETTINGS, "online": ONLINE}}
    with pytest.raises(PreftuneError, match=r"longer than max_length=16"):
        preftune.train(lm, rows[:1], "dpo", held_out=[], **run)

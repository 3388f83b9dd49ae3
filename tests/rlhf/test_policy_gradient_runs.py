"""Runs of PPO, RLOO and GRPO from end to end: their metrics, what reads a run, and stops at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import preftune
from preftune import PreftuneError, Run
from preftune.objectives import registry
from preftune.rlhf import rounds
from preftune.sandbox.preferences import pairs
from preftune.sandbox.world import prompts
from preftune.training.checkpoint import saved
from preftune.training.stopping import Stopped

PROMPTS = [{"prompt": prompt} for prompt in prompts()[0][:16]]
APART = [{"prompt": prompt} for prompt in prompts()[1][:4]]
PAIRS = [{"prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected} for one in pairs(32)]
ONLINE = {"judge": "sandbox", "rounds": 3, "prompts": 8, "samples": 3, "max_new_tokens": 10, "held_out": 4}
SETTINGS: dict[str, Any] = {
    "batch": {"size": 4},
    "optim": {"learning_rate": 1e-3},
    "evaluate": {"samples": 0},
    "doctor": {"answers": 0},
    "train": {"log_every": 1, "device": "cpu"},
    "output": {"save_every": 1, "keep_last": 9},
}
# with all of its settings at work
PPO = {
    "name": "ppo",
    "beta": 0.1,
    "target_kl": 0.05,
    "horizon": 50,
    "value_learning_rate": 3e-3,
    "whiten_rewards": True,
}
TIMES = {"seconds", "pairs_per_second", "tokens_per_second"}
ROLLOUTS = [name for name in registry.names() if registry.resolve(name).data == "rollouts"]


def train(folder: Path, objective: Any = "ppo", online: dict[str, Any] | None = None, **settings: Any) -> Run:
    config = {**SETTINGS, **settings, "online": {**ONLINE, **(online or {})}}
    return preftune.train("sandbox", PROMPTS, objective, held_out=APART, output=folder, quiet=True, config=config)


def lines(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in found if kind in (None, line["kind"])]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in kept]


def equal(folder: Path, whole: Path) -> None:
    """Two runs have come to the same, bit by bit."""
    assert lines(folder) == lines(whole)
    for name in ("rollouts.jsonl", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    last = f"checkpoints/step-{saved(whole)[-1]:06d}/state/tensors-0.safetensors"
    one, other = (load_file(path / last) for path in (folder, whole))  # the value network's, too
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of PPO that was never stopped."""
    return train(tmp_path_factory.mktemp("runs") / "whole", PPO).path


@pytest.mark.parametrize("objective", ROLLOUTS)
def test_every_objective_on_rollouts_learns_and_says_how_far_it_went(objective: str, tmp_path: Path) -> None:
    """Two passes over the answers of a round, in two steps each: ratios are 1 in the very first one alone."""
    run = train(tmp_path / "run", objective, {"epochs": 2})
    found = lines(run.path, "train")
    assert len(found) == 3 * 4
    for line in found:
        assert {"clipped", "ratio_mean", "ratio_max", "approx_kl"} <= line.keys()
        assert line["gradient_norm"] > 0
    assert found[0]["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert found[3]["ratio_max"] > 1.001
    assert found[3]["approx_kl"] > 0
    learned = [line["kl"] for line in lines(run.path, "round")]
    assert abs(learned[0]) < 1e-4
    assert learned[-1] != learned[0]
    assert {"reward", "kl"} <= run.summary["after"].keys()


def test_the_value_network_says_how_it_fares(whole: Path) -> None:
    made = lines(whole, "round")
    for line in made:
        assert {"value", "return", "value_explained", "advantage_sd", "kl_coefficient"} <= line.keys()
    assert made[0]["kl_coefficient"] == 0.1
    # 24 answers at 0 nats, 0.05 wanted: below by more than 20%, of which half a horizon counts
    assert made[1]["kl_coefficient"] == pytest.approx(0.1 * (1 - 0.2 * 24 / 50))
    steps = lines(whole, "train")
    assert {"value_loss", "value_clipped", "value_gradient_norm"} <= steps[0].keys()
    assert made[0]["value"] == 0  # a head of zeros
    assert made[2]["value"] != 0


def test_the_learning_rate_of_the_value_network_has_an_effect(whole: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "run", {**PPO, "value_learning_rate": 1e-4}).path
    assert lines(other, "round")[0]["reward"] == lines(whole, "round")[0]["reward"]
    assert lines(other, "round")[2]["value"] != lines(whole, "round")[2]["value"]


def test_what_reads_a_run_reads_these(whole: Path, tmp_path: Path) -> None:
    """Report, comparison, evaluation on pairs: the implicit reward is beta times the log-ratio."""
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "ppo" in page
    environment, data = {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    for command in (
        ["report", str(whole)],
        ["evaluate", str(whole), "--data", str(data), "--prompts", "4", "--max-new-tokens", "8"],
    ):
        told = subprocess.run(
            [sys.executable, "-m", "preftune", *command], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert told.returncode == 0, told.stderr
    found = json.loads((whole / "evaluation.json").read_text())
    assert found["pairs"]["margin"] == pytest.approx(0.1 * found["pairs"]["delta"])


def test_ppo_stopped_again_and_again_ends_like_one_that_was_not(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, folder = rounds.Rounds.learn, tmp_path / "run"

    def stopping(self: Any, micros: Any, step: int) -> None:
        learn(self, micros, step)
        if step in (0, 3):  # in the middle of a round, and at the end of the next
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(rounds.Rounds, "learn", stopping)
    with pytest.raises(Stopped):
        train(folder, PPO)
    with pytest.raises(Stopped):
        preftune.resume(folder, quiet=True)
    equal(preftune.resume(folder, quiet=True).path, whole)


KILLING = """
import json, os, signal, sys
from preftune.rlhf import critic
learn, at = critic.Critic.learn, int(sys.argv[1])

def killed(self, micros, step):
    found = learn(self, micros, step)
    if step == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return found

critic.Critic.learn = killed
import preftune
if os.path.exists("run/checkpoints"):
    preftune.resume("run", quiet=True)
else:
    given = json.load(open("given.json"))
    preftune.train("sandbox", given["rows"], given["objective"], held_out=given["apart"], output="run", quiet=True,
                   config=given["config"])
"""


def test_ppo_killed_between_the_two_networks_ends_like_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    """kill -9 when the value network has taken its step and nothing has been written, in the middle of a round."""
    given = {"rows": PROMPTS, "apart": APART, "objective": PPO, "config": {**SETTINGS, "online": ONLINE}}
    (tmp_path / "given.json").write_text(json.dumps(given))
    (tmp_path / "killing.py").write_text(KILLING)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for step, expected in ((2, -signal.SIGKILL), (99, 0)):
        told = subprocess.run(
            [sys.executable, "killing.py", str(step)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert told.returncode == expected, told.stderr
    equal(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "run"
    config = {"train": {"max_steps": 8}, "evaluate": {"samples": 0}, "data": {"held_out": 0}}
    preftune.train("sandbox", PAIRS, "bradley_terry", output=folder, quiet=True, config=config)
    return folder


def test_a_reward_model_judges_and_is_what_the_value_network_begins_as(reward_model: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", PPO, {"judge": f"reward:{reward_model}", "rounds": 1})
    assert lines(run.path, "round")[0]["value"] != 0  # it has an opinion from the start
    named = train(tmp_path / "named", PPO, {"value": str(reward_model), "rounds": 1})
    assert lines(named.path, "round")[0]["value"] == lines(run.path, "round")[0]["value"]


def test_what_a_value_network_cannot_begin_as_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    config = {"train": {"max_steps": 1}, "evaluate": {"samples": 0}, "data": {"held_out": 0}}
    preftune.train("scratch:llama", PAIRS, "bradley_terry", output=other, quiet=True, config=config)
    for value, said in (
        ("sandbox", "a value network cannot begin as sandbox, which is no reward model: name a run of"),
        (str(other), "has another tokenizer: name a reward model with the same one"),
        (str(tmp_path / "nothing"), "nothing"),
    ):
        with pytest.raises(PreftuneError, match=said) as raised:
            train(tmp_path / "run", PPO, {"value": value})
        assert "\n" not in str(raised.value)
    # as a judge it serves all the same, and the value network begins as the policy
    run = train(tmp_path / "judged", PPO, {"judge": f"reward:{other}", "rounds": 1})
    assert lines(run.path, "round")[0]["value"] == 0
    assert any("the value network begins as the policy" in message for message in run.summary["messages"])


def test_data_alone_is_refused_in_one_sentence(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "preftune", "train", "--model", "sandbox", "--data", "sandbox", "--objective", "ppo"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert told.returncode == 2
    assert "objective ppo learns from answers that the policy itself gives: add the block online" in " ".join(
        told.stderr.split()
    )
    assert not list(tmp_path.iterdir())

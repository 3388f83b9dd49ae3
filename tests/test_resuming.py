"""Promise 15: a run that is stopped anywhere and goes on ends as one that was never stopped, bit by bit."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

import preftune
from preftune import api
from preftune.errors import PreftuneError
from preftune.policy.loading import built_in_folder
from preftune.resuming import FREE
from preftune.training import checkpoint, feed, trainer
from preftune.training.step import Step
from preftune.training.stopping import Stopped

TIMES = {"seconds", "pairs_per_second", "tokens_per_second"}
ROWS = [
    {
        "prompt": f"a {genre} about a {subject} .",
        "chosen": f"the {subject} was good ." if i % 2 else f"the music was great and the {genre} was good .",
        "rejected": "the plot was bad and the music was not good ." if i % 3 else "the plot was bad .",
    }
    for i, (genre, subject) in enumerate(
        (g, s) for g in ("comedy", "drama", "thriller") for s in ("city", "war", "family", "robot")
    )
]
STEPS = 9


class Drawing(nn.Module):
    """A user's own module, which counts its forwards in a buffer and draws from a generator that is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed, self.lstm, self.head = nn.Embedding(200, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 200)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, input_ids: torch.Tensor) -> Any:
        hidden = self.lstm(self.embed(input_ids))[0]
        if self.training:
            self.count += 1
            hidden = hidden * float(np.random.rand())
        return SimpleNamespace(logits=self.head(hidden))


@pytest.fixture(autouse=True)
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these runs, and have their tests."""
    monkeypatch.setattr(api, "write_report", lambda folder: None)


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(built_in_folder())


def miniature(**overrides: Any) -> nn.Module:
    return miniatures.build("qwen3", noise=0.15, vocab_size=len(tokenizer()), **overrides)


def begin(folder: Path, lm: nn.Module, objective: Any, blocks: dict[str, Any]) -> preftune.Run:
    config: dict[str, Any] = {
        "data": {"held_out": 0.25},
        "batch": {"size": 4, "micro_size": 3},
        "optim": {"learning_rate": 1e-3},
        "train": {"device": "cpu", "precision": "fp32", "log_every": 4, "max_steps": STEPS, "check_memory": False},
        "evaluate": {"samples": 1, "max_new_tokens": 3, "every": 3},
    }
    for name, block in blocks.items():
        config[name] = {**config.get(name, {}), **block}
    return preftune.train(lm, ROWS, objective, tokenizer=tokenizer(), output=folder, quiet=True, config=config)


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that is there in the end, times apart."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    weights = sorted((folder / "model").glob("*.safetensors"))
    return {
        "metrics": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        "samples": (folder / "samples.jsonl").read_text() if (folder / "samples.jsonl").exists() else "",
        "weights": [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights],
        "figures": {key: summary[key] for key in ("steps", "examples", "before", "after", "doctor")},
    }


def stopping_at(monkeypatch: pytest.MonkeyPatch, *moments: int, name: str = "take") -> None:
    """Ask this process to stop, as schedulers do, in the midst of some of the calls of one of the step's methods."""
    original, calls = getattr(Step, name), 0

    def counted(self: Step, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in moments:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Step, name, counted)


def stopped_and_resumed(
    folder: Path, make: Callable[[], nn.Module], objective: Any, blocks: dict[str, Any], stops: int
) -> None:
    with pytest.raises(Stopped) as stop:
        begin(folder, make(), objective, blocks)
    assert stop.value.code == 128 + signal.SIGTERM
    for _ in range(stops - 1):
        with pytest.raises(Stopped):
            preftune.resume(folder, model=make(), tokenizer=tokenizer(), quiet=True)
    assert not (folder / "summary.json").exists()
    preftune.resume(folder, model=make(), tokenizer=tokenizer(), quiet=True)


LORA = {"model": {"lora": {"r": 4, "dropout": 0.3}}}
CASES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "full": (lambda: miniature(attention_dropout=0.2), "dpo", {}),
    "adapters": (miniature, "ipo", LORA),
    "stored reference": (miniature, "dpo", {"reference": {"kind": "stored"}}),
    "running state": (miniature, [{"name": "bco", "weight": 1.0}, {"name": "beta_dpo", "weight": 0.5}], {}),
    "other prompts": (miniature, "kto", {}),
    "no reference": (miniature, "simpo", {"train": {"epochs": 4, "max_steps": None}, "data": {"held_out": 0}}),
    "bf16": (miniature, "dpo", {"train": {"precision": "bf16"}}),
    "by tokens, padded": (miniature, "dpo", {"batch": {"tokens": 120, "size": None}, "model": {"layout": "padded"}}),
    "own module": (Drawing, "dpo", {"model": {"layout": "padded"}}),
    "8-bit moments": (lambda: miniature(hidden_size=128), "dpo", {"optim": {"name": "adamw_8bit"}}),
}


@pytest.mark.parametrize("name", CASES)
def test_promise_15_a_stopped_run_ends_as_if_it_never_was(tmp_path, monkeypatch, name):
    if name == "8-bit moments" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    make, objective, blocks = CASES[name]
    np.random.seed(0)
    begin(tmp_path / "calm", make(), objective, blocks)
    np.random.seed(0)
    stopping_at(monkeypatch, 2, 6, 7)  # within a window, where an evaluation is due, and right after it
    stopped_and_resumed(tmp_path / "stopped", make, objective, blocks, 3)

    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "calm")
    resumed = json.loads((tmp_path / "stopped" / "manifest.json").read_text())["resumed"]
    assert [one["step"] for one in resumed] == [2, 6, 7]


def test_values_that_are_fetched_late_are_not_lost(tmp_path, monkeypatch):
    begin(tmp_path / "calm", miniature(), "dpo", {})
    monkeypatch.setattr(trainer, "AT_HAND", frozenset())
    monkeypatch.setitem(feed.AHEAD, "cpu", 2)
    stopping_at(monkeypatch, 2, 7)
    stopped_and_resumed(tmp_path / "stopped", miniature, "dpo", {}, 2)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "calm")


@pytest.mark.parametrize("call", [1, 4])
def test_a_look_at_the_start_or_the_end_is_broken_off_and_done_again(tmp_path, monkeypatch, capfd, call):
    """Nothing is to be finished there, however much time there is."""
    begin(tmp_path / "calm", miniature(), "dpo", {})
    original, calls = Step.evaluate, 0

    def stopped(self: Step, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                signal.pause()
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "evaluate", stopped)
        with pytest.raises(Stopped) as stop:
            begin(tmp_path / "run", miniature(), "dpo", {})
    assert stop.value.code == 143
    when = "before it trained" if call == 1 else f"after step {STEPS} of {STEPS}, with a checkpoint"
    assert str(stop.value) == f"SIGTERM stopped the run {when}; to go on: preftune train --resume {tmp_path / 'run'}"
    assert "note: SIGTERM: stopping\n" in capfd.readouterr().err
    go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm")


def test_a_signal_while_the_model_is_saved_lets_the_run_end(tmp_path, monkeypatch, capfd):
    original = api.save

    def save(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(api, "save", save)
    run = begin(tmp_path / "run", miniature(), "dpo", {})
    assert run.summary["steps"] == STEPS
    assert "note: SIGTERM: the run has come to its end, and is being saved\n" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["gradient", "evaluate"])
def test_what_outlasts_the_grace_is_broken_off_and_done_again(tmp_path, monkeypatch, name):
    """The signal comes in the midst of a step, or of an evaluation, which would take longer than there is time."""
    blocks = {"train": {"grace_seconds": 0.0}}
    begin(tmp_path / "calm", miniature(), "dpo", blocks)
    original, calls = getattr(Step, name), 0

    def slow(self: Step, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        found = original(self, *args, **kwargs)
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):  # a sleep in one piece would not be broken off
                signal.pause()
        return found

    monkeypatch.setattr(Step, name, slow)
    with pytest.raises(Stopped, match="SIGTERM stopped the run after step") as stop:
        begin(tmp_path / "stopped", miniature(), "dpo", blocks)
    assert f"after step {2 if name == 'gradient' else 6} of {STEPS}" in str(stop.value)
    preftune.resume(tmp_path / "stopped", model=miniature(), tokenizer=tokenizer(), quiet=True)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "calm")


def test_saving_changes_nothing(tmp_path):
    begin(tmp_path / "calm", miniature(), "dpo", {})
    begin(tmp_path / "saving", miniature(), "dpo", {"output": {"save_every": 2, "save_minutes": 1e-6}})
    assert outcome(tmp_path / "saving") == outcome(tmp_path / "calm")
    assert checkpoint.saved(tmp_path / "saving") == [8, 9]


def test_the_best_is_kept_beside_the_last(tmp_path):
    blocks = {"output": {"keep_best": "loss", "keep_last": 1, "save_every": 1}, "evaluate": {"every": 1}}
    run = begin(tmp_path / "run", miniature(), "dpo", {**blocks, "optim": {"learning_rate": 3e-2}})
    looks = {line["step"]: line["loss"] for line in run.history if line["kind"] == "eval" and line["step"]}
    best = min(looks, key=lambda step: looks[step])
    assert run.summary["best"]["step"] == best
    assert run.summary["best"]["value"] == looks[best]
    assert set(checkpoint.saved(run.path)) == ({best, STEPS} if best != STEPS else {STEPS} | set(looks) & {STEPS - 1})
    assert (run.path / run.summary["best"]["folder"] / "model.safetensors").is_file()


def test_a_metric_that_is_none_is_refused(tmp_path):
    blocks = {"output": {"keep_best": "los"}}
    with pytest.raises(PreftuneError, match=r"output\.keep_best=los is no held-out metric of this run; known: .*loss"):
        begin(tmp_path / "new" / "run", miniature(), "dpo", blocks)
    assert not (tmp_path / "new").exists()
    nothing = {"output": {"keep_best": "loss"}, "data": {"held_out": 0}}
    with pytest.raises(PreftuneError, match=r"but nothing is held out: set data\.held_out"):
        begin(tmp_path / "run", miniature(), "dpo", nothing)
    with pytest.raises(PreftuneError, match=r"output\.keep_best=loss compares .* but evaluate\.every is not"):
        begin(tmp_path / "other", miniature(), "dpo", {"output": {"keep_best": "loss"}, "evaluate": {"every": None}})


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped after four steps, with checkpoints of steps 2 and 4."""
    with monkeypatch.context() as patch:
        stopping_at(patch, 4)
        with pytest.raises(Stopped):
            begin(tmp_path / "run", miniature(), "dpo", {"output": {"save_every": 2}})
    assert checkpoint.saved(tmp_path / "run") == [2, 4]
    return tmp_path / "run"


def go_on(folder: Path, **others: Any) -> preftune.Run:
    return preftune.resume(folder, **{"model": miniature(), "tokenizer": tokenizer(), "quiet": True, **others})


def test_a_damaged_checkpoint_is_skipped_with_a_message(stopped, monkeypatch, capsys):
    file = stopped / "checkpoints" / "step-000004" / "state" / "tensors-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with monkeypatch.context() as patch:
        stopping_at(patch, 1)
        with pytest.raises(Stopped):
            go_on(stopped)
    said = capsys.readouterr().err
    assert "step-000004 is damaged (state/tensors-0.safetensors has changed): it is skipped" in said
    assert "going on from" in said
    assert checkpoint.saved(stopped) == [2, 3], "what is damaged pushes out nothing that is whole"
    assert (stopped / "checkpoints" / "damaged-000004").is_dir()
    go_on(stopped)
    assert [line["step"] for line in preftune.Run(stopped).history] == [0, 3, 3, 4, 6, 6, 8, 9, 9]


def test_without_a_whole_checkpoint_training_begins_anew(stopped, tmp_path, capsys):
    shutil.rmtree(stopped / "checkpoints")
    go_on(stopped)
    assert "has no whole checkpoint: training begins at step 0" in capsys.readouterr().err
    begin(tmp_path / "calm", miniature(), "dpo", {"output": {"save_every": 2}})
    assert outcome(stopped) == outcome(tmp_path / "calm")


def test_a_run_that_ended_is_given_back(stopped):
    done = go_on(stopped)
    weights = outcome(stopped)
    again = preftune.resume(stopped)
    assert (again.path, again.summary) == (done.path, done.summary)
    assert outcome(stopped) == weights


def test_a_moved_run_goes_on(stopped, tmp_path, monkeypatch):
    """With its rows, which lie in its folder."""
    stopped.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert go_on(tmp_path / "moved").summary["steps"] == STEPS


def test_what_may_change_takes_effect(stopped):
    run = go_on(stopped, changes=["optim.learning_rate=1e-5", "train.log_every=1", "output.save_every=null"])
    manifest = json.loads((stopped / "manifest.json").read_text())
    assert manifest["resumed"][0]["changes"] == [
        "optim.learning_rate=1e-5",
        "train.log_every=1",
        "output.save_every=null",
    ]
    assert [line["step"] for line in run.history if line["kind"] == "train"] == [3, 4, 5, 6, 7, 8, 9]
    assert run.history[-2]["learning_rate"] < 1e-5
    assert checkpoint.saved(stopped) == [2, 4]


def test_another_metric_for_the_best_begins_anew(tmp_path, monkeypatch):
    blocks = {"output": {"keep_best": "loss"}, "evaluate": {"every": 1}}
    with monkeypatch.context() as patch:
        stopping_at(patch, 4)
        with pytest.raises(Stopped):
            begin(tmp_path / "run", miniature(), "dpo", blocks)
    run = go_on(tmp_path / "run", changes=["output.keep_best=margin"])
    assert run.summary["best"]["metric"] == "margin"
    assert run.summary["best"]["step"] > 4


def test_a_folder_that_cannot_be_written_to_is_refused(stopped, monkeypatch):
    def refused(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "truncate", refused)
    with pytest.raises(PreftuneError, match=r"cannot go on in .*run \(Permission denied\)"):
        go_on(stopped)


def test_keys_that_may_change_exist():
    from preftune.config import RunConfig

    for key in FREE:
        block, name = key.split(".")
        assert name in type(getattr(RunConfig(), block)).model_fields


def test_what_a_run_began_with_must_be_the_same(stopped, tmp_path):
    with pytest.raises(PreftuneError, match=r"batch\.size cannot change when a run goes on"):
        go_on(stopped, changes=["batch.size=8"])
    with pytest.raises(PreftuneError, match=r"the model of .*run was given as an object: give it again"):
        preftune.resume(stopped)
    other = miniature()
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-3
    with pytest.raises(PreftuneError, match=r"the model that .*run began with has changed \(start_sha256"):
        go_on(stopped, model=other)
    before = (stopped / "metrics.jsonl").read_bytes()
    data = stopped / "data" / "train.jsonl"
    content = data.read_text()
    data.write_text(content.replace("good", "fine", 1))
    with pytest.raises(PreftuneError, match=r"the data has changed since .*run began \(data_sha256"):
        go_on(stopped)
    data.write_text(content)
    assert (stopped / "metrics.jsonl").read_bytes() == before
    with pytest.raises(PreftuneError, match=r"none is no run folder, it has no config\.yaml"):
        preftune.resume(tmp_path / "none")
    (stopped / "metrics.jsonl").write_bytes(before[:10])
    with pytest.raises(PreftuneError, match=r"metrics\.jsonl is shorter than it was at the checkpoint"):
        go_on(stopped)
    (stopped / "metrics.jsonl").write_bytes(before)
    go_on(stopped)


def test_two_processes_do_not_train_in_one_folder(stopped):
    handle = os.open(stopped, os.O_RDONLY)
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(PreftuneError, match="another process is training in"):
            go_on(stopped)
        with pytest.raises(PreftuneError, match="another process is training in"):
            api.train(miniature(), ROWS, "dpo", tokenizer=tokenizer(), output=stopped, overwrite=True, quiet=True)
    finally:
        os.close(handle)
    go_on(stopped)


def test_a_failed_step_leaves_its_rows_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    """As if a memory fault had struck the weights."""
    original, calls = Step.take, 0

    def struck(self: Step, *args: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, *args)
        if calls == 5:
            with torch.no_grad():
                next(self.policy.parameters()).fill_(torch.nan)

    blocks = {"output": {"save_every": 1}}
    begin(tmp_path / "calm", miniature(), "dpo", blocks)
    monkeypatch.setattr(Step, "take", struck)
    with pytest.raises(PreftuneError, match=r"failure\.json in the run folder lists the batch's rows") as stop:
        begin(tmp_path / "run", miniature(), "dpo", blocks)
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["reason"] in str(stop.value)
    assert failure["step"] == 6
    assert 0 < len(failure["rows"]) <= 4
    assert {one["row"] for one in failure["prompts"]} == set(failure["rows"])
    assert all("about a" in one["prompt"] for one in failure["prompts"])
    assert checkpoint.saved(tmp_path / "run") == [4], "the weights of step 5 gave that loss"
    assert failure["last_checkpoint"] == "checkpoints/step-000004"
    assert str(stop.value).endswith("and the last good checkpoint is checkpoints/step-000004")
    assert not (tmp_path / "run" / "summary.json").exists()

    go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm")
    assert not (tmp_path / "run" / "failure.json").exists()

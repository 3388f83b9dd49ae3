"""The doctor at a trainer's side: stops on a rule, and judges a run that goes on as one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from scenarios import world

import preftune
from preftune import api
from preftune.errors import PreftuneError
from preftune.policy.compiling import compiled, uncompiled
from preftune.policy.policy import PolicyModule
from preftune.sandbox.preferences import base_model, rows
from preftune.training import checkpoint
from preftune.training.step import Step
from preftune.training.stopping import Stopped

TIMES = {"seconds", "pairs_per_second", "tokens_per_second"}
WILD: dict[str, Any] = {
    "batch": {"size": 16},
    "evaluate": {"every": 2, "max_new_tokens": 20},
    "train": {"log_every": 1, "device": "cpu", "check_memory": False, "max_steps": 8},
}
OBJECTIVE = {"name": "dpo", "beta": 0.3}


@pytest.fixture(autouse=True)
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these runs, and have their tests."""
    monkeypatch.setattr(api, "write_report", lambda folder: None)


def begin(folder: Path, rate: float = 1e-2, **doctor: Any) -> preftune.Run:
    config = {**WILD, "optim": {"learning_rate": rate}, "doctor": {"kl_per_token": 0.05, **doctor}}
    held_out = world(32, 1000, apart=True)
    return preftune.train(
        "sandbox", world(128, 0), OBJECTIVE, held_out=held_out, output=folder, quiet=True, config=config
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in every]


def test_a_rule_stops_the_run_which_goes_on_in_spite_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm = begin(tmp_path / "calm")
    (fired,) = [line["step"] for line in lines(calm.path) if line.get("rule") == "kl_blow_up"]
    assert 0 < fired < 8
    assert capsys.readouterr().err.count("warning: kl blow up: ") == 1

    with pytest.raises(PreftuneError) as stop:
        begin(tmp_path / "run", stop="kl_blow_up")
    said = str(stop.value)
    assert said.startswith(
        f"the training doctor stopped the run (doctor.stop) at step {fired}, warning: kl blow up: KL to"
    )
    assert said.endswith(
        f"{checkpoint.name_of(fired)} is kept, and preftune train --resume {tmp_path / 'run'} goes on in spite of it"
    )
    assert checkpoint.saved(tmp_path / "run") == [fired]
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "failure.json").exists()

    again = preftune.resume(tmp_path / "run", quiet=True)
    assert lines(again.path) == lines(calm.path)
    assert again.summary["doctor"] == calm.summary["doctor"]


def test_the_doctor_of_a_run_that_goes_on_has_seen_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = begin(tmp_path / "calm")
    original, calls = Step.take, 0

    def counted(self: Step, *args: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, *args)
        if calls in (1, 5):  # before anything fired, and after
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Step, "take", counted)
    with pytest.raises(Stopped):
        begin(tmp_path / "run")
    with pytest.raises(Stopped):
        preftune.resume(tmp_path / "run", quiet=True)
    again = preftune.resume(tmp_path / "run", quiet=True)
    assert any(line["kind"] == "doctor" for line in lines(calm.path))
    assert lines(again.path) == lines(calm.path)
    assert again.summary["doctor"] == calm.summary["doctor"]


def test_what_shows_before_training_stops_before_training(tmp_path: Path) -> None:
    given = {**WILD, "doctor": {"stop": ["mis_set_beta"]}}
    objective = {"name": "dpo", "beta": 1e-3}
    with pytest.raises(
        PreftuneError, match=r"at step 0, warning: mis set beta: the objective pulls until a pair differs"
    ):
        preftune.train("sandbox", world(128, 0), objective, output=tmp_path / "run", quiet=True, config=given)
    assert checkpoint.saved(tmp_path / "run") == [0]
    assert preftune.resume(tmp_path / "run", quiet=True).summary["steps"] == 8


def test_information_stops_nothing_unless_it_is_named(tmp_path: Path) -> None:
    run = begin(
        tmp_path / "any", kl_per_token=50, chosen_fall=0.0, stop=["any"], off=["likelihood_displacement", "no_stop"]
    )
    fired = {line["rule"]: line["severity"] for line in lines(run.path) if line["kind"] == "doctor"}
    assert fired == {"chosen_likelihood_falls": "information"}
    assert [line["rule"] for line in run.summary["doctor"]] == list(fired)
    with pytest.raises(PreftuneError, match="information: chosen likelihood falls"):
        begin(tmp_path / "named", 1e-3, chosen_fall=0.0, stop=["chosen_likelihood_falls"])


def test_without_answers_nothing_is_sampled(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", answers=0)
    assert not any(key.startswith("sample_") for line in lines(run.path) for key in line)
    texts = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    many = begin(tmp_path / "many")
    assert [json.loads(line) for line in (many.path / "samples.jsonl").read_text().splitlines()] == texts
    assert len(texts) == 8


def test_answers_are_written_by_layers_as_they_are() -> None:
    """Compiled ones would be compiled again for each token."""
    policy = PolicyModule(base_model(), "tree")
    layers = list(policy.base.model.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        with compiled([policy]):
            assert all(layer._compiled_call_impl is not None for layer in layers)
            with uncompiled(policy):
                assert all(layer._compiled_call_impl is None for layer in layers)
            assert all(layer._compiled_call_impl is not None for layer in layers)


def test_the_command_ends_with_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(96)))
    words = ["--model", "sandbox", "--data", "pairs.jsonl", "--out", "run", "-q", "doctor.stop=any"]
    words += ["objective.beta=0.001", "evaluate.samples=0", "train.device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "preftune", "train", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error: the training doctor stopped the run (doctor.stop) at step 0, warning: mis set beta: "
    )
    assert last.endswith("checkpoints/step-000000 is kept, and preftune train --resume run goes on in spite of it")
    assert "Traceback" not in done.stderr

"""Keys that change nothing are said to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import preftune
from preftune import PreftuneError, __version__
from preftune.cli import app
from preftune.sandbox.preferences import pairs

QUICK_BLOCKS: dict[str, Any] = {"train": {"max_steps": 1}, "evaluate": {"samples": 0}}
QUICK: dict[str, Any] = {**QUICK_BLOCKS, "quiet": True}


def test_keys_without_effect_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = {
        "train": {"max_steps": 1, "epochs": 3},
        "evaluate": {"samples": 0, "max_new_tokens": 5, "temperature": 0.5, "every": 1},
        "output": {"path": str(tmp_path / "run"), "keep_last": 7, "save_minutes": None},
        "data": {"held_out": 0},
    }
    run = preftune.train("sandbox", pairs(16), "dpo", config=config, quiet=True)
    said = [
        "train.epochs=3 has no effect: train.max_steps=1 decides how long",
        "output.keep_last=7 has no effect: neither output.save_every nor save_minutes is set",
        "evaluate.max_new_tokens=5 has no effect: evaluate.samples is 0",
        "evaluate.temperature=0.5 has no effect: evaluate.samples is 0",
        "evaluate.every=1 has no effect: nothing is held out",
    ]
    assert run.summary["messages"][-5:] == said
    shown = capfd.readouterr().err
    assert all(sentence in shown for sentence in said), "notes are shown without a progress bar too"


def test_a_run_with_nothing_amiss_says_nothing(tmp_path: Path) -> None:
    assert preftune.train("sandbox", pairs(16), "dpo", output=tmp_path / "run", **QUICK).summary["messages"] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": {"rendering": {"chat_template": "{{ messages }}"}}}, r"the data is plain text.*text_as_chat=true"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=said) as raised:
        preftune.train("sandbox", pairs(16), "dpo", output=tmp_path / "run", config={**QUICK_BLOCKS, **settings})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_the_version_is_an_option_and_a_command() -> None:
    for words in (["--version"], ["version"]):
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, result.output.strip()) == (0, __version__)


def test_seeds_beyond_torchs_are_refused_on_the_command_line() -> None:
    for words in (["demo", "--seed", str(2**63)], ["demo", "--pairs", "99999999999"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert "less than or equal to" in result.output


def test_what_an_objective_has_to_say_is_said(tmp_path: Path) -> None:
    objective = {"name": "psi_po", "psi": "square", "modifiers": {"average": "mean"}}
    run = preftune.train("sandbox", pairs(16), objective, output=tmp_path / "run", **QUICK)
    assert any("antisymmetrised" in message for message in run.summary["messages"])

"""Keys that would change nothing are refused, or said to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import preftune
from preftune import PreftuneError, __version__
from preftune.cli import app
from preftune.sandbox.preferences import pairs

QUICK: dict[str, Any] = {"train": {"max_steps": 1}, "evaluate": {"samples": 0}, "quiet": True}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"output": {"keep": 7}}, r"output\.keep=7 .* but output\.save_every is not set"),
        ({"evaluate": {"samples": 0, "temperature": 0.5}}, r"evaluate\.temperature is about samples"),
        ({"evaluate": {"samples": 0, "max_new_tokens": 5}}, r"evaluate\.max_new_tokens is about samples"),
        (
            {"evaluate": {"every": 1, "samples": 0}, "data": {"held_out": 0}},
            r"evaluate\.every asks .* set data\.held_out",
        ),
        ({"data": {"rendering": {"chat_template": "{{ messages }}"}}}, r"the data is plain text.*text_as_chat=true"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_a_key_without_effect_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    config = {"train": {"max_steps": 1}, **settings}
    config["output"] = {"path": str(tmp_path / "run"), **settings.get("output", {})}
    with pytest.raises(PreftuneError, match=said) as raised:
        preftune.train("sandbox", pairs(16), "dpo", config=config, quiet=True)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_max_steps_before_epochs_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {**QUICK, "train": {"max_steps": 1, "epochs": 3}}
    run = preftune.train("sandbox", pairs(16), "dpo", output=tmp_path / "run", **settings)
    said = "train.max_steps=1 decides how long, not train.epochs=3"
    assert said in run.summary["messages"]
    assert said in capfd.readouterr().err, "notes are shown without a progress bar too"


def test_the_version_is_an_option_and_a_command() -> None:
    for words in (["--version"], ["version"]):
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, result.output.strip()) == (0, __version__)


def test_seeds_beyond_torchs_are_refused_on_the_command_line() -> None:
    for words in (["demo", "--seed", str(2**63)], ["demo", "--pairs", "99999999999"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert "less than or equal to" in result.output

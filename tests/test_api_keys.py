"""The command that started a process, as kept in what it writes."""

import sys
from pathlib import Path

import pytest

import preftune
from preftune.api_keys import this_command


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([str(Path(preftune.__file__).parent / "__main__.py"), "demo"], "preftune demo"),
        (["/usr/bin/preftune", "train", "a b", "--token", "abc"], "preftune train 'a b' --token ***"),
        (["/home/me/other/__main__.py"], "__main__.py"),
        (["train.py", "1"], "train.py 1"),
        ([""], "python"),
    ],
)
def test_this_command_is_what_one_would_type_again(
    words: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    assert this_command() == shown

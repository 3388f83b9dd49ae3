"""Words and their numbers."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.doctor.words import answer, asked, grams, mixed, plain, words
from preftune.data.records import Message

TURNS = (Message("system", "Be brief."), Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Bye"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't stop, NOW!", ["don", "t", "stop", "now"]),
        ("größer als 3.5", ["größer", "als", "3", "5"]),
        ("我爱你 yes", ["我", "爱", "你", "yes"]),
        ("?!", []),
    ],
)
def test_words_are_in_lower_case_and_characters_where_no_spaces_are_written(text: str, found: list[str]) -> None:
    assert words(text) == found


@given(st.lists(st.sampled_from("abcde"), max_size=12), st.integers(1, 4))
def test_runs_are_equal_exactly_where_their_words_are(said: list[str], n: int) -> None:
    found = grams(said, n)
    n = min(n, len(said))
    runs = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)] if said else []
    assert len(found) == len(runs)
    assert len(np.unique(found)) == len(set(runs))
    for one, number in zip(runs, found.tolist(), strict=True):
        assert runs.index(one) == found.tolist().index(number)


def test_salt_and_length_tell_runs_apart() -> None:
    assert grams(["a"], 1) != grams(["a"], 1, salt=5)
    assert len(np.unique(np.concatenate([grams(["a"] * 4, n) for n in (1, 2, 3)]))) == 3


def test_numbers_are_the_same_in_every_process() -> None:
    script = "from preftune.data.doctor.words import grams; print(grams('a b c ü'.split(), 2).tolist())"
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{grams('a b c ü'.split(), 2).tolist()}\n"}


def test_many_runs_do_not_collide_and_fill_all_bits() -> None:
    number = [str(i) for i in range(300)]
    found = np.unique(np.concatenate([grams([a, b], 2) for a in number for b in number]))
    assert len(found) == 90_000
    shares = [((found >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(64)]
    assert 0.49 < min(shares) <= max(shares) < 0.51
    assert len(np.unique(mixed(np.arange(1000, dtype=np.uint64)))) == 1000


def test_what_is_read_of_a_conversation() -> None:
    assert plain(TURNS) == "Be brief.\nHello\nHi\nBye"
    assert asked(TURNS) == "Hello\nHi\nBye"
    assert answer(TURNS) == "Hi"
    assert plain("as it is") == asked("as it is") == answer("as it is") == "as it is"

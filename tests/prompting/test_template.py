"""The template: what is asked of an optimiser."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.records import Message
from preftune.errors import PreftuneError
from preftune.prompting.template import SLOTS, Template, words_in

BUILT_IN = Template()


@pytest.mark.parametrize("response", [None, "The answer is 5."])
@pytest.mark.parametrize("truth", [None, "4"])
def test_shows_what_is_known_and_nothing_else(response: str | None, truth: str | None) -> None:
    text = BUILT_IN.optimizer_input("What is 2 + 2?", 30, response=response, ground_truth=truth)
    assert "[Prompt]\nWhat is 2 + 2?\n[End of prompt]" in text
    assert "30 words" in text
    assert ("The answer is 5." in text) == (response is not None)
    assert ("[What it should have answered]\n4\n" in text) == (truth is not None)
    assert "{" not in text


@given(st.text(alphabet="ab{}promtknw ", min_size=1).filter(str.strip))
def test_braces_in_a_prompt_stay(prompt: str) -> None:
    text = BUILT_IN.optimizer_input(prompt, 9, response=prompt)
    assert text.count(prompt.strip()) >= 2


def test_a_discriminator_sees_the_prompts_in_the_order_given() -> None:
    text = BUILT_IN.discriminator_input("old", "one", "two", ground_truth="4")
    assert text.index("one") < text.index("two")
    assert "[What it should have answered]\n4" in text


def test_is_aware_of_chat_templates() -> None:
    assert BUILT_IN.asked("x", chat=True) == (Message("user", "x"),)
    assert BUILT_IN.asked("x", chat=False) == "x\n\nNew prompt:\n"


def test_a_users_own_reads_back(tmp_path: Path) -> None:
    own = Template(optimizer="Besser: {prompt} ({words} Wörter){known}", first="eins", second="zwei")
    own.write(tmp_path / "t.yaml")
    assert Template.read(tmp_path / "t.yaml") == own
    (tmp_path / "part.yaml").write_text("plain_end: '=>'\n")
    assert Template.read(tmp_path / "part.yaml") == Template(plain_end="=>")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer: 'Rewrite it'", "block optimizer lacks the slot {prompt}: say where it shall stand"),
        ("optimizer: '{promt}'", "block optimizer has the slot {promt}, expected {prompt}, {words}, {known}; did you "),
        ("optimiser: '{prompt}'", "unknown block 'optimiser': did you mean optimizer?"),
        ("plain_end: 3", "plain_end is 3, expected text"),
        ("first: B", "first and second are 'B' and 'B', expected two different words"),
        ("discriminator: '{first} {second}'", "lacks the slot {prompt}"),
    ],
)
def test_says_what_is_wrong_with_a_users_own(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(text + "\n")
    with pytest.raises(PreftuneError) as error:
        Template.read(file)
    assert said in str(error.value)
    assert str(file) in str(error.value)


def test_every_block_has_its_slots() -> None:
    assert set(SLOTS) == set(Template.__dataclass_fields__)


def test_words_are_pieces_between_white_space() -> None:
    assert words_in(" Add 2 and\n3. ") == 4

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation.runs import Made

from preftune.errors import PreftuneError
from preftune.evaluation.chat import Chat, converse
from preftune.policy.loading import built_in_folder

LINE = "A modern fantasy about two sisters."


def talked(chat: Chat, *lines: str, stream: bool = False) -> tuple[str, list[str]]:
    said, noted = list[str](), list[str]()
    converse(chat, lines, said.append, noted.append, stream)
    return "".join(said), noted


def test_each_line_is_answered_with_a_line() -> None:
    said, noted = talked(Chat("sandbox", max_new_tokens=12), LINE + "\n", "\n", "/help\n", LINE, "/quit\n", LINE)
    assert len(said.splitlines()) == 2
    assert noted == ["/reset forgets the conversation, /quit ends it"]


def test_the_seed_decides_and_streaming_changes_nothing(made: Made) -> None:
    path = str(made("lora"))
    first, _ = talked(Chat(path, seed=1), LINE, LINE)
    streamed, _ = talked(Chat(path, seed=1), LINE, LINE, stream=True)
    other, _ = talked(Chat(path, seed=2), LINE, LINE)
    assert first == streamed != other
    assert first.splitlines()[0] != first.splitlines()[1], "each answer is drawn anew"


def test_the_likeliest_answer_is_the_trained_models(made: Made) -> None:
    """Held against transformers' own greedy generation, from the text as training reads it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made("dpo") / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(LINE, return_tensors="pt").input_ids
    wanted = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    said, _ = talked(Chat(str(made("dpo")), temperature=0, max_new_tokens=10), LINE)
    assert said == tokenizer.decode(wanted, skip_special_tokens=True) + "\n"


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """The built-in model with a chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(built_in_folder()).save_pretrained(tmp_path / "chatty")
    tokenizer = AutoTokenizer.from_pretrained(built_in_folder())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "chatty")
    return tmp_path / "chatty"


def test_a_conversation_is_remembered_until_it_is_reset(chatty: Path) -> None:
    chat = Chat(str(chatty), max_new_tokens=5, temperature=0)
    talked(chat, LINE, LINE)
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    talked(chat, "/reset", LINE)
    assert len(chat.turns) == 2
    assert Chat(str(chatty), plain=True).template is None
    assert Chat(str(chatty), system="Be kind.").turns[0].role == "system"


def test_a_conversation_that_grows_too_long_is_told_and_kept(chatty: Path) -> None:
    chat = Chat(str(chatty), max_new_tokens=5, temperature=0)
    said, noted = talked(chat, LINE, LINE * 200)
    assert len(said.splitlines()) == 1
    assert "and the model reads" in noted[0]
    assert len(chat.turns) == 2


def test_who_gives_no_answers(made: Made) -> None:
    with pytest.raises(PreftuneError, match="is a reward model, which gives no answers"):
        Chat(str(made("reward")))
    with pytest.raises(PreftuneError, match="has no chat template, so that a system turn has no place"):
        Chat("sandbox", system="Be kind.")

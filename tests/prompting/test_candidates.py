"""Which rewrites may be compared, and why others may not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.records import Where
from preftune.prompting.candidates import NAIVE, screened, tells_answer
from preftune.prompting.generators import Reply
from preftune.prompting.naive import NaivePrompt

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def asked(prompt: str = "Add 19 and 23.", **more: Any) -> NaivePrompt:
    return NaivePrompt(id="1", prompt=prompt, where=Where("prompts.jsonl", 0), **more)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("", refused="too many tokens"), "refused"),
        (Reply("  \n"), "empty"),
        (Reply("Add 19  and 23.\n"), "the same as the prompt"),
        (Reply("I'm sorry, but I can't help with that."), "declined"),
        (Reply("Add 19 and 23, and then", ended=False, tokens=9), "cut"),
        (Reply("Add 19 and 23. " + "Please. " * 60), "too long"),
        (Reply("Add 19 and 23, which makes 42."), "tells the answer"),
        (Reply("Add 19 and 32."), "changes the facts"),
    ],
)
def test_each_reason(reply: Reply, reason: str) -> None:
    good, bad = screened(asked(ground_truth="42"), [("a", reply)])
    assert not good
    assert [each.reason for each in bad] == [reason]
    assert bad[0].detail or reason not in ("refused", "cut", "too long", "changes the facts")


def test_another_language_is_a_change() -> None:
    prompt = asked("Please tell me in a few sentences why the leaves of trees turn red and yellow in autumn.")
    text = "Bitte sage mir in wenigen Sätzen, warum die Blätter der Bäume im Herbst rot und gelb werden."
    assert [each.reason for each in screened(prompt, [("a", Reply(text))])[1]] == ["changes the facts"]


def test_of_equal_ones_the_first_stays() -> None:
    prompt = asked()
    good, bad = screened(prompt, [("a", Reply("Add 19 and 23 slowly.")), ("b", Reply("Add 19  and 23 slowly. "))])
    assert [(each.rewriter, each.text) for each in good] == [("a", "Add 19 and 23 slowly.")]
    assert [(each.candidate.rewriter, each.reason) for each in bad] == [("b", "the same as another rewrite")]


def test_the_prompt_itself_may_be_compared() -> None:
    good, bad = screened(
        asked("I'm sorry, what is 7 - 2?", ground_truth="5"), [(NAIVE, Reply("I'm sorry, what is 7 - 2?"))]
    )
    assert (len(good), bad) == (1, [])


def test_facts_may_change_where_that_is_wanted_and_marks_may_not() -> None:
    assert screened(asked(), [("a", Reply("Add 19 and 32."))], facts=False)[0]
    prompt = asked("Ask the oracle nicely.")
    assert screened(prompt, [("a", Reply("Ask a prophet very nicely."))])[0]
    assert (
        screened(prompt, [("a", Reply("Ask a prophet very nicely."))], marks=("oracle",))[1][0].reason
        == "changes the facts"
    )
    assert (
        screened(prompt, [("a", Reply("Ask the oracle very nicely."))], marks=("oracle",), words=4)[1][0].reason
        == "too long"
    )


@given(prompt=TEXT.filter(str.strip), texts=st.lists(TEXT, max_size=5), truth=st.none() | TEXT.filter(str.strip))
def test_nothing_is_lost_and_nothing_twice(prompt: str, texts: list[str], truth: str | None) -> None:
    given_ = asked(prompt, ground_truth=truth)
    good, bad = screened(given_, [(str(i), Reply(text)) for i, text in enumerate(texts)])
    assert sorted([each.rewriter for each in good] + [each.candidate.rewriter for each in bad]) == [
        str(i) for i in range(len(texts))
    ]
    keys = [tuple(each.text.split()) for each in good]
    assert len(set(keys)) == len(keys)
    assert tuple(prompt.split()) not in keys
    assert all(each.text and not tells_answer(given_, each.text) for each in good)


@pytest.mark.parametrize(
    ("truth", "rewrite", "tells"),
    [
        ("5", "Say 5.", True),
        ("5", "4. Add the ones.\n5. Check step 5.", False),
        ("5", "4. Add the ones.\n5. Say 5.", True),
        ("5", "Say 15, 5.5 or 5,000.", False),
        ("half of 10 is 5\n#### 5", "It is 5", True),
        ("yes", "Answer yes or no.", False),
        ("B", "Answer A or B.", False),
        ("the Eiffel Tower", "It is The  Eiffel Tower, is it not?", True),
        ("Add 2 and 3", "Add 2 and 3 now", False),  # it stands in the prompt
        (None, "anything", False),
    ],
)
def test_answers_that_a_rewrite_tells(truth: str | None, rewrite: str, tells: bool) -> None:
    assert tells_answer(asked("Add 2 and 3", ground_truth=truth), rewrite) is tells

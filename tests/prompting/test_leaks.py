"""What a rewrite gives away, and what it only repeats."""

from __future__ import annotations

import pytest

from preftune.data.records import Where
from preftune.prompting.benchmarks.base import BenchmarkQuestion
from preftune.prompting.leaks import Leak, Training, leak, states_gold

HERE = Where("cases", 0)
CHOICES = "Which is cold?\nOptions:\n(A) fire\n(B) snow"


def question(prompt: str, gold: str, scorer: str, options: tuple[str, ...] = (), shown: str = "") -> BenchmarkQuestion:
    return BenchmarkQuestion(
        id=prompt, task="t", prompt=prompt, gold=gold, scorer=scorer, options=options, shown=shown, where=HERE
    )


@pytest.mark.parametrize(
    ("rewrite", "states"),
    [
        ("Add 30 and 42 step by step.", False),
        ("Add 30 and 42. (It is 72.)", True),
        ("Add 30 and 42; the answer is 72.00", True),
        ("Add 30 and 42. Do not say 720 or 172.", False),
    ],
)
def test_numbers(rewrite: str, states: bool) -> None:
    assert states_gold(question("What is 30 + 42?", "72", "number"), rewrite) is states


def test_a_number_that_the_question_has_is_no_leak() -> None:
    asked = question("Ann has 72 and Bob too. How many has Bob?", "72", "number")
    assert not states_gold(asked, "Ann has 72, and Bob has as many. How many?")
    assert states_gold(asked, "Ann has 72 and Bob has 72. How many has Bob?")


@pytest.mark.parametrize(
    ("rewrite", "states"),
    [
        ("Think about cold things.\nOptions:\n(A) fire\n(B) snow", False),
        ("Which is cold? Answer with (A) or (B).\nOptions:\n(A) fire\n(B) snow", False),
        ("Which is cold? The answer is B.\nOptions:\n(A) fire\n(B) snow", True),
        ("Which is cold, as snow is?\nOptions:\n(A) fire\n(B) snow", True),
        ("Which is cold, unlike fire?\nOptions:\n(A) fire\n(B) snow", False),
    ],
)
def test_letters(rewrite: str, states: bool) -> None:
    assert states_gold(question(CHOICES, "B", "choice", ("fire", "snow")), rewrite) is states


def test_words() -> None:
    asked = question("Is it so?", "Yes", "choice", ("Yes", "No"))
    assert not states_gold(asked, "Is it so? Say Yes or No.")
    assert states_gold(asked, "Is it so? (Yes, it is.)")
    assert states_gold(question("Sort: b a", "a b", "words"), "Sort: b a, which gives a b")
    assert states_gold(question("Capital?", "Paris", "contains"), "Say that it is paris.")
    assert states_gold(question("Close: [ (", ") ]", "brackets"), "Close [ ( with ) ]")


WORKED = "Natalia sold 48 halves which are 24 clips in the month of May alone"


def test_runs_of_words() -> None:
    asked = question("How many clips did Natalia sell?", "24", "number", shown=f"{WORKED}\n#### 24")
    other = question(
        "Why do nine large dogs bark at one small cat?", "7", "number", shown="They do so because of its smell"
    )
    training = Training([asked, other])
    assert leak(asked, asked.prompt) == Leak()
    assert leak(asked, "Please say how many clips did Natalia sell?", (), training) == Leak()
    assert leak(asked, f"How many? {WORKED}.", (), training) == Leak(gold=True, worked=True)
    dogs = f"How many clips? {other.prompt}"
    assert leak(asked, dogs, (), training) == Leak(training=True)
    assert leak(asked, dogs, (other,)) == Leak(shot=True)
    assert leak(asked, dogs).any is False


def test_phrases_of_several_training_questions_are_no_leak() -> None:
    phrase = "read the text and then say which of these is right"
    some = [question(f"{phrase} {n}", "A", "exact") for n in range(3)]
    asked = question("Which is right?", "A", "exact")
    assert not leak(asked, phrase, (), Training(some)).training
    assert leak(asked, phrase, (), Training(some[:1])).training

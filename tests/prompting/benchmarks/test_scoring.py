"""Scorers, on responses as models write them; each case worked by hand."""

from __future__ import annotations

import pytest

from preftune.data.fields import Unfit
from preftune.data.records import Where
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks.base import BenchmarkQuestion
from preftune.prompting.benchmarks.choices import letter_in, option_in
from preftune.prompting.benchmarks.numbers import number_in
from preftune.prompting.benchmarks.scoring import known, scorer_named

HERE = Where("cases", 0)


def question(scorer: str, gold: str, options: tuple[str, ...] = (), prompt: str = "?") -> BenchmarkQuestion:
    return BenchmarkQuestion(id="1", task="t", prompt=prompt, gold=gold, scorer=scorer, options=options, where=HERE)


def right(scorer: str, gold: str, response: str, options: tuple[str, ...] = (), prompt: str = "?") -> bool:
    return scorer_named(scorer).score(question(scorer, gold, options, prompt), response).right


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("She has 3 + 4 = 7 clips.\n#### 7", "7"),
        ("#### $1,200.50", "2401/2"),
        ("#### 72 clips", "72"),
        ("The answer is 72.", "72"),
        ("The answer is 72 clips, not 70.", "72"),
        ("The answer is 70. Wait, no: the answer is 72.", "72"),
        ("The answer is not 70. It is 72.", "72"),
        ("**Answer:** 72", "72"),
        ("**Final answer**: **$18.00**", "18"),
        ("Answer:\n\n72", "72"),
        ("The final answer is 48 + 24 = 72 clips (48 in April).", "72"),
        ("The total number of clips in the answer would be 72 for 2 months", "72"),
        (r"So \boxed{72}, and we are done in 3 steps.", "72"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"\boxed{1{,}200}", "1200"),
        ("It costs 3/4 of it.", "3/4"),
        ("48 in April and 24 in May make 72.", "72"),
        ("-5", "-5"),
        ("The result is \u221235.", "-35"),
        ("from 3-5 days", "5"),
        ("The answer is $1.5 million.", "1500000"),
        ("x2 is 3", "3"),
        ("I have nine of them.", "9"),
        ("The answer is three.", "3"),
        ("A: 42", "42"),
        ("25%", "25"),
        ("\u20ac30", "30"),
        ("- 5 apples", "5"),
        ("The answer is 1,20 or so", "1"),
        ("48/2 = <<48/2=24>>24", "24"),
    ],
)
def test_finds_the_number(response: str, number: str) -> None:
    assert str(number_in(response)) == number


@pytest.mark.parametrize("response", ["", "I do not know.", "v2beta", "####", "The answer is unclear."])
def test_finds_no_number(response: str) -> None:
    assert number_in(response) is None
    assert not right("number", "1", response)


def test_compares_numbers_exactly() -> None:
    assert right("number", "18", "#### 18.00")
    assert not right("number", "18", "#### 18.01")
    assert right("number", "0.5", "The answer is 1/2")
    assert not right("number", "100000000000000000000", "100000000000000000001")
    assert scorer_named("number").score(question("number", "18"), "$18.50").answer == "18.5"


COLOURS = ("red", "blue", "dark blue", "A dog")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b)", "B"),
        ("B.", "B"),
        ("B: blue", "B"),
        ("**B**", "B"),
        ("**(B)** because", "B"),
        ("B. Because (A) is wrong.", "B"),
        ("Option B", "B"),
        ("[B]", "B"),
        ("blue", "B"),
        ("Blue.", "B"),
        ("dark blue", "C"),
        ("A dog", "D"),
        ("The answer is A dog.", "D"),
        ("The answer is (B).", "B"),
        ("The answer is B because it is", "B"),
        ("The answer is b).", "B"),
        ("The correct answer is option C: dark blue", "C"),
        ("Answer: (C) dark blue", "C"),
        ("**Answer:** C", "C"),
        ("Answer:\nC", "C"),
        ("(A) is wrong, so it is (B).\nThe answer is (B).", "B"),
        ("The answer is not (A). The answer is (B).", "B"),
        ("It cannot be (A) or (B) or (D).\nSo (C).", "C"),
        (r"\boxed{B}", "B"),
        (r"The answer is $\boxed{\text{B}}$.", "B"),
        ("#### B", "B"),
        ("I think it is dark blue.", "C"),
        ("I choose option D", "D"),
    ],
)
def test_finds_the_letter(response: str, letter: str) -> None:
    assert letter_in(response, COLOURS) == letter


@pytest.mark.parametrize(
    "response",
    [
        "",
        "I think so.",  # I is no letter of four options, and no answer
        "A reason is needed.",
        "(A) or (B)",
        "The answer is (A) or (B).",
        "The answer is both (A) and (B).",
        "Either (A) or (B)",
        "(Z)",
        "It is red and dark blue.",
        "The answer is a matter of taste.",
    ],
)
def test_finds_no_letter(response: str) -> None:
    assert letter_in(response, COLOURS) is None


@pytest.mark.parametrize(
    ("response", "option"),
    [
        ("Yes", "Yes"),
        ("yes.", "Yes"),
        ("No, because he did not.", "No"),
        ("The answer is **No**.", "No"),
        ("Let me think. No one knew.\nSo the answer is yes.", "Yes"),
        ("Answer: Yes\nIt is no accident.", "Yes"),
        ("- Yes", "Yes"),
        ("Yes or no? Hard.", None),
        ("Maybe", None),
        ("Nothing", None),
        ("", None),
    ],
)
def test_finds_yes_or_no(response: str, option: str | None) -> None:
    assert option_in(response, ("Yes", "No")) == option


@pytest.mark.parametrize(
    ("response", "option"),
    [
        ("invalid", "invalid"),
        ("The argument is valid.", "valid"),
        ("The argument is not valid.", "invalid"),
        ("The argument is deductively invalid", "invalid"),
        ("valid and invalid", None),
    ],
)
def test_tells_valid_from_invalid(response: str, option: str | None) -> None:
    assert option_in(response, ("valid", "invalid")) == option


def test_true_and_false() -> None:
    steps = "not True is False, and False and True is False.\nSo the answer is False."
    assert option_in(steps, ("True", "False")) == "False"
    assert option_in("True", ("True", "False")) == "True"


@pytest.mark.parametrize(
    ("response", "good"),
    [
        ("ant bee cow", True),
        ("ant, bee, cow", True),
        ("1. ant\n2. bee\n3. cow", True),
        ("- Ant\n- Bee\n- Cow", True),
        ("The words are cow bee ant. Sorted alphabetically: ant bee cow", True),
        ("cow, ant, bee -> ant, bee, cow", True),
        ("The answer is ant bee cow.", True),
        ("The sorted list is:\n\nant bee cow\n\nThey are in alphabetical order.", True),
        ("bee ant cow", False),
        ("ant bee", False),
        ("ant bee bat cow", False),
        ("", False),
    ],
)
def test_sorted_words(response: str, good: bool) -> None:
    assert right("words", "ant bee cow", response) is good


def test_words_with_marks_inside() -> None:
    assert right("words", "don't it&t zoo", "don't it&t zoo")
    assert scorer_named("words").score(question("words", "ant bee"), "No idea.").answer is None


@pytest.mark.parametrize(
    ("response", "good"),
    [
        ("] ]", True),
        ("]]", True),
        ("[ [ ] ]", True),
        ("We must close (two) brackets.\nThe answer is ] ]", True),
        ("The answer is `]]`.\nDone.", True),
        ("1) close both:\n] ]", True),
        ("]", False),
        ("] ] ]", False),
        ("none", False),
    ],
)
def test_brackets(response: str, good: bool) -> None:
    assert right("brackets", "] ]", response, prompt="Complete the sequence. Input: [ [") is good


def test_texts() -> None:
    assert right("exact", "New York", " New\nYork ")
    assert not right("exact", "New York", "new york")
    assert right("contains", "New York", "It is in new york, I think.")
    assert not right("contains", "York", "Yorkshire")
    assert right("regex", r"^\d{4}-\d\d$", "2024-05")
    assert not right("regex", r"^\d{4}$", "in 2024")


def by_length(response: str, gold: str) -> bool | None:
    return None if not response.strip() else len(response) == int(gold)


def by_mood(response: str, gold: str) -> str:
    return "good"


def broken(response: str, gold: str) -> bool:
    raise KeyError(gold)


def test_a_users_function() -> None:
    assert right(f"{__name__}:by_length", "3", "abc")
    found = scorer_named(f"{__name__}:by_length").score(question("x", "3"), " ")
    assert (found.right, found.answer) == (False, None)
    with pytest.raises(PreftuneError, match="gave 'good', expected true, false or None"):
        right(f"{__name__}:by_mood", "3", "abc")
    with pytest.raises(PreftuneError, match="failed on the response to cases row 0 \\(KeyError"):
        right(f"{__name__}:broken", "3", "abc")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("numbr", "did you mean number"),
        ("no.module:f", "cannot import no.module"),
        (f"{__name__}:nothing", "has no function 'nothing'"),
    ],
)
def test_unknown_scorers(name: str, says: str) -> None:
    with pytest.raises(PreftuneError, match=says):
        scorer_named(name)


@pytest.mark.parametrize(
    ("scorer", "gold", "options"),
    [
        ("number", "many", ()),
        ("choice", "E", ("a", "b")),
        ("regex", "(", ()),
        ("brackets", "x", ()),
        ("words", "-", ()),
    ],
)
def test_answers_that_no_response_could_match(scorer: str, gold: str, options: tuple[str, ...]) -> None:
    with pytest.raises(Unfit):
        scorer_named(scorer).check(question(scorer, gold, options))


@pytest.mark.parametrize("scorer", [name for name in known() if name != "regex"])
def test_reads_any_text_in_good_time(scorer: str) -> None:
    options = ("red", "blue")
    gold = {"number": "7", "choice": "A", "brackets": ")"}.get(scorer, "red")
    for text in (
        "1" * 100_000,
        "(" * 100_000,
        "the answer is " * 8_000,
        "answer " * 15_000,
        "\\boxed{" * 15_000,
        "- " * 50_000,
    ):
        scorer_named(scorer).score(question(scorer, gold, options), text)

"""Votes of generators and judges, and what they come to."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.builders.base import Question
from preftune.data.builders.gsm8k import GSM8K
from preftune.data.records import Where
from preftune.errors import PreftuneError
from preftune.evaluation.judges import Comparison, Judge, Verdict
from preftune.evaluation.judges.base import by_orders
from preftune.prompting.benchmarks.base import BenchmarkQuestion
from preftune.prompting.candidates import Candidate
from preftune.prompting.checkers import open_checker
from preftune.prompting.comparing import ByChecker, ByJudge, Compared, in_turn
from preftune.prompting.naive import NaivePrompt

ASKED = NaivePrompt(id="1", prompt="Add 2 and 3.", where=Where("p.jsonl", 4), ground_truth="5", task="sums")


def candidate(text: str) -> Candidate:
    return Candidate(ASKED, "someone", text)


class Longer(Judge):
    """Prefers the longer answer, and gives no verdict where one is empty."""

    name, fingerprint = "longer", "longer"

    def __init__(self) -> None:
        self.seen: list[Comparison] = []

    def verdicts(self, comparisons: Sequence[Comparison], tell=lambda _: None) -> list[Verdict]:  # type: ignore[no-untyped-def]
        self.seen += comparisons
        tell(len(comparisons))
        return [
            by_orders(vote, vote) if each.a and each.b else Verdict(None, reason="empty")
            for each in comparisons
            for vote in [1.0 if len(each.a) > len(each.b) else 0.0 if len(each.a) < len(each.b) else 0.5]
        ]


@pytest.mark.parametrize(
    ("votes", "winner", "why"),
    [
        ((1.0,), "a", ""),
        ((0.0, 0.5), "b", ""),
        ((1.0, 0.0, 1.0), "a", ""),
        ((1.0, 0.0), None, "generators disagree"),
        ((0.5, 0.5), None, "tie"),
        ((None, None), None, "no verdict"),
        ((None, 1.0), "a", ""),
        ((None, 0.5), None, "tie"),
        ((1.0, 0.5, 0.0), None, "generators disagree"),
    ],
)
def test_the_majority_decides(votes: tuple[float | None, ...], winner: str | None, why: str) -> None:
    a, b = candidate("a"), candidate("b")
    pair = Compared(a, b, votes)
    assert (None if pair.better is None else pair.better.text) == winner
    assert (None if pair.worse is None else pair.worse.text) == {"a": "b", "b": "a"}.get(winner or "")
    if winner is None:
        assert pair.undecided == why


def test_a_checker_counts_right_answers_of_each_generator() -> None:
    good, fair, bad, same = (candidate(text) for text in ("good", "fair", "bad", "worse"))
    answers = {
        "one": {"good": ["5", "= 5"], "fair": ["5", "6"], "bad": ["6", "?"], "worse": ["7", ""]},
        "two": {"good": ["5", "5"], "fair": ["5", "5"], "bad": ["0", "0"], "worse": ["1", "1"]},
    }
    by = ByChecker(open_checker("number"), most=10, seed=0)
    told: list[tuple[int, int]] = []
    found = by.compare({"1": [good, fair, bad, same]}, answers, lambda done, of: told.append((done, of)))
    by_texts = {frozenset((each.a.text, each.b.text)): each for each in found}
    assert len(found) == 6
    wins = {texts: each.better.text if each.better else each.undecided for texts, each in by_texts.items()}
    assert wins == {
        frozenset(("good", "fair")): "good",
        frozenset(("good", "bad")): "good",
        frozenset(("good", "worse")): "good",
        frozenset(("fair", "bad")): "fair",
        frozenset(("fair", "worse")): "fair",
        frozenset(("bad", "worse")): "both wrong",
    }
    assert by.share(fair, answers) == [0.5, 1.0]
    assert told == [(1, 1)]
    few = ByChecker(open_checker("number"), most=2, seed=0).compare({"1": [good, fair, bad, same]}, answers)
    assert sum(each.better is not None for each in few) == 2


def test_a_judge_sees_answers_and_not_who_wrote_them() -> None:
    judge = Longer()
    short, long, odd = candidate("short"), candidate("long"), candidate("odd")
    answers = {"one": {"short": ["5", "5"], "long": ["five, as a word", "5 "], "odd": ["", "5"]}}
    found = ByJudge(judge, most=3, seed=0).compare({"1": [short, long, odd]}, answers)
    votes = {each.votes if each.a.text < each.b.text else None for each in found}
    assert len(found) == 3
    pair = next(each for each in found if {each.a.text, each.b.text} == {"short", "long"})
    assert pair.better is long
    assert sorted(pair.votes, key=str) in ([0.5, 1.0], [0.0, 0.5])  # equal answers are no question
    assert len(judge.seen) == 3
    assert {each.prompt for each in judge.seen} == {"Add 2 and 3."}
    assert judge.seen[0].row == {"prompt": "Add 2 and 3.", "id": "1", "ground_truth": "5", "task": "sums"}
    assert votes
    none = next(each for each in found if {each.a.text, each.b.text} == {"short", "odd"})
    assert none.better is None


@given(texts=st.lists(st.text(min_size=1), min_size=2, max_size=6, unique=True), seed=st.integers(0, 9))
def test_all_twos_once_in_a_drawn_order(texts: list[str], seed: int) -> None:
    some = [candidate(text) for text in texts]
    found = in_turn(some, "1", seed)
    assert len(found) == len({frozenset((a.text, b.text)) for a, b in found}) == len(texts) * (len(texts) - 1) // 2
    assert found == in_turn(some, "1", seed)


def test_neither_is_shown_first_more_often() -> None:
    some = [candidate("a"), candidate("b")]
    first = sum(in_turn(some, str(source), 0)[0][0].text == "a" for source in range(400))
    assert first == pytest.approx(200, abs=50)


@pytest.mark.parametrize(
    ("name", "truth", "right", "wrong"),
    [
        ("number", "2 + 3 = 5\n#### 5", "So it is 5.", "So it is 6."),
        ("gsm8k", "2 + 3 = 5\n#### 5", "#### 5.0", "5"),
        ("contains", "Paris", "It is Paris!", "It is Parisian"),
        ("choice", "B", "The answer is (B).", "(A) or (B)"),
        (f"{__name__}:Task", "#### 5", "#### 5", "#### 6"),
    ],
)
def test_checkers(name: str, truth: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _module())
    asked = NaivePrompt(id="1", prompt="?", where=Where("p", 0), ground_truth=truth, options=("Rome", "Paris"))
    checker = open_checker(name)
    checker.ready(asked)
    assert checker.right(asked, right)
    assert not checker.right(asked, wrong)


def test_the_scorer_of_each_question() -> None:
    where = Where("b", 0)
    questions = [
        BenchmarkQuestion(id="1", task="t", prompt="?", gold="5", scorer="number", where=where),
        BenchmarkQuestion(id="2", task="t", prompt="??", gold="A", scorer="choice", options=("x", "y"), where=where),
    ]
    checker = open_checker("benchmark", questions)
    assert checker.right(NaivePrompt(id="1", prompt="?", where=where), "It is 5")
    assert checker.right(NaivePrompt(id="2", prompt="??", where=where), "(A)")
    with pytest.raises(PreftuneError, match=re.escape("is no question of the benchmark (id '3')")):
        checker.ready(NaivePrompt(id="3", prompt="?", where=where, ground_truth="5"))
    with pytest.raises(PreftuneError, match="checker benchmark is for prompts of a benchmark"):
        open_checker("benchmark")


class Task(GSM8K):
    """A task of one's own."""

    def check(self, question: Question, response: str) -> bool:
        return super().check(question, response)


def _module():  # type: ignore[no-untyped-def]
    import types

    module = types.ModuleType(__name__)
    module.Task = Task  # type: ignore[attr-defined]
    return module

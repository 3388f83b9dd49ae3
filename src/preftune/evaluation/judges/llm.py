"""A language model behind an endpoint as a judge: a rubric, both orders, greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preftune.data.records import Message
from preftune.evaluation.endpoint import Answer, Endpoint, Request
from preftune.evaluation.judges.base import Comparison, Judge, Tell, Verdict, by_orders, digest
from preftune.evaluation.judges.rubric import REMINDER, filled, read_verdict

ANSWER_TOKENS = 1024  # of the judge's reasoning and verdict
REMINDED_TOKENS = 64


class LLMJudge(Judge):
    """Asks a model which answer is better, once with each of them shown first. One whose answer ends in no verdict is
    reminded of the form once; if that does not help, there is no verdict.

    Args:
        name: as on the command line.
        endpoint: where the model answers; it is closed with the judge.
        rubric: text with slots, as `rubric.read_rubric` gives it.
    """

    def __init__(self, name: str, endpoint: Endpoint, rubric: str) -> None:
        self.name, self.endpoint, self.rubric = name, endpoint, rubric
        self.fingerprint = digest("llm", endpoint.config.url, endpoint.model, rubric, REMINDER, ANSWER_TOKENS)

    def close(self) -> None:  # noqa: D102
        self.endpoint.close()

    def verdicts(self, comparisons: Sequence[Comparison], tell: Tell = lambda _: None) -> list[Verdict]:  # noqa: D102
        questions = [
            filled(self.rubric, each.prompt, first, second)
            for each in comparisons
            for first, second in ((each.a, each.b), (each.b, each.a))
        ]
        answers = self.endpoint.answers([_asked(question) for question in questions], _halved(tell))
        answers = self._reminded(questions, answers)
        found = []
        for first, second in zip(answers[::2], answers[1::2], strict=True):
            of_a, of_b = _read(first), _read(second)
            why = first.reason or second.reason or "its last line was not of the form 'Verdict: 1', '2' or 'tie'"
            said = (first.text or "", second.text or "")
            found.append(by_orders(of_a, None if of_b is None else 1 - of_b, said, why))
        return found

    def _reminded(self, questions: Sequence[str], answers: Sequence[Answer]) -> list[Answer]:
        """The answers, with those replaced that hold a verdict only when asked for it again."""
        found = list(answers)
        without = [i for i, answer in enumerate(answers) if answer.text and _read(answer) is None]
        again = [_asked(questions[i], str(answers[i].text)) for i in without]
        for i, answer in zip(without, self.endpoint.answers(again), strict=True):
            if _read(answer) is not None:
                found[i] = answer
        return found


def _asked(question: str, answered: str = "") -> Request:
    turns = (Message("user", question),)
    if not answered:
        return Request(prompt=turns, max_tokens=ANSWER_TOKENS)
    more = (Message("assistant", answered), Message("user", REMINDER))
    return Request(prompt=(*turns, *more), max_tokens=REMINDED_TOKENS)


def _read(answer: Answer) -> float | None:
    return None if answer.text is None else read_verdict(answer.text)


def _halved(tell: Tell) -> Callable[[int, int], object]:
    """Progress in comparisons, of which each takes two answers."""
    told = 0

    def progress(done: int, _: int) -> None:
        nonlocal told
        tell(done // 2 - told)
        told = done // 2

    return progress

"""GSM8K: grade-school math word problems, worked answers, and solutions of models marked right or wrong.

Files of openai/grade-school-math (MIT): train.jsonl and test.jsonl hold `question` and `answer`, which ends in
"#### N"; example_model_solutions.jsonl holds four solutions per question, which end in "A: N", each with `is_correct`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from preftune.data.builders.base import Question, Task, right_over_wrong
from preftune.data.records import Demonstration, Preference, Where
from preftune.data.sources import Source, rows
from preftune.errors import PreftuneError

ANNOTATION = re.compile(r"<<[^<>\n]*>>|<<|>>")  # a calculator's "<<48/2=24>>"; some solutions leave one open
FINAL = re.compile(r"^[ \t]*(?:####|A:)(.*)$", re.MULTILINE)
NUMBER = re.compile(
    r"""(?P<sign>[-+]?)\s*\$?\s*(?P<sign2>[-+]?)
    (?P<whole>\d{1,3}(?:,\d{3})+|\d+)?       # 1200 or 1,200, never 1,20
    (?:\.(?P<decimals>\d*))?
    (?:\s*/\s*(?P<denominator>\d+))?
    \s*%?\.?""",
    re.VERBOSE | re.ASCII,
)
MAX_DIGITS = 400  # a model that repeats a digit without end has not answered; Python refuses to read 4,300 of them


class GSM8K(Task):
    """Grade-school math word problems, answered by one number."""

    source = "openai/gsm8k:main"

    def questions(self, source: Source) -> Iterator[Question]:
        """Questions of train.jsonl or test.jsonl, or of any rows with `question` and `answer`."""
        for where, row in rows(source):
            question, answer = _text(row, "question", where), _text(row, "answer", where)
            if final_number(answer) is None:
                raise PreftuneError(f"{where}: `answer` must end in a line '#### N' with a number N")
            yield Question(question_id(question), question, answer)

    def prompt(self, question: Question) -> str:
        """As `prompt` of this module."""
        return prompt(question.text)

    def instruction(self, question: Question) -> str:
        """The question, and in which form to answer."""
        return f"{question.text.strip()}\n\nReason step by step. End with a line '#### N', where N is the answer."

    def check(self, question: Question, response: str) -> bool:
        """True if the final number equals the reference's, exactly and however it is written."""
        answer = final_number(response)
        return answer is not None and answer == final_number(question.reference)


def final_number(text: str) -> Fraction | None:
    """The number on the last line "#### N" or "A: N", exactly; None if there is no such line or it holds no number.

    N may have a sign, a dollar sign, thousands separators, decimals, a denominator, a percent sign and a full stop:
    "-$1,200.50", "3/4", "18.00", "25%". Anything else on the line makes it no number ("18 dollars", "2 billion").

    Example:
        >>> final_number("half of 37 is <<37/2=18.5>>18.5\\n#### $18.50")
        Fraction(37, 2)
    """
    lines = FINAL.findall(ANNOTATION.sub("", text))
    return read_number(lines[-1]) if lines else None


def read_number(text: str) -> Fraction | None:
    """A number as `final_number` reads it, from a text that holds nothing else."""
    found = NUMBER.fullmatch(text.strip())
    if found is None or len(text) > MAX_DIGITS:
        return None
    whole, decimals, denominator = found["whole"] or "", found["decimals"] or "", found["denominator"]
    without_digits, twice_signed = not (whole or decimals), found["sign"] and found["sign2"]
    if without_digits or twice_signed or int(denominator or 1) == 0:
        return None
    value = Fraction(f"{whole.replace(',', '') or 0}.{decimals or 0}") / int(denominator or 1)
    return -value if "-" in (found["sign"], found["sign2"]) else value


def prompt(question: str) -> str:
    """The prompt for a base model: "Question: ...", then "Answer:"; the response begins with a space."""
    return f"Question: {question.strip()}\nAnswer:"


def response(answer: str) -> str:
    """A worked answer or a solution in one form: calculator notes dropped, the last line "#### N" as N stands there.

    Example:
        >>> response("She has 3+4 = <<3+4=7>>7.\\nA: 7")
        ' She has 3+4 = 7.\\n#### 7'
    """
    plain = ANNOTATION.sub("", answer).strip()
    return " " + FINAL.sub(lambda found: f"#### {found[1].strip()}", plain)


def demonstrations(source: Source) -> Iterator[Demonstration]:
    """The worked answers of train.jsonl or test.jsonl.

    Raises:
        PreftuneError: if the source cannot be read or a row has no question or answer.
    """
    for where, row in rows(source):
        yield Demonstration(prompt(_text(row, "question", where)), response(_text(row, "answer", where)), where)


def preferences(source: Source, max_pairs: int = 4, seed: int = 0) -> Iterator[Preference]:
    """Right over wrong, from the solutions of example_model_solutions.jsonl, by the file's own marks.

    Two right and two wrong solutions give four pairs, the most that four solutions can. Solutions that were cut before
    their final line make no pairs: as rejected responses they would teach that an end is bad or good by accident.

    Args:
        source: the file.
        max_pairs: most pairs of one question, drawn with the seed.
        seed: of that draw.

    Raises:
        PreftuneError: if the source cannot be read or a row has no solutions.
    """
    for where, row in rows(source):
        question = _text(row, "question", where)
        whole = [(marked.correct, response(marked.text)) for marked in _solutions(row, where) if marked.has_end]
        right, wrong = [text for good, text in whole if good], [text for good, text in whole if not good]
        for chosen, rejected in right_over_wrong(right, wrong, max_pairs, seed, question_id(question)):
            yield Preference(prompt(question), chosen, rejected, where)


def marks(source: Source) -> Iterator[tuple[Question, str, bool]]:
    """Question, solution and the file's own mark, for every solution of example_model_solutions.jsonl."""
    for where, row in rows(source):
        text = _text(row, "question", where)
        question = Question(question_id(text), text, _text(row, "ground_truth", where))
        for marked in _solutions(row, where):
            yield question, marked.text, marked.correct


def question_id(question: str) -> str:
    """The same for the same question in any file: 16 hexadecimal digits."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Solution:
    text: str
    correct: bool

    @property
    def has_end(self) -> bool:
        return FINAL.search(self.text) is not None


def _solutions(row: Mapping[str, Any], where: Where) -> list[_Solution]:
    found = [
        _Solution(str(value["solution"]), bool(value["is_correct"]))
        for value in row.values()
        if isinstance(value, Mapping) and value.keys() >= {"solution", "is_correct"}
    ]
    if not found:
        raise PreftuneError(
            f"{where}: expected mappings with `solution` and `is_correct`, as example_model_solutions.jsonl has them"
        )
    return found


def _text(row: Mapping[str, Any], key: str, where: Where) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise PreftuneError(f"{where}: `{key}` must be a text, got {value!r}; is this a GSM8K file?")
    return value

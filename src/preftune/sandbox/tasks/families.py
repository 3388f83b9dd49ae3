"""Five families of questions whose answer is the end of a chain of steps, each step depending on the one before.

No family is one that attention answers at a glance (a mean, a median, a count): a model that has to name the answer at
once must carry out all steps within its few layers, one that writes each step down needs one step at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

NUMBERS = (4, 5)  # the fewest and the most numbers of a question
CUPS, SWAPS = 5, (3, 4)


@dataclass(frozen=True)
class Question:
    """A question, apart from how it is worded.

    Attributes:
        family: its name, of `FAMILIES`.
        data: what is given, as text that every wording holds unchanged.
        steps: the work, one text for each step.
        answer: a digit.
    """

    family: str
    data: str
    steps: tuple[str, ...]
    answer: str

    @property
    def direct(self) -> str:
        """The response that names the answer at once."""
        return f"answer {self.answer}"

    @property
    def worked(self) -> str:
        """The response that writes down each step, then the answer."""
        return " ; ".join([*self.steps, self.direct])


def _fold(family: str, step: Callable[[int, int], int], rng: random.Random) -> Question:
    """Distinct digits, and a value that each of them changes: `step(value, digit)` modulo ten."""
    digits = rng.sample(range(10), rng.randint(*NUMBERS))
    value, steps = digits[0], [f"{digits[0]} : {digits[0]}"]
    for digit in digits[1:]:
        value = step(value, digit) % 10
        steps.append(f"{digit} : {value}")
    return Question(family, " ".join(map(str, digits)), tuple(steps), str(value))


def _sum(rng: random.Random) -> Question:
    return _fold("sum", lambda value, digit: value + digit, rng)


def _double(rng: random.Random) -> Question:
    return _fold("double", lambda value, digit: 2 * value + digit, rng)


def _gap(rng: random.Random) -> Question:
    return _fold("gap", lambda value, digit: abs(value - digit), rng)


def _chain(rng: random.Random) -> Question:
    digits = rng.sample(range(10), rng.randint(*NUMBERS))
    value, given, steps = digits[0], [str(digits[0])], [f"{digits[0]} : {digits[0]}"]
    for digit in digits[1:]:
        sign = rng.choice("+-")
        value = (value + digit if sign == "+" else value - digit) % 10
        given += [sign, str(digit)]
        steps.append(f"{sign} {digit} : {value}")
    return Question("chain", " ".join(given), tuple(steps), str(value))


def _cups(rng: random.Random) -> Question:
    """A ball under one of five cups, two of which change places at each step."""
    start = at = rng.randint(1, CUPS)
    given, steps = [], []
    for _ in range(rng.randint(*SWAPS)):
        one, other = rng.sample(range(1, CUPS + 1), 2)
        at = {one: other, other: one}.get(at, at)
        given.append(f"{one} {other}")
        steps.append(f"{one} {other} : {at}")
    return Question("cups", f"cup {start} , swaps {' , '.join(given)}", tuple(steps), str(at))


FAMILIES: dict[str, Callable[[random.Random], Question]] = {
    "sum": _sum,
    "chain": _chain,
    "double": _double,
    "gap": _gap,
    "cups": _cups,
}


def questions(count: int, seed: int) -> list[Question]:
    """Questions of all families in turn.

    Args:
        count: how many.
        seed: of the random numbers.
    """
    rng, names = random.Random(seed), list(FAMILIES)
    return [FAMILIES[names[i % len(names)]](rng) for i in range(count)]


def score(response: str, answer: str) -> bool:
    """Whether a response's final answer is right: exactly one word after the last "answer", and that word it is.

    Example:
        >>> score("3 : 3 ; 5 : 8 ; answer 8", "8"), score("8", "8"), score("answer 8 8", "8")
        (True, False, False)
    """
    _, found, after = response.rpartition("answer")
    return bool(found) and after.split() == [answer]

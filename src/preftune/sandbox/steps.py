"""A second built-in world, of work in steps: chains of sums, some with slips, each line known to be right or wrong.

    start 3 :
     so 3+4=2
     then 2-3=4

Numbers are those modulo 5, and each line goes on from the result of the one before. Half of all sums are hard: who
writes down a hard one gets it wrong half of the time, always with the same wrong result. How a line begins ("so",
"then", "hence") says nothing about whether it is right, and "hence" is rare: what is unlikely is not what is wrong.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

MODULUS = 5
LINES = 5
SLIP = 0.5
MANNERS = {"so": 0.6, "then": 0.3, "hence": 0.1}
MAX_RESPONSE_TOKENS = 64

_LINE = re.compile(rf" ?(?:{'|'.join(MANNERS)}) ([0-4])([+-])([0-4])=([0-4])")


@dataclass(frozen=True)
class StepsWorld:
    """Which sums are hard.

    Attributes:
        slips: the wrong result of each hard sum, by (first number, sign, second number).
    """

    slips: dict[tuple[int, str, int], int]

    @classmethod
    def drawn(cls, seed: int) -> StepsWorld:
        """A world of its own for each seed."""
        rng = random.Random(seed)
        slips = {}
        for first in range(MODULUS):
            for sign in "+-":
                for second in range(MODULUS):
                    if rng.random() < 0.5:
                        off = rng.randrange(1, MODULUS)
                        slips[first, sign, second] = (result(first, sign, second) + off) % MODULUS
        return cls(slips)

    def chain(self, rng: random.Random) -> tuple[str, str]:
        """A prompt and an answer of `LINES` lines, slips included."""
        number = rng.randrange(MODULUS)
        asked, answer = prompt(number), ""
        for _ in range(LINES):
            sign, second = rng.choice("+-"), rng.randrange(MODULUS)
            found = result(number, sign, second)
            if (number, sign, second) in self.slips and rng.random() < SLIP:
                found = self.slips[number, sign, second]
            (manner,) = rng.choices(list(MANNERS), list(MANNERS.values()))
            answer += f" {manner} {number}{sign}{second}={found}\n"
            number = found
        return asked, answer


def result(first: int, sign: str, second: int) -> int:
    """What a sum comes to, modulo 5."""
    return (first + second if sign == "+" else first - second) % MODULUS


def prompt(number: int) -> str:
    """The prompt of a chain that begins with a number."""
    return f"start {number} :\n"


def wrong_lines(answer: str) -> list[int] | None:
    """Which lines of an answer are wrong, from 0 on; None if it is no chain of `LINES` lines.

    A line counts by itself: one that goes on rightly from a wrong result is right.
    """
    lines = answer.strip("\n").split("\n")
    found = [_LINE.fullmatch(line) for line in lines]
    if len(lines) != LINES or None in found:
        return None
    sums = [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in found if m is not None]
    return [i for i, (first, sign, second, said) in enumerate(sums) if result(first, sign, second) != said]

"""Questions as people ask them, in naive wordings; a fifth of all questions is held out from optimisers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from zlib import crc32

from preftune.sandbox.tasks.families import FAMILIES, Question
from preftune.sandbox.tasks.wordings import naive

HELD_OUT = 5  # one question in so many


@dataclass(frozen=True)
class Asked:
    """A question as somebody asked it."""

    question: Question
    prompt: str


def asked(count: int, seed: int, held_out: bool = False) -> list[Asked]:
    """Questions of all families in turn, each in a naive wording.

    Args:
        count: how many.
        seed: of what is drawn.
        held_out: draw from the fifth of all questions that no optimiser learns from; else from the rest.
    """
    rng, names = random.Random(seed), list(FAMILIES)
    found: list[Asked] = []
    while len(found) < count:
        question = FAMILIES[names[len(found) % len(names)]](rng)
        if (crc32(f"{question.family} {question.data}".encode()) % HELD_OUT == 0) == held_out:
            found.append(Asked(question, naive(question, rng)))
    return found

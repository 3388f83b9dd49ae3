"""A teacher as a rewriter: preftune.sandbox.tasks.teacher:rewrite."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from preftune.errors import PreftuneError
from preftune.sandbox.tasks.wordings import NAIVE, PLANS, idle

PLANNED = 0.5  # share of rewrites that ask for the steps; the others only sound helpful

_NAIVE = [
    (family, re.compile(re.escape(wording).replace(r"\{\}", "(?P<data>.+)")))
    for family, wordings in NAIVE.items()
    for wording in wordings
]


def rewrite(prompts: Sequence[str]) -> list[str]:
    """A rewrite for each text that asks to rewrite a naive prompt of the built-in tasks: a plan in one of three
    wordings, of which each generator understands two, or words that are of no use.

    Raises:
        PreftuneError: if a text holds no such prompt.
    """
    return [_rewrite(text, random.Random(f"{number} {text}")) for number, text in enumerate(prompts)]


def _rewrite(text: str, rng: random.Random) -> str:
    for family, wording in _NAIVE:
        for line in text.splitlines():
            if found := wording.search(line):
                data = found["data"]
                return rng.choice(PLANS[family]).format(data) if rng.random() < PLANNED else idle(found[0], rng)
    raise PreftuneError(f"the built-in teacher rewrites prompts of the built-in tasks alone, got {text[:60]!r}")

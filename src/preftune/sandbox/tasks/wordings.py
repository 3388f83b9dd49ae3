"""How questions are asked: naive prompts as people might write them, and rewrites that are of use or not."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from preftune.sandbox.tasks.families import FAMILIES, Question

NAIVE: Mapping[str, Sequence[str]] = {
    "sum": (
        "add {} and keep the last digit",
        "what is the last digit of the sum of {} ?",
        "total of {} , last digit only",
        "how much is {} together ? last digit please",
    ),
    "chain": (
        "work out {} and keep the last digit",
        "what is {} modulo ten ?",
        "compute {} , last digit only",
        "result of {} ? last digit please",
    ),
    "double": (
        "double and add along {} and keep the last digit",
        "what is the last digit if you double and add {} ?",
        "twice plus the next , for {} , last digit only",
        "fold {} by doubling and adding ? last digit please",
    ),
    "gap": (
        "take gaps along {} and keep the last",
        "what is the last gap along {} ?",
        "distance to the next , for {} , last only",
        "fold {} by distance ? last please",
    ),
    "cups": (
        "a ball is under {} , where is it ?",
        "follow the ball from {} and keep the last cup",
        "which cup has it after {} ? number please",
        "guess the cup , for {} , number only",
    ),
}

# Plans, which name the steps of the family, each in three wordings. Not every generator understands every wording.
PLANS: Mapping[str, Sequence[str]] = {
    "sum": (
        "write each running sum of {} , then answer",
        "list every partial total of {} before the answer",
        "show all sums so far in {} , answer last",
    ),
    "chain": (
        "write each result after a sign of {} , then answer",
        "list every value on the way in {} before the answer",
        "show all results so far in {} , answer last",
    ),
    "double": (
        "write each double plus next of {} , then answer",
        "list every doubled value along {} before the answer",
        "show all doubles so far in {} , answer last",
    ),
    "gap": (
        "write each gap on the way along {} , then answer",
        "list every distance along {} before the answer",
        "show all gaps so far in {} , answer last",
    ),
    "cups": (
        "write the cup after each swap for {} , then answer",
        "list every place of the ball for {} before the answer",
        "show all cups so far for {} , answer last",
    ),
}

# What people add in the hope that it helps; {} is a naive prompt.
IDLE: Sequence[str] = (
    "think step by step : {}",
    "{} . think step by step",
    "please answer carefully : {}",
    "you are an expert : {}",
    "take a deep breath : {}",
)


def naive(question: Question, rng: random.Random) -> str:
    """A naive prompt."""
    return rng.choice(NAIVE[question.family]).format(question.data)


def plan(question: Question, rng: random.Random, which: Sequence[int] = (0, 1, 2)) -> str:
    """A rewrite that asks for the steps of its family, in one of those wordings."""
    return PLANS[question.family][rng.choice(which)].format(question.data)


def idle(prompt: str, rng: random.Random, wordings: Sequence[str] = IDLE) -> str:
    """A rewrite of a naive prompt that sounds helpful."""
    return rng.choice(wordings).format(prompt)


def vocabulary() -> list[str]:
    """Every word and mark of prompts and responses, in an order that never changes."""
    templates = [text for texts in (*NAIVE.values(), *PLANS.values(), IDLE) for text in texts]
    words = {word for text in templates for word in text.replace("{}", " ").split()}
    given = {*"0123456789", *"+-,:;", "cup", "swaps", "answer", "rewrite", "better"}
    return sorted(words | given)


assert set(NAIVE) == set(PLANS) == set(FAMILIES)

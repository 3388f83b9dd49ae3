"""Questions and the rewrites that teachers write; which of two is better, by what generators answer to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from preftune.data.records import Where
from preftune.prompting.naming import prompt_id
from preftune.prompting.records import PromptPair
from preftune.sandbox.tasks import SEEN, SHIPPED
from preftune.sandbox.tasks.asking import Asked, asked
from preftune.sandbox.tasks.wordings import IDLE, NAIVE, PLANS, idle, plan
from preftune.studies.fipo.answers import Answers
from preftune.studies.fipo.form import Teacher

# Plans by who understands them of the generators that are learned from; idle words around a naive prompt; a naive
# prompt; and slips, such as a number copied wrongly.
KINDS = ("plan for both", "plan for one", "idle", "restated", "other")
TEST, VALIDATION, PROBED = 1, 2, 3  # seeds of questions that are held out, the same for all optimisers


def rewrite(teacher: Teacher, one: Asked, rng: random.Random) -> str:
    """What the teacher makes of a naive prompt."""
    drawn = rng.random()
    if drawn < teacher.plans:
        return plan(one.question, rng)
    return idle(one.prompt, rng, IDLE[:1] if drawn < teacher.plans + teacher.usual else IDLE[1:])


def demonstrations(teacher: Teacher, count: int, seed: int) -> list[tuple[str, str]]:
    """Naive prompts with a rewrite each."""
    rng = random.Random(seed)
    return [(one.prompt, rewrite(teacher, one, rng)) for one in asked(count, seed)]


def judged_pairs(teacher: Teacher, count: int, seed: int, answers: Answers) -> list[PromptPair]:
    """Two rewrites of each of `count` naive prompts, where more of the generators that may be asked answer one right
    than the other: that one is chosen. Who wrote it does not count."""
    rng = random.Random(seed)
    some = asked(count, seed)
    both = [(rewrite(teacher, one, rng), rewrite(teacher, one, rng)) for one in some]
    golds = [one.question.answer for one in some]
    scores = [answers.score([pair[side] for pair in both], golds) for side in (0, 1)]
    found: list[PromptPair] = []
    for one, pair, first, second in zip(some, both, scores[0], scores[1], strict=True):
        if first == second:
            continue
        chosen, rejected = pair if first > second else pair[::-1]
        found.append(
            PromptPair(
                id=prompt_id(one.prompt),
                prompt=one.prompt,
                chosen=chosen,
                rejected=rejected,
                ground_truth=one.question.answer,
                task=one.question.family,
                where=Where("built-in tasks", len(found)),
            )
        )
    return found


def shuffled(pairs: Sequence[PromptPair], seed: int) -> list[PromptPair]:
    """The same pairs, each turned round or not by the fall of a coin."""
    rng = random.Random(seed)
    return [replace(pair, chosen=pair.rejected, rejected=pair.chosen) if rng.random() < 0.5 else pair for pair in pairs]


def kind(text: str, one: Asked) -> str:
    """What a rewrite is, of `KINDS`."""
    family, data = one.question.family, one.question.data
    for number, template in enumerate(PLANS[family]):
        if text == template.format(data):
            understood = sum(number in SHIPPED[name].understands[family] for name in SEEN)
            return KINDS[0] if understood == len(SEEN) else KINDS[1]
    if _is_naive(text, one):
        return "restated"
    for template in IDLE:
        before, _, after = template.partition("{}")
        if text.startswith(before) and text.endswith(after) and _is_naive(text[len(before) :].removesuffix(after), one):
            return "idle"
    return "other"


def _is_naive(text: str, one: Asked) -> bool:
    return text in {template.format(one.question.data) for template in NAIVE[one.question.family]}

"""Candidates: rewrites that may be compared, and those that may not, with the reason of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from preftune.prompting.facts import Mark, problem
from preftune.prompting.generators import Reply
from preftune.prompting.naive import NaivePrompt, final_answer
from preftune.prompting.rewriter import default_limit
from preftune.prompting.template import words_in

NAIVE = "naive"  # the rewriter that leaves a prompt as it is
IDENTICAL, TWICE, EMPTY, REFUSED = "the same as the prompt", "the same as another rewrite", "empty", "refused"
DECLINED, CUT, LONG, CHANGED, TELLS = "declined", "cut", "too long", "changes the facts", "tells the answer"
# How chat models decline; a prompt that begins like this is none that anybody would put to a model.
_DECLINES = re.compile(r"(?:i['\u2019]?m sorry\b|i am sorry\b|sorry, |i (?:cannot|can['\u2019]t) |as an ai\b)", re.I)
_COUNTER = re.compile(r"^\s*\(?\d+[.):](?=\s)|\bstep \d+\b", re.I | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rewrite of a prompt.

    Attributes:
        prompt: what was rewritten.
        rewriter: who wrote it, as on the command line.
        text: the rewrite.
    """

    prompt: NaivePrompt
    rewriter: str
    text: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A candidate that is not compared.

    Attributes:
        candidate: that.
        reason: one of a few, to be counted.
        detail: what exactly, for people.
    """

    candidate: Candidate
    reason: str
    detail: str = ""


def screened(
    prompt: NaivePrompt,
    written: Sequence[tuple[str, Reply]],
    *,
    words: int | None = None,
    marks: Sequence[Mark] = (),
    facts: bool = True,
) -> tuple[list[Candidate], list[LeftOut]]:
    """Which rewrites of a prompt may be compared, and which may not.

    Args:
        prompt: the naive prompt.
        written: who wrote what, in order; of several that are the same the first one stays.
        words: most words of a rewrite; None: twice those of the prompt, and at least 40 more.
        marks: what else a rewrite may not change.
        facts: leave out those that change numbers, quotations, code, options, links or the language.
    """
    good: list[Candidate] = []
    bad: list[LeftOut] = []
    seen: set[str] = set()
    for rewriter, reply in written:
        candidate = Candidate(prompt, rewriter, reply.text.strip())
        found = _fault(candidate, reply, default_limit(prompt.prompt) if words is None else words, marks, facts)
        key = " ".join(candidate.text.split())
        if found is None and key in seen:
            found = (TWICE, "")
        if found is None:
            seen.add(key)
            good.append(candidate)
        else:
            bad.append(LeftOut(candidate, *found))
    return good, bad


def _fault(
    candidate: Candidate, reply: Reply, limit: int, marks: Sequence[Mark], facts: bool
) -> tuple[str, str] | None:
    """Why a candidate may not be compared, in a word and in full."""
    prompt, text = candidate.prompt, candidate.text
    if reply.refused:
        return REFUSED, reply.refused
    if not text:
        return EMPTY, ""
    if candidate.rewriter == NAIVE:
        return None
    if text.split() == prompt.prompt.split():
        return IDENTICAL, ""
    if _DECLINES.match(text) and not _DECLINES.match(prompt.prompt):
        return DECLINED, ""
    if not reply.ended:
        return CUT, f"after {reply.tokens:,} tokens"
    if (words := words_in(text)) > limit:
        return LONG, f"{words:,} words, the limit was {limit:,}"
    if tells_answer(prompt, text):
        return TELLS, ""
    found = problem(prompt.prompt, text, marks) if facts else None
    return None if found is None else (CHANGED, found)


def tells_answer(prompt: NaivePrompt, rewrite: str) -> bool:
    """True if a rewrite says the right answer, and the prompt did not. Single words without a digit ("yes", "B") are
    let pass: prompts name them as the form of an answer. So are numbers that count steps or list items.

    Example:
        >>> from preftune.data.records import Where
        >>> sums = NaivePrompt(id="1", prompt="Add 2 and 3", where=Where("p", 0), ground_truth="#### 5")
        >>> tells_answer(sums, "Add 2 and 3 to get 5."), tells_answer(sums, "Add 2 and 3, then check.")
        (True, False)
    """
    if prompt.ground_truth is None:
        return False
    answer = " ".join(final_answer(prompt.ground_truth).split())
    if words_in(answer) < 2 and not any(char.isdigit() for char in answer):
        return False
    stands = re.compile(rf"(?<![\w.,]){re.escape(answer)}(?!\w|[.,]\d)", re.I)
    before, after = (" ".join(_COUNTER.sub(" ", text).split()) for text in (prompt.prompt, rewrite))
    return stands.search(after) is not None and stands.search(before) is None

"""Calls to endpoints that were kept: what earlier sessions were answered, and what they spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from preftune.errors import PreftuneError
from preftune.evaluation.asking import Answer
from preftune.evaluation.budget import Budget
from preftune.evaluation.journal import Journal


def recall(journal: Journal, budget: Budget) -> dict[str, Answer]:
    """What earlier sessions were answered, by the name of the request; what they spent is counted.

    Raises:
        PreftuneError: if the file holds something else; it is closed then.
    """
    answers: dict[str, Answer] = {}
    aside: Counter[str] = Counter()
    for number, line in enumerate(journal.lines, 1):
        try:
            _recall_line(line, answers, aside, budget)
        except (KeyError, TypeError, ValueError):
            journal.close()
            raise PreftuneError(
                f"{journal.path} line {number} is no call that preftune kept: name another folder"
            ) from None
    budget.tokens += aside.total()  # sent by processes that were killed before they heard of it
    return answers


def _recall_line(line: Mapping[str, Any], answers: dict[str, Answer], aside: Counter[str], budget: Budget) -> None:
    key = str(line["key"])
    if "sent" in line:
        budget.calls += 1
        aside[key] += int(line["sent"])
        return
    aside[key] = 0
    if "failed" in line:
        budget.tokens += int(line["tokens"])
        return
    read, written, spent = (int(line[name]) for name in ("prompt_tokens", "tokens", "spent"))
    ids = tuple(int(token) for token in line.get("ids", ()))
    answers[key] = Answer(str(line["text"]), bool(line["ended"]), read, written, ids=ids)
    budget.tokens += spent

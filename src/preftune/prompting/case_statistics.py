"""What rows for an optimiser are like: how many of each type, how long, and what might teach it the wrong thing."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from preftune.errors import PreftuneError
from preftune.prompting.cases import CASE_TYPES, Case, case_type
from preftune.prompting.template import words_in

TYPES = (*(case_type(*each) for each in CASE_TYPES), "instruction", "discrimination")


@dataclass(frozen=True)
class Lengths:
    """Words of some texts."""

    mean: float
    median: float
    most: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> Lengths:
        """Of one text or more."""
        words = [words_in(text) for text in texts]
        return cls(statistics.fmean(words), statistics.median(words), max(words))


@dataclass(frozen=True)
class CaseStatistics:
    """What some cases are like.

    Attributes:
        rows: how many.
        sources: naive prompts that they come from.
        types: rows of each type.
        words: of naive prompts, better and worse rewrites (rows of kind rewrite).
        chosen_longer: share of rewrites where the better one has more words.
        chosen_shorter: likewise fewer.
        response_right: naive responses that are shown and right all the same.
        response_wrong: that are shown and not the right answer to the letter (or it is not known).
        limit_kept: share of rewrites of which the better one keeps the limit that is asked for.
        duplicates: rows that are the same as another one before.
        same_prompts: naive prompts that stand there under more than one id, which a split by id may tear apart.
    """

    rows: int
    sources: int
    types: dict[str, int]
    words: dict[str, Lengths]
    chosen_longer: float
    chosen_shorter: float
    response_right: int
    response_wrong: int
    limit_kept: float
    duplicates: int
    same_prompts: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def describe(cases: Sequence[Case]) -> CaseStatistics:
    """What cases are like.

    Raises:
        PreftuneError: if there are none.
    """
    rewrites = [case for case in cases if case.kind == "rewrite"]
    if not rewrites:
        raise PreftuneError("there is no row to rewrite a prompt, expected at least one pair of different rewrites")
    counts = Counter(case.type for case in cases)
    gaps = [words_in(case.chosen) - words_in(case.rejected) for case in rewrites]
    shown = [case for case in rewrites if case.shows_response]
    right = sum(case.response_is_right is True for case in shown)
    ids: dict[str, set[str]] = {}
    for case in cases:
        if not case.options:  # options are drawn, and say nothing of the prompt
            ids.setdefault(" ".join(case.original.split()), set()).add(case.source)
    return CaseStatistics(
        rows=len(cases),
        sources=len({case.source for case in cases}),
        types={name: counts[name] for name in TYPES},
        words={
            "prompt": Lengths.of([case.prompt for case in rewrites]),
            "chosen": Lengths.of([case.chosen for case in rewrites]),
            "rejected": Lengths.of([case.rejected for case in rewrites]),
        },
        chosen_longer=sum(gap > 0 for gap in gaps) / len(gaps),
        chosen_shorter=sum(gap < 0 for gap in gaps) / len(gaps),
        response_right=right,
        response_wrong=len(shown) - right,
        limit_kept=sum(words_in(case.chosen) <= case.words for case in rewrites) / len(rewrites),
        duplicates=len(cases) - len({_content(case) for case in cases}),
        same_prompts=sum(len(each) > 1 for each in ids.values()),
    )


def _content(case: Case) -> tuple[object, ...]:
    """All that a row teaches."""
    response = case.response if case.shows_response else None
    truth = case.ground_truth if case.shows_ground_truth else None
    return (case.type, case.prompt, case.words, response, truth, case.chosen, case.rejected, case.chosen_first)

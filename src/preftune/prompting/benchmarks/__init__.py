"""Benchmarks: questions with right answers, on which naive and optimised prompts are compared.

gsm8k, bbh, piqa, cosmosqa, mmlu     those of the paper (FIPO, arXiv 2402.11811), from the hub or from local files
tasks, tasks=train                   built in, for the generators sandbox:north, sandbox:south and sandbox:unseen
NAME:SCORER=PATH                     questions of one's own, and how their answers are scored (see `scoring`)
"""

from __future__ import annotations

import difflib
import re

from preftune.data.sources import Source
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks.base import Benchmark, BenchmarkQuestion
from preftune.prompting.benchmarks.bbh import BBH
from preftune.prompting.benchmarks.cosmosqa import CosmosQA
from preftune.prompting.benchmarks.gsm8k import GSM8K
from preftune.prompting.benchmarks.mmlu import MMLU
from preftune.prompting.benchmarks.piqa import PiQA
from preftune.prompting.benchmarks.rows import Rows
from preftune.prompting.benchmarks.scoring import Scored, scorer_named
from preftune.prompting.benchmarks.tasks import Tasks

__all__ = ["BUILT_IN", "Benchmark", "BenchmarkQuestion", "Rows", "Scored", "open_benchmark"]

BUILT_IN: dict[str, type[Benchmark]] = {each.name: each for each in (GSM8K, BBH, PiQA, CosmosQA, MMLU, Tasks)}


def open_benchmark(name: str, source: Source | None = None, *, limit: int | None = None, seed: int = 0) -> Benchmark:
    """A benchmark by its name on the command line: NAME, NAME=PATH or NAME:SCORER=PATH.

    Args:
        name: that.
        source: its rows, instead of a path in the name.
        limit: most questions, drawn with the seed; None: all.
        seed: of the questions drawn and of the examples.

    Raises:
        PreftuneError: if there is no such benchmark or scorer. Its questions are read when they are needed.
    """
    label, equals, path = name.partition("=")
    title, _, scorer = label.strip().partition(":")
    place = source if source is not None else (path.strip() or None)
    if not re.fullmatch(r"[\w.-]+", title) or (equals and place is None):
        raise PreftuneError(
            f"benchmark {name!r} must be NAME, NAME=PATH or NAME:SCORER=PATH, with a NAME of letters, digits, . _ and -"
        )
    if limit is not None and limit < 1:
        raise PreftuneError(f"the limit of questions is {limit}, expected at least 1")
    if title in BUILT_IN:
        if scorer:
            raise PreftuneError(f"{title} has a scorer of its own: leave out :{scorer}, or choose another name")
        return BUILT_IN[title](place, limit, seed)
    if place is None:
        near = difflib.get_close_matches(title, BUILT_IN, 1)
        hint = f"did you mean {near[0]}?" if near else f"for questions of your own name their file, {title}:number=PATH"
        raise PreftuneError(f"there is no benchmark {title!r}, built in are {', '.join(BUILT_IN)}: {hint}")
    if scorer:
        scorer_named(scorer)
    return Rows(place, limit, seed, title=title, scorer=scorer or None)

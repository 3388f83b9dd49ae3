"""Responses of other prompts, for objectives that estimate a baseline from them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from preftune.data.examples import Example, Response
from preftune.errors import PreftuneError
from preftune.objectives.batch import Role

TRIES = 32  # random draws before all candidates are looked at in turn


def with_baselines(examples: Sequence[Example], pool: Sequence[Example], seed: int) -> list[Example]:
    """Each example with one more response, of role BASELINE, that was given to another prompt.

    It rides in the example's own prompt tree, and stays the same through the run, so that stored log-probs of a
    reference cover it. It is never a response that the example's prompt has in the pool. Its end is cut where it would
    make the example longer than any of the pool.

    Args:
        examples: what to add to.
        pool: where the responses come from.
        seed: other seeds, other draws.

    Raises:
        PreftuneError: if a prompt finds no response of another prompt.
    """
    given = defaultdict[bytes, set[bytes]](set)
    for example in (*pool, *examples):
        given[example.prompt.tobytes()].update(response.ids.tobytes() for response in example.responses)
    candidates = [(example.prompt.tobytes(), response) for example in pool for response in example.responses]
    longest = max(len(example.prompt) + len(r.ids) for example in pool for r in example.responses)
    random = np.random.default_rng((seed, len(pool), len(examples)))

    def baseline(example: Example) -> Response:
        own, room = example.prompt.tobytes(), max(longest - len(example.prompt), 1)
        drawn = (int(i) for i in random.integers(len(candidates), size=TRIES))
        for index in (*drawn, *range(len(candidates))):
            prompt, response = candidates[index]
            if prompt == own or response.ids.tobytes() in given[own]:
                continue
            fitted = _cut(response, room)
            if fitted.length:
                return fitted
        raise PreftuneError(
            f"row {example.row}: the objective compares each prompt with responses to other prompts, but the training "
            "data has none that this prompt does not have too: give data of at least two prompts (as the tokenizer "
            "sees them)"
        )

    return [replace(example, responses=(*example.responses, baseline(example))) for example in examples]


def _cut(response: Response, room: int) -> Response:
    targets = None if response.targets is None else response.targets[:room]
    return Response(response.ids[:room], Role.BASELINE, math.nan, targets)

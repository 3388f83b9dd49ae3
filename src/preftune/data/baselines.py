"""Responses of other prompts, for objectives that estimate a baseline from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import overload

import numpy as np
from numpy.typing import NDArray

from preftune.data.examples import Example, Response
from preftune.errors import PreftuneError
from preftune.objectives.batch import Role

TRIES = 32  # random draws before all candidates are looked at in turn
Numbers = NDArray[np.int64]


def with_baselines(examples: Sequence[Example], pool: Sequence[Example], seed: int) -> Sequence[Example]:
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
    random = np.random.default_rng((seed, len(pool), len(examples)))
    candidates = _Candidates(pool, examples)
    drawn = np.empty((len(examples), 2), dtype=np.int64)
    lengths = np.empty((len(examples), 3), dtype=np.int64)
    for i, example in enumerate(examples):
        tries = random.integers(candidates.count, size=TRIES)
        found = next(filter(None, (candidates.fitting(example, int(c)) for c in chain(tries, candidates.all))), None)
        if found is None:
            raise PreftuneError(
                f"row {example.row}: the objective compares each prompt with responses to other prompts, but the "
                "training data has none that this prompt does not have too: give data of at least two prompts (as the "
                "tokenizer sees them)"
            )
        *drawn[i], baseline = found
        responses = (*example.responses, baseline)
        longest = max(len(response.ids) for response in responses)
        lengths[i] = example.tokens + len(baseline.ids), len(example.prompt) + longest, len(responses)
    return Baselined(examples, pool, drawn, lengths, candidates.longest)


class Baselined(Sequence[Example]):
    """Examples, each with a response of the pool; put together when it is asked for, so that nothing is kept.

    Args:
        examples: as they were.
        pool: where the responses come from.
        drawn: the example of the pool and the number of its response for each of them, shape (examples, 2).
        lengths: what `training.batches.lengths` wants to know, shape (examples, 3).
        longest: tokens of a prompt and a response together at most.
    """

    def __init__(
        self, examples: Sequence[Example], pool: Sequence[Example], drawn: Numbers, lengths: Numbers, longest: int
    ) -> None:
        self._examples, self._pool, self._drawn = examples, pool, drawn
        self.lengths, self._longest = lengths, longest

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Baselined: ...
    def __getitem__(self, index: int | slice) -> Example | Baselined:
        if isinstance(index, slice):
            parts = self._examples[index], self._pool, self._drawn[index], self.lengths[index]
            return Baselined(*parts, self._longest)
        example, (other, number) = self._examples[index], self._drawn[index]
        baseline = _cut(self._pool[int(other)].responses[number], example, self._longest)
        return replace(example, responses=(*example.responses, baseline))


class _Candidates:
    """The responses of a pool by number, as hashes: two that differ and are taken for the same are passed over, and
    that is all."""

    def __init__(self, pool: Sequence[Example], examples: Sequence[Example]) -> None:
        self._pool = pool
        counts, prompts, pairs, self.longest = _hashed(pool)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._prompts = prompts
        self._given = np.sort(pairs if examples is pool else np.concatenate([pairs, _hashed(examples)[2]]))
        self.count = int(self._first[-1])
        self.all = range(self.count)

    def fitting(self, example: Example, candidate: int) -> tuple[int, int, Response] | None:
        """Example of the pool, number of its response and what of it fits, if it is one of another prompt."""
        other = int(np.searchsorted(self._first, candidate, side="right")) - 1
        if self._prompts[other] == hash(example.prompt.tobytes()):
            return None
        response = self._pool[other].responses[number := candidate - int(self._first[other])]
        pair = _pair(example, response)
        at = int(np.searchsorted(self._given, pair))
        if at < len(self._given) and self._given[at] == pair:
            return None
        fitted = _cut(response, example, self.longest)
        return (other, number, fitted) if fitted.length else None


def _hashed(examples: Iterable[Example]) -> tuple[Numbers, Numbers, Numbers, int]:
    """Of each example its number of responses and a hash of its prompt; of each of its responses a hash of prompt and
    response; the tokens of the longest prompt and response together."""
    counts, prompts, pairs, longest = bytearray(), bytearray(), bytearray(), 0
    for example in examples:
        counts += len(example.responses).to_bytes(8, "little")
        prompts += hash(example.prompt.tobytes()).to_bytes(8, "little", signed=True)
        for response in example.responses:
            pairs += _pair(example, response).to_bytes(8, "little", signed=True)
            longest = max(longest, len(example.prompt) + len(response.ids))
    found = [np.frombuffer(part, dtype="<i8") for part in (counts, prompts, pairs)]
    return found[0], found[1], found[2], longest


def _pair(example: Example, response: Response) -> int:
    return hash((example.prompt.tobytes(), response.ids.tobytes()))


def _cut(response: Response, example: Example, longest: int) -> Response:
    """What of the response makes the example no longer than the pool's longest."""
    room = max(longest - len(example.prompt), 1)
    targets = None if response.targets is None else response.targets[:room]
    return Response(response.ids[:room], Role.BASELINE, math.nan, targets)

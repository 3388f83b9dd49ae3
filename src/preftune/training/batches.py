"""Which examples meet in a batch: random, yet a function of (seed, epoch) alone."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterator, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from preftune.data.examples import Example

DEFAULT_SIZE = 8
# Streams of random numbers that must not meet.
ORDER, DROPOUT, SAMPLING = 1, 2, 3
# Batches that share out their examples among each other, where batches are made by a token budget: enough for batches
# of near-equal cost, few enough for each example to meet others in each epoch.
WINDOW = 64
Indices = NDArray[np.int64]


class BatchConfig(BaseModel):
    """How examples are grouped: per optimiser step (changes training) and per forward (changes memory only)."""

    model_config = ConfigDict(extra="forbid")

    size: int | None = Field(None, ge=1, description="examples per optimiser step, over all processes; none: 8")
    tokens: int | None = Field(
        None, ge=1, description="most tokens per optimiser step, instead of size; a longer example is a step of its own"
    )
    micro_size: int | None = Field(None, ge=1, description="most examples per forward")
    micro_tokens: int | None = Field(16384, ge=1, description="most tokens per forward; a longer example runs alone")

    @model_validator(mode="after")
    def _one_budget(self) -> BatchConfig:
        if self.tokens is not None and self.size is not None:
            raise ValueError("size and tokens both say how large a batch is: give one of them")
        if self.tokens is None and self.size is None:
            self.size = DEFAULT_SIZE
        return self


def random_stream(*key: int) -> np.random.Generator:
    """A generator that is a function of its key: seed, stream, and whatever tells its uses apart."""
    return np.random.default_rng(key)


def torch_seed(*key: int) -> int:
    """A seed for torch that is a function of its key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def lengths(examples: Sequence[Example]) -> Indices:
    """Of each example the tokens of its prompt tree, those of its longest path from the root, and its responses.

    Args:
        examples: read once, in order, and not kept; a sequence that knows them says so in an attribute `lengths`.

    Returns:
        Shape (examples, 3).
    """
    known = getattr(examples, "lengths", None)
    if known is not None:
        return np.asarray(known, dtype=np.int64)
    rows = ((e.tokens, len(e.prompt) + max(len(r.ids) for r in e.responses), len(e.responses)) for e in examples)
    flat = np.fromiter((value for row in rows for value in row), dtype=np.int64, count=3 * len(examples))
    return flat.reshape(-1, 3)


def plan_epoch(
    tokens: ArrayLike,
    config: BatchConfig,
    seed: int,
    epoch: int,
    least: int = 1,
    kinds: Sequence[Hashable] | None = None,
) -> list[Indices]:
    """Optimiser batches of one epoch, as indices of examples.

    By size they are cut from one random order, and the last one may be smaller. By tokens they are of near-equal cost:
    the random order is cut into windows of equal cost, whose examples are shared out, the longest first, to the batch
    that has the least so far; the batches then come in random order.

    Args:
        tokens: what a forward of each example costs, shape (examples,).
        config: batch size.
        seed: of the run.
        epoch: counted from 0.
        least: fewest examples of a batch that differ in kind; one of fewer joins its neighbour.
        kinds: of each example; none: all differ.
    """
    random = random_stream(seed, ORDER, epoch)
    tokens_N = np.asarray(tokens, dtype=np.int64)
    order_N = random.permutation(len(tokens_N))
    if config.tokens is None:
        planned = np.split(order_N, range(config.size or DEFAULT_SIZE, len(order_N), config.size or DEFAULT_SIZE))
    else:
        shared: list[list[int]] = []
        for done, window_M in enumerate(_windows(order_N, tokens_N, config.tokens)):
            # windows cost the same, so what those so far needed is a good guess
            shared += share_out(window_M, tokens_N, None, config.tokens, len(shared) // max(1, done))
        planned = [np.asarray(shared[i]) for i in random.permutation(len(shared))]
    return planned if least == 1 else _joined(planned, least, kinds)


def _windows(order_N: Indices, tokens_N: Indices, budget: int) -> list[Indices]:
    """Consecutive parts of an order, equal in cost, of about `WINDOW` batches each."""
    total_N = np.cumsum(np.minimum(tokens_N[order_N], budget))
    if not len(total_N):
        return []
    parts = math.ceil(total_N[-1] / (budget * WINDOW))
    return np.split(order_N, np.searchsorted(total_N, total_N[-1] * np.arange(1, parts) / parts))


def _joined(batches: Sequence[Indices], least: int, kinds: Sequence[Hashable] | None) -> list[Indices]:
    """The batches, those of fewer than `least` kinds joined to their neighbours."""
    joined: list[list[Indices]] = []
    known: list[set[Hashable]] = []
    for batch in batches:
        own: set[Hashable] = {int(i) if kinds is None else kinds[i] for i in batch}
        if joined and min(len(own), len(known[-1])) < least:
            joined[-1].append(batch)
            known[-1] |= own
        else:
            joined.append([batch])
            known.append(own)
    return [np.concatenate(parts) for parts in joined]


class Schedule:
    """The optimiser batches of a whole run, planned an epoch at a time.

    Attributes:
        steps: number of batches.
        per_epoch: number of batches of the first epoch.
        first: the first batch.
    """

    def __init__(
        self,
        tokens: ArrayLike,
        config: BatchConfig,
        seed: int,
        epochs: float,
        max_steps: int | None,
        least: int = 1,
        kinds: Sequence[Hashable] | None = None,
    ) -> None:
        """Arguments as of `plan_epoch`; `max_steps` takes precedence over `epochs`."""
        self._tokens_N = np.asarray(tokens, dtype=np.int64)
        self._config, self._seed, self._least, self._kinds = config, seed, least, kinds
        self._epoch_0 = self._plan(0)
        self.first = self._epoch_0[0]
        self.per_epoch = len(self._epoch_0)
        self.steps = max_steps or max(1, round(epochs * self.per_epoch))

    def _plan(self, epoch: int) -> list[Indices]:
        return plan_epoch(self._tokens_N, self._config, self._seed, epoch, self._least, self._kinds)

    def __iter__(self) -> Iterator[Indices]:
        return self.after(0)

    def after(self, done: int) -> Iterator[Indices]:
        """The batches that follow the first `done`."""
        every = (batch for epoch in count() for batch in (self._plan(epoch) if epoch else self._epoch_0))
        return islice(every, done, self.steps)


def micro_batches(
    batch: Sequence[int] | Indices, tokens: ArrayLike, config: BatchConfig, alone_above: int | None = None
) -> list[list[int]]:
    """One optimiser batch cut into forwards of near-equal cost.

    Args:
        batch: indices of examples.
        tokens: what a forward of each example of the data costs; the cost of several is the sum.
        config: the limits of a forward.
        alone_above: an example of more tokens than this runs alone (length-dependent RoPE).
    """
    batch_M, tokens_N = np.asarray(batch, dtype=np.int64), np.asarray(tokens, dtype=np.int64)
    alone_M = np.zeros(len(batch_M), dtype=bool) if alone_above is None else tokens_N[batch_M] > alone_above
    shared = share_out(batch_M[~alone_M], tokens_N, config.micro_size, config.micro_tokens)
    return shared + [[int(i)] for i in batch_M[alone_M]]


def padded_micro_batches(
    batch: Sequence[int] | Indices,
    rows: ArrayLike,
    longest: ArrayLike,
    config: BatchConfig,
    alone_above: int | None = None,
) -> list[list[int]]:
    """One optimiser batch cut into forwards of padded rows, examples of like length together.

    Args:
        batch: indices of examples.
        rows: responses of each example of the data.
        longest: tokens of its longest row: several examples cost all their rows times the longest of them.
        config: the limits of a forward.
        alone_above: an example with a longer row than this runs alone (length-dependent RoPE).
    """
    rows_N, longest_N = np.asarray(rows), np.asarray(longest)
    batch_M = np.asarray(batch, dtype=np.int64)
    groups: list[list[int]] = []
    used, room = 0, 0.0  # rows of the last group, and how many it may have
    for index in batch_M[np.argsort(-longest_N[batch_M], kind="stable")].tolist():
        width = int(longest_N[index])
        alone = alone_above is not None and width > alone_above
        full = not groups or len(groups[-1]) == config.micro_size
        if full or alone or used + rows_N[index] > room:
            groups.append([])
            used = 0
            room = 0 if alone else math.inf if config.micro_tokens is None else config.micro_tokens // width
        groups[-1].append(index)
        used += int(rows_N[index])
    return groups


def share_out(
    indices_M: Indices, tokens_N: Indices, size: int | None, budget: int | None, groups: int = 0
) -> list[list[int]]:
    """Groups of near-equal cost, as few as are found: the dearest example first, each to the group that has the least.

    Args:
        indices_M: of the examples to group.
        tokens_N: cost of each example of the data.
        size: most examples of a group.
        budget: largest cost of a group; a dearer example is a group of its own.
        groups: fewest groups of the examples that are not dearer.

    Returns:
        The groups, in the order of their first examples; within each the order of `indices_M` stays.
    """
    cost_M = tokens_N[indices_M]
    falling_M = np.argsort(-cost_M, kind="stable")
    dear = 0 if budget is None else int((cost_M > budget).sum())
    places, costs = falling_M[dear:].tolist(), cost_M[falling_M[dear:]].tolist()
    groups = max(groups, 1, math.ceil(len(places) / (size or math.inf)), math.ceil(sum(costs) / (budget or math.inf)))
    while (found := _dealt(places, costs, groups, size, budget)) is None:
        groups += max(1, groups // WINDOW)
    found += [[place] for place in falling_M[:dear].tolist()]
    return [indices_M[sorted(group)].tolist() for group in sorted(found, key=min)]


def _dealt(
    places: Sequence[int], costs: Sequence[int], groups: int, size: int | None, budget: int | None
) -> list[list[int]] | None:
    """This many groups of near-equal cost, from costs that fall; None if they do not fit the limits."""
    found: list[list[int]] = [[] for _ in range(groups)]
    heap = [(0, number) for number in range(groups)]
    limit = math.inf if budget is None else budget
    for place, cost in zip(places, costs, strict=True):
        used, number = heap[0]
        if used + cost > limit:
            return None
        group = found[number]
        group.append(place)
        if len(group) == size:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (used + cost, number))
    return [group for group in found if group]


def equalised(forwards: Sequence[Sequence[int]], count: int, stand_in: int) -> tuple[list[list[int]], int]:
    """As many forwards as other processes do: the largest are cut in two, and where each has one example left, a
    stand-in of one example is added, which counts for nothing.

    Args:
        forwards: indices of examples.
        count: how many forwards to do, at least as many as there are.
        stand_in: the example to compute in vain.

    Returns:
        The forwards, and how many of the last are stand-ins.
    """
    found = [list(forward) for forward in forwards]
    while len(found) < count and any(len(forward) > 1 for forward in found):
        at = max(range(len(found)), key=lambda i: len(found[i]))
        half = (len(found[at]) + 1) // 2
        found[at : at + 1] = [found[at][:half], found[at][half:]]
    missing = count - len(found)
    return found + [[stand_in]] * missing, missing

"""Which examples meet in a batch: random, yet a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_SIZE = 8
# Streams of random numbers that must not meet.
ORDER, DROPOUT, SAMPLING = 1, 2, 3


class BatchConfig(BaseModel):
    """How examples are grouped: per optimiser step (changes training) and per forward (changes memory only)."""

    model_config = ConfigDict(extra="forbid")

    size: int | None = Field(None, ge=1, description="examples per optimiser step, over all processes; none: 8")
    tokens: int | None = Field(None, ge=1, description="tokens per optimiser step, instead of size")
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


def plan_epoch(
    tokens: Sequence[int],
    config: BatchConfig,
    seed: int,
    epoch: int,
    least: int = 1,
    kinds: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """Optimiser batches of one epoch, as indices of examples; the last one may be smaller.

    Args:
        tokens: tokens of each example.
        config: batch size.
        seed: of the run.
        epoch: counted from 0.
        least: fewest examples of a batch that differ in kind; one of fewer joins its neighbour.
        kinds: of each example; none: all differ.
    """
    order = [int(i) for i in random_stream(seed, ORDER, epoch).permutation(len(tokens))]
    found: Sequence[Hashable] = range(len(tokens)) if kinds is None else kinds
    batches: list[list[int]] = []
    for batch in group(order, tokens, config.size, config.tokens):
        if batches and min(len({found[i] for i in each}) for each in (batch, batches[-1])) < least:
            batches[-1] += batch
        else:
            batches.append(batch)
    return batches


def micro_batches(
    batch: Sequence[int], tokens: Sequence[int], config: BatchConfig, alone_above: int | None = None
) -> list[list[int]]:
    """One optimiser batch cut into forwards.

    Args:
        batch: indices of examples.
        tokens: tokens of each example of the data.
        config: the limits of a forward.
        alone_above: an example of more tokens than this runs alone (length-dependent RoPE).
    """
    long = [[i] for i in batch if alone_above is not None and tokens[i] > alone_above]
    rest = [i for i in batch if alone_above is None or tokens[i] <= alone_above]
    return group(rest, tokens, config.micro_size, config.micro_tokens) + long


def group(order: Sequence[int], tokens: Sequence[int], size: int | None, budget: int | None) -> list[list[int]]:
    """Consecutive groups of at most `size` examples and at most `budget` tokens; one example always fits."""
    groups: list[list[int]] = []
    used = 0
    for index in order:
        full = not groups or (size is not None and len(groups[-1]) >= size)
        if full or (budget is not None and used + tokens[index] > budget):
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += tokens[index]
    return groups

"""From examples to forwards on the policy's device: cut, packed ahead of the step that needs them, and moved."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from preftune.data.examples import Example
from preftune.data.packing import pack, pad
from preftune.policy.policy import PolicyModule
from preftune.training.batches import (
    BatchConfig,
    Indices,
    equalised,
    lengths,
    micro_batches,
    padded_micro_batches,
    share_out,
)
from preftune.training.processes import Group
from preftune.training.step import Micro

Item = TypeVar("Item")
Made = TypeVar("Made")

# Batches that a thread packs ahead, by type of device. Where the CPU is the device, packing would take from the step
# the very time that it is to save.
AHEAD = {"cpu": 0, "mps": 2, "cuda": 2}


@dataclass(frozen=True)
class Share:
    """What one process does of a batch.

    Attributes:
        forwards: indices of the examples of each forward.
        stand_ins: how many of the last ones are computed only because other processes have as many forwards.
    """

    forwards: list[list[int]] = field(default_factory=list)
    stand_ins: int = 0

    @property
    def real(self) -> list[list[int]]:
        """The forwards that count."""
        return self.forwards[: len(self.forwards) - self.stand_ins]

    def stands_in(self, number: int) -> bool:
        """True if a forward is a stand-in."""
        return number >= len(self.forwards) - self.stand_ins


class Side(Sequence[Micro]):
    """Forwards over a side of the data, each packed when it is asked for: a whole side may not fit into memory."""

    def __init__(self, feed: Feed, examples: Sequence[Example], shares: Sequence[Share]) -> None:
        """`shares` are those of all processes."""
        self.feed, self.examples, self.shares = feed, examples, shares
        self.own = shares[feed.group.index]

    @property
    def ordered(self) -> Iterator[Example]:
        """The examples of all processes, in the order of their forwards."""
        return (self.examples[i] for share in self.shares for forward in share.real for i in forward)

    def __len__(self) -> int:
        return len(self.own.forwards)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        examples = [self.examples[i] for i in self.own.forwards[number]]
        return self.feed.prepare(examples, self.own.stands_in(number % len(self)))


class Feed:
    """Forwards for one policy.

    Args:
        policy: says which layout its batches have.
        config: the limits of a forward.
        alone_above: an example with a longer path than this runs alone (length-dependent RoPE).
        device: where forwards run.
        pad_id: fills padded rows.
        group: the processes that share the examples of each batch; none: this one alone.
    """

    def __init__(
        self,
        policy: PolicyModule,
        config: BatchConfig,
        alone_above: int | None,
        device: torch.device,
        pad_id: int,
        group: Group | None = None,
    ) -> None:
        self.policy, self.config, self.alone_above = policy, config, alone_above
        self.device, self.pad_id, self.group = device, pad_id, group or Group()

    def costs(self, lengths_N3: Indices) -> Indices:
        """Tokens that a forward of each example computes; `lengths_N3` as `batches.lengths` gives them."""
        tokens_N, longest_N, rows_N = lengths_N3.T
        return tokens_N if self.policy.layout == "tree" else longest_N * rows_N

    def shares(self, indices: Indices, lengths_N3: Indices) -> list[Share]:
        """An optimiser batch, or a whole side of the data, cut into forwards of each process: examples are shared out
        so that all compute about as much, and all do the same number of forwards. Every process finds the same."""
        size = self.group.size
        if size == 1:
            return [Share(self.forwards(indices, lengths_N3))]
        if not len(indices):
            return [Share()] * size
        costs_N = self.costs(lengths_N3)
        parts = share_out(np.asarray(indices), costs_N, None, None, size)
        parts += [[] for _ in range(size - len(parts))]  # fewer examples than processes
        cuts = [self.forwards(np.asarray(part, dtype=np.int64), lengths_N3) if part else [] for part in parts]
        shortest = int(min(indices, key=lambda i: costs_N[i]))
        return [Share(*equalised(cut, max(map(len, cuts)), shortest)) for cut in cuts]

    def cut(self, indices: Indices, lengths_N3: Indices) -> list[list[int]]:
        """This process's forwards of an optimiser batch or of a whole side of the data, stand-ins included."""
        return self.shares(indices, lengths_N3)[self.group.index].forwards

    def forwards(self, indices: Indices, lengths_N3: Indices) -> list[list[int]]:
        """Examples cut into forwards, as one process does them that has all of them."""
        if self.policy.layout == "tree":
            return micro_batches(indices, lengths_N3[:, 0], self.config, self.alone_above)
        return padded_micro_batches(indices, lengths_N3[:, 2], lengths_N3[:, 1], self.config, self.alone_above)

    def prepare(self, examples: Sequence[Example], stand_in: bool = False) -> Micro:
        """One forward over these examples."""
        return self._moved(self._packed(examples, stand_in))

    def side(self, examples: Sequence[Example]) -> Side:
        """Forwards over all examples of a side of the data."""
        return Side(self, examples, self.shares(np.arange(len(examples)), lengths(examples)))

    def batches(
        self, examples: Sequence[Example], lengths_N3: Indices, schedule: Iterable[Indices]
    ) -> Generator[list[Micro], None, None]:
        """The forwards of each optimiser batch, packed ahead; to be closed like `prefetched`.

        Args:
            examples: of the training side.
            lengths_N3: theirs.
            schedule: indices of each batch's examples.
        """

        def packed(batch: Indices) -> list[Micro]:
            own = self.shares(batch, lengths_N3)[self.group.index]
            return [
                self._packed([examples[i] for i in forward], own.stands_in(number))
                for number, forward in enumerate(own.forwards)
            ]

        with closing(prefetched(packed, schedule, AHEAD.get(self.device.type, 0))) as ahead:
            for micros in ahead:
                yield [self._moved(micro) for micro in micros]

    def _packed(self, examples: Sequence[Example], stand_in: bool = False) -> Micro:
        """On the host, from where a GPU can fetch it."""
        batch = pack(examples) if self.policy.layout == "tree" else pad(examples, self.pad_id)
        # from page-locked memory a copy goes on beside the GPU's and the caller's work
        return Micro(examples, batch.mapped(Tensor.pin_memory) if self.device.type == "cuda" else batch, stand_in)

    def _moved(self, micro: Micro) -> Micro:
        return micro if self.device.type == "cpu" else replace(micro, batch=micro.batch.to(self.device))


def prefetched(make: Callable[[Item], Made], items: Iterable[Item], ahead: int) -> Generator[Made, None, None]:
    """`map(make, items)`, computed ahead by one thread: in the same order, with the same errors at the same places.

    To be closed (`contextlib.closing`) by who may leave before the end: no thread outlives it then.

    Args:
        make: what takes time.
        items: taken one by one, by the caller's thread.
        ahead: results to have ready; 0: no thread, and each is made when it is asked for.
    """
    if ahead == 0:
        yield from map(make, items)
        return
    source = iter(items)
    worker = ThreadPoolExecutor(1, thread_name_prefix="preftune-feed")
    try:
        waiting: deque[Future[Made]] = deque(worker.submit(make, item) for item in islice(source, ahead))
        while waiting:
            first = waiting.popleft()
            waiting.extend(worker.submit(make, item) for item in islice(source, 1))
            yield first.result()
    finally:
        worker.shutdown(wait=True, cancel_futures=True)

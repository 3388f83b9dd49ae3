"""What an online run will learn from, before anything is sampled: its prompts, and which of them meet in a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Literal

import numpy as np

from preftune.data.dataset import Examples, Records, records_of
from preftune.data.examples import Example, Ids, Response
from preftune.data.records import Demonstration, Text
from preftune.data.writing import as_row
from preftune.errors import PreftuneError
from preftune.objectives.base import DataKind
from preftune.objectives.batch import Role
from preftune.rlhf.config import OnlineConfig
from preftune.training.batches import DEFAULT_SIZE, ORDER, BatchConfig, Indices, random_stream

# Streams of random numbers beside those of training.batches.
PROMPTS, ROLLOUTS, LABELS = 4, 5, 6
SIDES: tuple[Literal["train", "held_out"], ...] = ("train", "held_out")


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt that the policy answers.

    Attributes:
        ids: its tokens, as the policy reads them.
        text: as a judge reads it.
        fields: the row of the data, for judges that know a right answer (`answer`).
        row: number of that row.
    """

    ids: Ids
    text: str
    fields: Mapping[str, Any]
    row: int


@dataclass(frozen=True)
class Planned(Examples):
    """The examples of an online run. Those of `train` and `held_out` stand for what will be sampled: prompts with as
    many and as long answers as there may be.

    Attributes:
        asked: training prompts, all different, in the order of the data.
        apart: held-out ones.
    """

    asked: Sequence[Asked] = ()
    apart: Sequence[Asked] = ()


def planned(records: Records, examples: Examples, config: OnlineConfig, longest: int | None) -> Planned:
    """The prompts of the data, and what stands for their answers.

    Args:
        records: of the run.
        examples: made from them; their responses do not count.
        config: how the policy answers.
        longest: tokens that the model reads at most, prompt included; None: no limit.

    Raises:
        PreftuneError: if a prompt leaves no room for an answer.
    """
    asked, apart = (_asked(records, side, getattr(examples, side)) for side in SIDES)
    room = config.max_new_tokens
    if longest is not None:
        tokens, row = max((len(one.ids), one.row) for one in (*asked, *apart))
        if tokens >= longest:
            raise PreftuneError(
                f"the prompt of row {row} has {tokens} tokens, and the model reads {longest}: no room is left for an "
                "answer; set data.rendering.max_length"
            )
        room = min(room, longest - tokens)
    stand_in = Response(np.full(room, asked[0].ids[0], np.int32), Role.RANKED, 0.0)

    def side(prompts: Sequence[Asked], answers: int) -> list[Example]:
        return [Example(one.ids, (stand_in,) * answers, row=one.row) for one in prompts]

    messages = list(examples.messages)
    if room < config.max_new_tokens:
        messages.append(f"answers are cut at {room} tokens: the model reads {longest} tokens, prompt included")
    kept = {name: getattr(examples, name) for name in ("end_ids", "chat_template", "largest")}
    return Planned(side(asked, config.samples), side(apart, 1), messages=messages, asked=asked, apart=apart, **kept)


def _asked(records: Records, name: Literal["train", "held_out"], examples: Sequence[Example]) -> list[Asked]:
    """The different prompts of a side."""
    found: dict[bytes, Asked] = {}
    if not len(examples):
        return []
    for record, example in zip(records_of(records, name, examples), examples, strict=True):
        key = example.prompt.tobytes()
        if key not in found:
            fields = as_row(record)
            if isinstance(record, Demonstration):
                fields["answer"] = _plain(record.response)
            found[key] = Asked(example.prompt, _plain(record.prompt), fields, example.row)
    return list(found.values())


def _plain(text: Text) -> str:
    """Text, or the turns of a conversation as text."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in text)


class Rota:
    """Which prompts a round asks, and which of its examples meet in a batch: functions of the seed.

    It stands where a `training.batches.Schedule` stands, and gives batches as indices of prompts.

    Args:
        prompts: number of training prompts.
        config: of the rounds.
        batch: how many examples an optimiser step takes.
        kind: of data that the objective learns from.
        seed: of the run.
        max_steps: optimiser steps, if fewer than the rounds have.

    Attributes:
        each: examples that are made of a prompt's answers.
        per_round: optimiser steps of a round.
        per_epoch: the same: an epoch is a round.
        steps: of the whole run.
        first: the first batch.
    """

    def __init__(
        self, prompts: int, config: OnlineConfig, batch: BatchConfig, kind: DataKind, seed: int, max_steps: int | None
    ) -> None:
        self.prompts, self.config, self.seed = prompts, config, seed
        self.each = config.samples if kind == "labels" else 1
        self.parts = math.ceil(config.prompts * self.each / (batch.size or DEFAULT_SIZE))
        self.per_round = self.per_epoch = self.parts * config.epochs
        self.steps = min(config.rounds * self.per_round, max_steps or config.rounds * self.per_round)
        self.first = next(iter(self))

    def asked(self, number: int) -> list[int]:
        """Prompts of a round, which come in one random order after the other."""
        first, last = (n * self.config.prompts for n in (number, number + 1))
        times = range(first // self.prompts, -(-last // self.prompts))
        order_N = np.concatenate([random_stream(self.seed, PROMPTS, n).permutation(self.prompts) for n in times])
        start = first - times[0] * self.prompts
        found: list[int] = order_N[start : start + self.config.prompts].tolist()
        return found

    def batches(self, number: int) -> Iterator[Indices]:
        """The batches of a round, as indices of its examples."""
        examples = self.config.prompts * self.each
        for epoch in range(self.config.epochs):
            order_N = random_stream(self.seed, ORDER, number, epoch).permutation(examples)
            yield from np.array_split(order_N, self.parts)

    def __iter__(self) -> Iterator[Indices]:
        return self.after(0)

    def after(self, done: int) -> Iterator[Indices]:
        """The batches that follow the first `done`, as indices of prompts."""
        first, skipped = divmod(done, self.per_round)

        def every() -> Iterator[Indices]:
            for number in count(first):
                asked = np.array(self.asked(number))
                yield from (asked[batch // self.each] for batch in self.batches(number))

        return islice(every(), skipped, skipped + max(0, self.steps - done))

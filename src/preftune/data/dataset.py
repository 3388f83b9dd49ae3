"""From a source to examples on two sides, training and held out: sources -> records -> split -> token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, islice
from numbers import Real
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from preftune.data import sources
from preftune.data.examples import Example
from preftune.data.fields import shown
from preftune.data.records import (
    WEIGHT,
    Demonstration,
    Drops,
    Judged,
    Preference,
    Ranking,
    Record,
    fingerprint,
    is_weight,
    records,
    without_identical,
)
from preftune.data.rendering import NONE_LEFT, Renderer, RenderingConfig, render_all
from preftune.data.split import held_out, prompt_key
from preftune.errors import PreftuneError
from preftune.objectives.base import DataKind

KIND: dict[type, DataKind] = {
    Preference: "pairs",
    Judged: "labels",
    Ranking: "rankings",
    Demonstration: "demonstrations",
}
WHAT: dict[DataKind, str] = {
    "pairs": "pairs (prompt, chosen, rejected)",
    "labels": "judged responses (prompt, completion, label)",
    "rankings": "rankings (prompt, responses, scores)",
    "demonstrations": "demonstrations (prompt, completion)",
}
NONE_HELD_OUT = (
    "no record is left of the held-out data: {summary}; hold out other or more records (data.held_out), or change "
    "data.rendering (max_length)"
)


class DataConfig(BaseModel):
    """What to learn from."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(None, description="file, folder, hub id, or 'sandbox' (built in)")
    layout: str | None = Field(None, description="name of the rows' layout; none: recognised on sight")
    split: str | None = Field(None, description="split of a data set on the hub")
    limit: int | None = Field(None, ge=1, description="use the first rows only")
    held_out: int | float = Field(0.1, ge=0, description="share (below 1) or number of records held out, by prompt")
    held_out_path: str | None = Field(
        None, description="data of its own to hold out, instead of a share; records of training prompts are left out"
    )
    bad_rows: Literal["error", "drop"] = Field("error", description="what becomes of rows that cannot be read")
    rendering: RenderingConfig = Field(default_factory=RenderingConfig, description="from text to tokens")


@dataclass(frozen=True)
class Records:
    """The records of a run, before any tokenizer is known.

    Attributes:
        train: to learn from.
        held_out: to evaluate on; may be empty.
        kind: what all of them are.
        fingerprint: SHA-256 of both sides.
        messages: what was left out, one line each.
    """

    train: list[Record]
    held_out: list[Record]
    kind: DataKind
    fingerprint: str
    messages: list[str]

    def texts(self) -> Iterator[str]:
        """Every text of the training side, to train a tokenizer on."""
        for record in self.train:
            if isinstance(record, Preference):
                parts: tuple[Any, ...] = (record.prompt, record.chosen, record.rejected)
            elif isinstance(record, Ranking):
                parts = (record.prompt, *record.responses)
            else:
                parts = (record.prompt, record.response)
            for part in parts:
                if isinstance(part, str):
                    yield part
                else:
                    yield from (turn.content for turn in part)


@dataclass(frozen=True)
class Examples:
    """The same as token ids.

    Attributes:
        train: to learn from.
        held_out: to evaluate on; may be empty.
        messages: what was left out and what to know about tokenizer and template, one line each.
        end_ids: tokens that end a response.
        chat_template: the chat template that was used, if one was.
    """

    train: list[Example]
    held_out: list[Example]
    messages: list[str]
    end_ids: tuple[int, ...] = ()
    chat_template: str | None = None


def read(
    config: DataConfig, source: str | Iterable[Any], seed: int, apart: str | Iterable[Any] | None = None
) -> Records:
    """Read, check and split a source.

    Args:
        config: how to read and what to hold out.
        source: what `sources.rows` takes, or records.
        seed: of the split.
        apart: a source to hold out, instead of a share of the first; nothing is held out if it is empty.

    Raises:
        PreftuneError: for anything wrong with the data.
    """
    _check_held_out(config, apart)
    unreadable, identical, shared = Drops(config.bad_rows), Drops("drop"), Drops("drop")

    def read_all(of: str | Iterable[Any], split: str | None) -> list[Record]:
        found, of = _as_records(of)
        if found is None:
            found = records(sources.rows(of, split=split), config.layout, unreadable)
        return list(without_identical(islice(found, config.limit), identical))

    train = read_all(source, config.split)
    if not train:
        raise PreftuneError(f"no usable row in the data: {identical.summary()}")
    apart = config.held_out_path if apart is None else apart
    other: list[Record] = []
    if apart is None and config.held_out:
        train, other = held_out(train, config.held_out, seed)
    elif apart is not None and not _is_empty(apart):
        other = read_all(apart, None)
        if not other:
            raise PreftuneError(f"no usable row in the held-out data: {identical.summary()}")
        other = _unshared(other, train, shared)
    _check_weights(train, other)
    kinds = {KIND[type(record)] for record in (*train, *other)}
    if len(kinds) > 1:
        raise PreftuneError(f"the data mixes {' and '.join(sorted(WHAT[kind] for kind in kinds))}: train on one kind")
    messages = [drops.summary() for drops in (unreadable, identical) if drops.dropped]
    if shared.dropped:
        messages.append(f"held-out data: {shared.summary()}")
    return Records(train, other, kinds.pop(), fingerprint([*train, *other]), messages)


def render(found: Records, tokenizer: Any, config: DataConfig) -> Examples:
    """Records -> token ids, by the tokenizer's chat template for conversations.

    Raises:
        PreftuneError: if nothing is left to train on, or a prompt and its response do not stay apart as tokens.
    """
    renderer = Renderer(tokenizer, config.rendering)
    sides, messages = [], list(found.messages)
    for name, side, empty in (("training", found.train, NONE_LEFT), ("held-out", found.held_out, NONE_HELD_OUT)):
        examples, dropped = render_all(side, renderer, empty) if side else ([], [])
        if dropped:
            messages.append(f"{name} data: {Drops('drop', dropped).summary()}")
        sides.append(examples)
    _check_some_weigh(sides[0])
    template = None if renderer.chat is None else renderer.chat.template
    ends = tuple(sorted(renderer.end_ids))
    return Examples(sides[0], sides[1], [*messages, *renderer.notes], ends, template)


def _check_held_out(config: DataConfig, apart: str | Iterable[Any] | None) -> None:
    """Refuse two answers to what is held out. The share's default says nothing: resolved configs write it too."""
    given = ["held_out="] if apart is not None else []
    if config.held_out_path is not None:
        given.append("data.held_out_path")
    if config.held_out not in (0, DataConfig.model_fields["held_out"].default):
        given.append(f"data.held_out={config.held_out:g}")
    if len(given) > 1:
        raise PreftuneError(f"{' and '.join(given)} each say what is held out: give one of them")


def _is_empty(source: str | Iterable[Any]) -> bool:
    return isinstance(source, Sized) and not isinstance(source, str) and len(source) == 0


def _unshared(records: list[Record], train: list[Record], drops: Drops) -> list[Record]:
    """The held-out records whose prompt is not in the training data; the others go into `drops`."""
    prompts = {prompt_key(record.prompt) for record in train}
    kept = []
    for record in records:
        if prompt_key(record.prompt) in prompts:
            drops.add(record.where, "the prompt is in the training data too")
        else:
            kept.append(record)
    if not kept:
        raise PreftuneError(
            f"no record is left of the held-out data: {drops.summary()}; give held-out data with prompts of its own"
        )
    return kept


def _check_weights(train: list[Record], other: list[Record]) -> None:
    """Refuse weights that float32 does not hold, which rows cannot have but records can, and data without weight."""
    for record in (*train, *other):
        if not (isinstance(record.weight, Real) and is_weight(record.weight)):
            raise PreftuneError(f"{record.where}: weight is {shown(record.weight)}, expected {WEIGHT}")
    _check_some_weigh(train)


def _check_some_weigh(train: Sequence[Record] | Sequence[Example]) -> None:
    if train and not any(one.weight for one in train):
        raise PreftuneError("every training record has weight 0, so that nothing would be learned: raise some weights")


def _as_records(source: str | Iterable[Any]) -> tuple[Iterator[Record] | None, str | Iterable[Any]]:
    """The source as records, if that is what it holds already; and the source, none of it lost."""
    if isinstance(source, str) or not isinstance(source, Sequence | Iterator):
        return None, source
    whole = iter(source)
    first = list(islice(whole, 1))
    if first and isinstance(first[0], Record):
        return chain(first, whole), source
    return None, chain(first, whole) if isinstance(source, Iterator) else source

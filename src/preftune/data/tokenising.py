"""Lines of records -> an Arrow file of examples, in this process or in several; once for each content of the cache."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from preftune.data.entries import About, fetch, key_of
from preftune.data.lines import Lines, Mask, read_line
from preftune.data.records import Dropped, DropPolicy, Drops
from preftune.data.rendering import Refused, Renderer, RenderingConfig
from preftune.data.tokens import SCHEMA, StoredExamples, TokenFile, largest_id, to_batch
from preftune.data.workers import CannotShare, Workers, worker_count
from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1024  # records whose texts are tokenised in one call, and that are handed to a process at once
NAMED = 10  # rows named in one error
FILE = "examples.arrow"


@dataclass(frozen=True)
class Side:
    """Some records of a source, on one side of a split.

    Attributes:
        lines: of the source.
        mask: True for those on this side, shape (records of the source,).
        digest: of all the source's records.
        name: for messages.
        empty: what to say if none of them becomes an example, with {summary} for the reasons.
    """

    lines: Lines
    mask: Mask
    digest: str
    name: str
    empty: str


@dataclass(frozen=True)
class Rendered:
    """What became of a chunk of records: a piece of the file, and what may not be left out in silence.

    Attributes:
        batch: of examples and of those left out; a refused record has a row of no meaning.
        refused: by their place in the chunk.
        chat: True if a chat template was used.
    """

    batch: pa.RecordBatch
    refused: dict[int, Refused]
    chat: bool


class Tokeniser:
    """Renders lines.

    Args:
        tokenizer: the policy's.
        config: how to render.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: RenderingConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.notes: list[str] = []

    @cached_property
    def renderer(self) -> Renderer:
        """Made when it is needed: in the process that renders."""
        return Renderer(self.tokenizer, self.config)

    def render(self, lines: Sequence[bytes], sources: Sequence[str]) -> Rendered:
        """One chunk, whose lines name these sources by number."""
        outcomes = self.renderer.outcomes([read_line(line, sources) for line in lines])
        refused = {i: one for i, one in enumerate(outcomes) if isinstance(one, Refused)}
        rows = [Dropped(one.where, one.reason) if isinstance(one, Refused) else one for one in outcomes]
        return Rendered(to_batch(rows), refused, self.renderer.chat is not None)

    def examples(
        self, sides: Sequence[Side], workers: int | None, unfit: DropPolicy = "drop"
    ) -> tuple[list[StoredExamples], About, list[str]]:
        """The examples of the sides of one source, what is known of all of them, and what to tell the user.

        Raises:
            PreftuneError: naming the rows that cannot be rendered faithfully; if all of a side are left out, or if any
                are where `unfit` is "error".
        """
        union = np.logical_or.reduce([side.mask for side in sides])
        lines, masks = sides[0].lines, [side.mask[union] for side in sides]

        def make(folder: Path) -> About:
            return self._write(folder, lines, union, masks, workers)

        entry = fetch("tokens", self._key(sides[0].digest, union), make)
        file = TokenFile(entry.folder / FILE)
        if entry.about["chat"]:
            self.renderer.use_chat()
        drops = [Drops("drop") for _ in sides]
        for index, dropped in file.left_out():
            drops[_side_of(index, masks)].add(dropped.where, dropped.reason)
        found = [StoredExamples(file, np.flatnonzero(mask & file.is_example)) for mask in masks]
        for side, kept, left_out in zip(sides, found, drops, strict=True):
            if left_out.total and unfit == "error":
                raise PreftuneError(
                    f"{side.name} data: {left_out.summary()}; mend the data, change data.rendering (max_length), or "
                    "set data.doctor.tokens=drop"
                )
            if left_out.total and not len(kept):
                raise PreftuneError(side.empty.format(summary=left_out.summary()))
        said = [
            f"{side.name} data: {left_out.summary()}"
            for side, left_out in zip(sides, drops, strict=True)
            if left_out.total
        ]
        return found, entry.about, [*entry.notes, *self.notes, *said]

    def _write(self, folder: Path, lines: Lines, union: Mask, masks: Sequence[Mask], workers: int | None) -> About:
        refusals = [_Refusals() for _ in masks]
        largest, chat, first = -1, False, 0
        with (
            closing(self.rendered(lines, union, workers)) as chunks,
            pa.OSFile(str(folder / FILE), "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA) as writer,
        ):
            for rendered in chunks:
                writer.write_batch(rendered.batch)
                largest, chat = max(largest, largest_id(rendered.batch)), chat or rendered.chat
                for i, refused in rendered.refused.items():
                    refusals[_side_of(first + i, masks)].add(refused)
                first += len(rendered.batch)
        for mask, found in zip(masks, refusals, strict=True):
            found.check(int(mask.sum()))
        return {"largest": largest, "chat": chat}

    def rendered(self, lines: Lines, union: Mask, workers: int | None) -> Generator[Rendered, None, None]:
        """The records that `union` marks, chunk after chunk in order."""
        sources, raw = lines.sources, lines.raw(union)
        chunks = iter(lambda: list(islice(raw, CHUNK)), [])
        count = worker_count(workers, int(union.sum()), CHUNK)
        with closing(raw):
            if count > 1:
                try:
                    with Workers(self, sources, count) as pool:
                        yield from pool.map(chunks)
                    return
                except CannotShare as error:
                    self.notes.append(f"this process tokenises alone: the tokenizer cannot be handed on ({error})")
            for chunk in chunks:
                yield self.render(chunk, sources)

    def _key(self, digest: str, union: Mask) -> str | None:
        """Of all that decides the examples; None if the tokenizer's behaviour cannot be told from its content."""
        content = tokenizer_content(self.tokenizer)
        if content is None:
            return None
        template = self.renderer.template
        config = self.config.model_dump(exclude={"chat_template"})
        # templates may write the date
        today = date.today().isoformat() if template and "strftime_now" in template else None
        rows = None if union.all() else np.packbits(union).tobytes().hex()
        return key_of("tokens", digest, rows, content, template, config, today)


def _side_of(index: int, masks: Sequence[Mask]) -> int:
    return next(i for i, mask in enumerate(masks) if mask[index])


class _Refusals:
    """The records of one side that cannot be rendered faithfully."""

    def __init__(self) -> None:
        self.count = 0
        self.named: list[Refused] = []

    def add(self, refused: Refused) -> None:
        """Count one, and name it in the error if it is one of the first."""
        self.count += 1
        self.named += [refused] if len(self.named) < NAMED else []

    def check(self, total: int) -> None:
        """Stop if there are any; `total` is the number of records on their side."""
        if self.count:
            named = ", ".join(str(one.where) for one in self.named)
            more = f" and {self.count - NAMED} more" if self.count > NAMED else ""
            raise PreftuneError(
                f"{self.count} of {total} records cannot be rendered ({named}{more}); in the first, "
                f"{self.named[0].reason}"
            )


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> Any | None:
    """All that decides what a tokenizer does; None unless it is transformers' own and a `tokenizers` one, whose
    behaviour is data and not code."""
    if not (getattr(tokenizer, "is_fast", False) and type(tokenizer).__module__.startswith("transformers.")):
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # of the last call
        backend.pop(state, None)
    added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    split = getattr(tokenizer, "split_special_tokens", False)
    return [type(tokenizer).__qualname__, backend, tokenizer.special_tokens_map, added, split]

"""What a tokenizer and a chat template make of records: all that rendering refuses or leaves out, by kind."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from preftune.data.doctor.findings import LISTED, Finding, Places, rows
from preftune.data.lines import Lines
from preftune.data.records import Where
from preftune.data.rendering import RenderingConfig
from preftune.data.tokenising import Tokeniser

if TYPE_CHECKING:
    from pyarrow import RecordBatch  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerBase

# Name, what rendering says of such a record, and what it is. The last one takes all that is left.
KINDS = (
    ("too_long", r"longer than max_length", "longer than data.rendering.max_length or the model allows"),
    ("identical_tokens", r"identical in tokens", "left without a preference: the responses are the same tokens"),
    ("empty_tokens", r"is empty", "empty as tokens, in prompt or response"),
    ("end_twice", r"holds the end token", "given an end token in their text, which would end them twice"),
    (
        "templated_text",
        r"holds the control token",
        "given control tokens in their text, as a chat template writes them",
    ),
    ("begin_twice", r"begins with .* twice", "begun with BOS twice"),
    ("boundary", r"the tokenizer joins", "not divided between prompt and response: one token belongs to both"),
    ("template", r"", "not rendered faithfully by the chat template"),
)


MOST_UNKNOWN = 0.01  # of the tokens


def kind_of(reason: str) -> int:
    """Which of KINDS a reason of rendering belongs to."""
    return next(number for number, (_, pattern, _) in enumerate(KINDS) if re.search(pattern, reason))


def unfit_as_tokens(
    lines: Lines,
    places: Places,
    tokenizer: PreTrainedTokenizerBase,
    config: RenderingConfig,
    workers: int | None = None,
) -> tuple[list[Finding], list[str]]:
    """What cannot be trained on with this tokenizer or only badly, and what to know of it.

    Raises:
        PreftuneError: if the tokenizer or its chat template cannot be used at all.
    """
    tokeniser = Tokeniser(tokenizer, config)
    found: list[list[int]] = [[] for _ in KINDS]
    listed: list[list[tuple[Where, Where | None, str]]] = [[] for _ in KINDS]
    number, unknown, total = 0, 0, 0
    with closing(tokeniser.rendered(lines, np.ones(lines.count, dtype=np.bool_), workers)) as chunks:
        for chunk in chunks:
            reasons: list[str | None] = chunk.batch.column("left_out").to_pylist()
            for place, reason in enumerate(reasons):
                why = chunk.refused[place].reason if place in chunk.refused else reason
                if why is not None:
                    kind = kind_of(why)
                    found[kind].append(number + place)
                    if len(listed[kind]) < LISTED:
                        listed[kind].append((places[number + place], None, why))
            number += len(reasons)
            ids = _ids(chunk.batch)
            unknown, total = unknown + int((ids == tokenizer.unk_token_id).sum()), total + len(ids)
    findings = [
        Finding(
            name, "error", rows(len(records), f"are {text}", does), len(records), shown, np.array(records), reason=does
        )
        for (name, _, text), records, shown in zip(KINDS, found, listed, strict=True)
        if records and (does := f"is {text}")
    ]
    if tokenizer.unk_token_id is not None and unknown > MOST_UNKNOWN * total:
        text = f"{unknown / total:.0%} of the tokens are {tokenizer.unk_token}: the tokenizer does not know such text"
        findings.append(Finding("unknown_tokens", "warning", text))
    return findings, [*tokeniser.notes, *tokeniser.renderer.notes]


def _ids(batch: RecordBatch) -> NDArray[np.int32]:
    """All token ids of a piece, in any order."""
    parts = (batch.column("prompt").values, batch.column("responses").values.field("ids").values)
    return np.concatenate([part.to_numpy() for part in parts])

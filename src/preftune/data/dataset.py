"""From a source to examples on two sides, training and held out: sources -> records -> split -> token ids.

Neither records nor examples are held in memory: both lie in files of the cache, and are read one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from preftune.data.doctor.checkup import Chart, decide, examine, overlap, report
from preftune.data.doctor.findings import DoctorConfig
from preftune.data.entries import About, fetch, key_of
from preftune.data.examples import Example
from preftune.data.lines import Lines, Mask, Reading, content
from preftune.data.records import Drops, Preference, PromptOnly, Ranking, Record
from preftune.data.rendering import RenderingConfig
from preftune.data.split import choose, prompt_digests
from preftune.data.tokenising import Side, Tokeniser
from preftune.data.tokens import StoredExamples
from preftune.errors import PreftuneError
from preftune.objectives.base import DataKind

KIND: dict[str, DataKind] = {
    "Preference": "pairs",
    "Judged": "labels",
    "Ranking": "rankings",
    "Demonstration": "demonstrations",
    "PromptOnly": "rollouts",
}
WHAT: dict[DataKind, str] = {
    "pairs": "pairs (prompt, chosen, rejected)",
    "labels": "judged responses (prompt, completion, label)",
    "rankings": "rankings (prompt, responses, scores)",
    "demonstrations": "demonstrations (prompt, completion)",
    "rollouts": "prompts alone, to which the policy samples answers (online)",
}
NONE_LEFT = "no record is left to learn from: {summary}; mend the data, or change data.rendering"
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
    workers: int | None = Field(
        None, ge=1, description="most processes that tokenise; none: one for each core, as far as the data is worth it"
    )
    rendering: RenderingConfig = Field(default_factory=RenderingConfig, description="from text to tokens")
    doctor: DoctorConfig = Field(
        default_factory=DoctorConfig, description="what is looked for in the training data, and what becomes of it"
    )


class SideRecords(Collection[Record]):
    """The records of one side, read from disk each time they are gone through."""

    def __init__(self, side: Side) -> None:
        self.side = side

    def __len__(self) -> int:
        return int(self.side.mask.sum())

    def __iter__(self) -> Iterator[Record]:
        return self.side.lines.records(self.side.mask)

    def __contains__(self, record: object) -> bool:
        return any(record == each for each in self)


@dataclass(frozen=True)
class Records:
    """The records of a run, before any tokenizer is known.

    Attributes:
        train: to learn from.
        held_out: to evaluate on; may be empty.
        kind: what all of them are.
        plain: True if all training prompts are plain text.
        fingerprint: SHA-256 of both sides.
        messages: what was left out, one line each.
        doctor: what the data doctor found, as data_doctor.json has it.
    """

    train: SideRecords
    held_out: SideRecords
    kind: DataKind
    plain: bool
    fingerprint: str
    messages: list[str]
    doctor: Mapping[str, Any]

    def texts(self) -> Iterator[str]:
        """Every text of the training side, to train a tokenizer on."""
        for record in self.train:
            if isinstance(record, Preference):
                parts: tuple[Any, ...] = (record.prompt, record.chosen, record.rejected)
            elif isinstance(record, Ranking):
                parts = (record.prompt, *record.responses)
            elif isinstance(record, PromptOnly):
                parts = (record.prompt,)
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
        train: to learn from; each is read from disk when it is asked for.
        held_out: to evaluate on; may be empty.
        messages: what was left out and what to know about tokenizer and template, one line each.
        end_ids: tokens that end a response.
        chat_template: the chat template that was used, if one was.
        largest: the largest token id.
    """

    train: Sequence[Example]
    held_out: Sequence[Example]
    messages: list[str]
    end_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    largest: int = -1


def read(
    config: DataConfig, source: str | Iterable[Any], seed: int, apart: str | Iterable[Any] | None = None
) -> Records:
    """Read, check and split a source, or find in the cache what came of it before.

    Args:
        config: how to read and what to hold out.
        source: what `sources.rows` takes, or records.
        seed: of the split.
        apart: a source to hold out, instead of a share of the first; nothing is held out if it is empty.

    Raises:
        PreftuneError: for anything wrong with the data.
    """
    _check_held_out(config, apart)
    reading = Reading(config.layout, config.split, config.limit, config.bad_rows)
    train = Lines(source, reading)
    apart = config.held_out_path if apart is None else apart
    other = None if apart is None or _is_empty(apart) else Lines(apart, replace(reading, split=None))
    share = config.held_out if apart is None else 0
    given = [train] if other is None else [train, other]
    known = all(lines.key is not None for lines in given)
    doctor = config.doctor
    key = key_of("split", [lines.key for lines in given], share, seed, doctor.model_dump()) if known else None

    def make(folder: Path) -> About:
        return _divide(folder, train, other, share, seed, doctor)

    entry = fetch("split", key, make, lambda: all(lines.unchanged() for lines in given))
    about, masks = entry.about, [np.load(entry.folder / f"{name}.npy") for name in ("train", "held_out")]
    sides = (
        Side(train, masks[0], about["digests"][0], "training", NONE_LEFT),
        Side(given[-1], masks[1], about["digests"][-1], "held-out", NONE_HELD_OUT),
    )
    notes = [*entry.notes, *(note for lines in given for note in lines.notes)]
    messages = [*dict.fromkeys(notes), *about["messages"]]
    plain, fingerprint = about["plain"], about["fingerprint"]
    both = (SideRecords(sides[0]), SideRecords(sides[1]))
    return Records(*both, about["kind"], plain, fingerprint, messages, about["doctor"])


def render(found: Records, tokenizer: Any, config: DataConfig) -> Examples:
    """Records -> token ids, by the tokenizer's chat template for conversations, or from the cache.

    Raises:
        PreftuneError: if nothing is left to train on, or a prompt and its response do not stay apart as tokens.
    """
    tokeniser = Tokeniser(tokenizer, config.rendering)
    sides = [found.train.side, *([found.held_out.side] if found.held_out else [])]
    one_source = sides[0].lines is sides[-1].lines
    parts = [
        tokeniser.examples(group, config.workers, config.doctor.tokens)
        for group in ([sides] if one_source else [[s] for s in sides])
    ]
    examples: list[Sequence[Example]] = [side for part, _, _ in parts for side in part]
    _check_some_weigh(examples[0])
    renderer, notes = tokeniser.renderer, [note for side in sides for note in side.lines.notes]
    said = [*found.messages, *notes, *(line for _, _, lines in parts for line in lines), *renderer.notes]
    return Examples(
        examples[0],
        examples[1] if found.held_out else [],
        [*dict.fromkeys(said)],
        tuple(sorted(renderer.end_ids)),
        None if renderer.chat is None else renderer.chat.template,
        max(about["largest"] for _, about, _ in parts),
    )


def records_of(found: Records, side: Literal["train", "held_out"], examples: Sequence[Example]) -> Iterator[Record]:
    """The record of each example of a side, in their order: those that became no example are left out.

    Args:
        found: what the examples were rendered from.
        side: which side they are of.
        examples: as `render` gave them.
    """
    own: SideRecords = getattr(found, side)
    mask, sides = own.side.mask, (found.train.side, found.held_out.side)
    both = np.logical_or.reduce([one.mask for one in sides if one.lines is own.side.lines])
    rows_N = examples.rows if isinstance(examples, StoredExamples) else np.empty(0, dtype=np.int64)
    return compress(own, np.isin(np.flatnonzero(mask[both]), rows_N))


def _divide(folder: Path, train: Lines, other: Lines | None, share: float, seed: int, doctor: DoctorConfig) -> About:
    """The split as masks over the lines of the sources, and what is known of it."""
    if not train.count:
        raise PreftuneError(f"no usable row in the data: {train.drops('identical').summary()}")
    drops = [train.drops("unreadable"), train.drops("identical")]
    if doctor.identical == "error" and drops[1].total:
        raise PreftuneError(
            f"rows without a preference, {drops[1].summary()}: mend the data, or set data.doctor.identical=drop"
        )
    chart = Chart(train)
    findings = examine(chart, doctor)
    learnt, messages = decide(findings, doctor, train.count)
    held = np.zeros(train.count, dtype=np.bool_)
    if other is None and share:
        held[learnt] = choose((record.prompt for record in train.records(learnt)), share, seed)
        learnt &= ~held
    elif other is not None:
        drops = [drops[0].joined(other.drops("unreadable")), drops[1].joined(other.drops("identical"))]
        if not other.count:
            raise PreftuneError(f"no usable row in the held-out data: {drops[1].summary()}")
        held, shared = _unshared(other, train)
        messages += [f"held-out data: {shared.summary()}"] if shared.total else []
    aside = train if other is None else other
    if doctor.contamination != "ignore" and held.any():
        found = overlap(chart, learnt, ((one.where, one.prompt) for one in aside.records(held)), "the held-out data")
        findings += [found] if found else []
        clean, said = decide(findings[-1:] if found else [], doctor, train.count)
        learnt, messages = learnt & clean, messages + said
    _check_some_weigh(train.records(learnt))
    kinds, forms, digest = set[str](), set[bytes](), hashlib.sha256()
    for number, line in ((i, line) for i, side in enumerate((train.raw(learnt), aside.raw(held))) for line in side):
        record = content(line)
        digest.update(record)
        end = record.index(b'"', 2)  # of the kind, which is followed by the prompt: text, or a list of turns
        kinds.add(record[2:end].decode())
        if number == 0:
            forms.add(record[end + 3 : end + 4])
    if len(kinds) > 1:
        mixed = " and ".join(sorted(WHAT[KIND[kind]] for kind in kinds))
        raise PreftuneError(f"the data mixes {mixed}: train on one kind")
    np.save(folder / "train.npy", learnt)
    np.save(folder / "held_out.npy", held)
    return {
        "kind": KIND[kinds.pop()],
        "plain": forms == {b'"'},
        "fingerprint": digest.hexdigest(),
        "digests": [train.digest, aside.digest],
        "messages": [*(each.summary() for each in drops if each.total), *messages],
        "doctor": report(chart, findings, doctor),
    }


def _unshared(other: Lines, train: Lines) -> tuple[Mask, Drops]:
    """The held-out records whose prompt is not in the training data, and the others."""
    prompts = prompt_digests(record.prompt for record in train.records())
    kept = ~np.isin(prompt_digests(record.prompt for record in other.records()), prompts)
    drops = Drops("drop")
    for record in other.records(~kept):
        drops.add(record.where, "the prompt is in the training data too")
    if not kept.any():
        raise PreftuneError(
            f"no record is left of the held-out data: {drops.summary()}; give held-out data with prompts of its own"
        )
    return kept, drops


def _check_some_weigh(train: Iterable[Record] | Iterable[Example]) -> None:
    if not any(one.weight for one in train):
        raise PreftuneError("every training record has weight 0, so that nothing would be learned: raise some weights")


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

"""Answers side by side: before and after training, and of the policy beside those of another model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

from preftune.report.differences import Piece, differences
from preftune.report.values import number, show

ROOM = 1_200_000  # bytes of text on a page, all samples together


@dataclass(frozen=True)
class Sample:
    """A response that a model gave, with notes on it such as its true reward."""

    response: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SamplePair:
    """What was answered to one prompt, by the model on the left and by the one on the right."""

    prompt: str
    start: Sample | None
    end: Sample | None

    @cached_property
    def pieces(self) -> tuple[list[Piece], list[Piece]]:
        """Both responses, marked where they differ."""
        start, end = ("" if side is None else side.response.strip() for side in (self.start, self.end))
        if self.start is None or self.end is None:
            return [Piece(start, False)], [Piece(end, False)]
        return differences(start, end)


@dataclass(frozen=True)
class Group:
    """Samples of one kind.

    Attributes:
        key: fit for an HTML id.
        title: of its tab.
        lead: what is shown.
        sides: names of the left and of the right side.
        pairs: in the order of the file.
        left_out: further ones, for which a page has no room.
    """

    key: str
    title: str
    lead: str
    sides: tuple[str, str]
    pairs: Sequence[SamplePair]
    left_out: int


def groups(samples: Sequence[dict[str, Any]], generations: Sequence[dict[str, Any]], most: int) -> list[Group]:
    """What there is to show, of samples.jsonl and of generations.jsonl, at most so many pairs of each."""
    found = []
    shares = 2 if samples and generations else 1
    if pairs := sample_pairs(samples):
        shown = _that_fit(pairs[:most], ROOM // shares)
        found.append(
            Group(
                "before-after",
                "Before and after training",
                "What the model answers to the same held-out prompts before and after training.",
                ("Before training", "After training"),
                shown,
                len(pairs) - len(shown),
            )
        )
    if generations:
        answers = _that_fit([_answers(row) for row in generations[:most]], ROOM // shares)
        found.append(
            Group(
                "generations",
                "From preftune evaluate",
                "Answers to held-out prompts, of the model that the trained one was held against and of the trained "
                "one.",
                ("The other model", "Trained model"),
                answers,
                len(generations) - len(answers),
            )
        )
    return found


def _that_fit(pairs: Sequence[SamplePair], room: int) -> Sequence[SamplePair]:
    """The first pairs, at least one, whose texts take no more than so many bytes."""
    taken = 0
    for number_of_pairs, pair in enumerate(pairs):
        texts = (pair.prompt, *(side.response for side in (pair.start, pair.end) if side))
        taken += sum(len(text.encode(errors="replace")) for text in texts)
        if taken > room and number_of_pairs:
            return pairs[:number_of_pairs]
    return pairs


def sample_pairs(samples: Sequence[dict[str, Any]]) -> list[SamplePair]:
    """Samples by prompt, in the order in which prompts first appear; the n-th start beside the n-th end."""
    by_prompt: dict[str, dict[str, list[Sample]]] = {}
    for row in samples:
        when = row.get("when")
        if when in ("start", "end"):
            by_prompt.setdefault(plain_text(row.get("prompt")), {"start": [], "end": []})[when].append(_sample(row))
    return [
        SamplePair(prompt, start, end)
        for prompt, answers in by_prompt.items()
        for start, end in zip_longest(answers["start"], answers["end"])
    ]


def plain_text(value: Any) -> str:
    """A text as it stands; anything else, such as the turns of a conversation, as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


def _answers(row: dict[str, Any]) -> SamplePair:
    def side(name: str) -> Sample:
        notes = []
        if (tokens := number(row.get(f"{name}_tokens"))) is not None:
            notes.append(f"{tokens:,.0f} {'token' if tokens == 1 else 'tokens'}")
        if row.get(f"{name}_ended") is False:
            notes.append("cut off at the length limit")
        return Sample(plain_text(row.get(name)), tuple(notes))

    return SamplePair(plain_text(row.get("prompt")), side("against"), side("policy"))


def _sample(row: dict[str, Any]) -> Sample:
    reward, logp = number(row.get("true_reward")), number(row.get("logp"))
    notes = []
    if reward is not None:
        notes.append(f"true reward {show(reward)}")
    if logp is not None:
        notes.append(f"log-probability {show(logp)} nats")
    if row.get("ended") is False:
        notes.append("cut off at the length limit")
    return Sample(plain_text(row.get("response")), tuple(notes))

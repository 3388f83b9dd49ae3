"""Files of pairs and of answers -> comparisons for a judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from preftune.data.fields import Unfit, get, shown
from preftune.data.records import Demonstration, Judged, Preference, Text, Where, records
from preftune.data.sources import files, rows
from preftune.errors import PreftuneError
from preftune.evaluation.judges.base import Comparison

GENERATED = ("prompt", "policy", "against")  # columns of a run's generations.jsonl


def labelled_pairs(data: str, limit: int | None = None) -> list[Comparison]:
    """Pairs of a data source, `a` being the chosen answer.

    Args:
        data: what `sources.rows` takes, in any layout of pairs.
        limit: use the first pairs only.

    Raises:
        PreftuneError: if it cannot be read, or holds something else than pairs.
    """
    kept: dict[Where, Mapping[str, Any]] = {}

    def seen() -> Iterator[tuple[Where, dict[str, Any]]]:
        for where, row in rows(data):
            kept[where] = row
            yield where, row

    found: list[Comparison] = []
    for record in islice(records(seen()), limit):
        if not isinstance(record, Preference):
            raise PreftuneError(
                f"{record.where} is no pair, expected chosen and rejected; to compare answers of two models, give the "
                "file of the other ones with --against"
            )
        a, b = as_text(record.chosen), as_text(record.rejected)
        found.append(Comparison(str(record.where), as_text(record.prompt), a, b, kept.pop(record.where)))
    return found


def generated(data: str, limit: int | None = None) -> list[Comparison] | None:
    """The comparisons of a run's generations.jsonl: what the policy wrote, against what was written before; None if the
    data is something else.

    Raises:
        PreftuneError: if it cannot be read.
    """
    if files(data) is None:  # built in, or on the hub
        return None
    found: list[Comparison] = []
    for where, row in islice(rows(data), limit):
        if not (row.keys() >= set(GENERATED) and all(isinstance(row[name], str) for name in GENERATED)):
            if found:
                raise PreftuneError(f"{where} lacks one of the texts {', '.join(GENERATED)}, which the first row has")
            return None
        found.append(Comparison(str(where), row["prompt"], row["policy"], row["against"], row))
    return found


def matched(data: str, against: str, limit: int | None = None) -> list[Comparison]:
    """Answers of two files to the same prompts. Where a prompt stands in a file several times, its first answer is
    compared with the first one of the other file, and so on.

    Args:
        data: answers that are `a`: rows of prompt and response, in any layout of demonstrations.
        against: answers that are `b`.
        limit: use the first prompts only.

    Raises:
        PreftuneError: if a file cannot be read, or a prompt has no counterpart.
    """
    others: defaultdict[str, list[tuple[Where, str, Mapping[str, Any]]]] = defaultdict(list)
    for where, prompt, response, row in _answers(against):
        others[prompt.strip()].append((where, response, row))
    ours = list(_answers(data))
    found: list[Comparison] = []
    alone: list[tuple[Where, str, str]] = []
    for where, prompt, response, row in ours:
        waiting = others[prompt.strip()]
        if waiting:
            _, other, more = waiting.pop(0)
            found.append(Comparison(str(where), prompt, response, other, {**more, **row}))
        else:
            alone.append((where, prompt, against))
    alone += [(where, prompt, data) for prompt, left in others.items() for where, _, _ in left]
    if alone:
        where, prompt, other = alone[0]
        raise PreftuneError(
            f"{where} answers {shown(prompt)}, to which {other} has no{'' if not found else ' further'} answer "
            f"({len(alone):,} rows have no counterpart, {len(found):,} have one): both must answer the same prompts"
        )
    return found[:limit]


def as_text(text: Text) -> str:
    """A prompt or an answer for somebody to read: a single turn as it is, several with their roles."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in text)


def _answers(data: str) -> Iterator[tuple[Where, str, str, Mapping[str, Any]]]:
    """Place, prompt, response and row of each answer of a file. An answer may be empty: models write such."""
    for where, row in rows(data):
        try:
            value, name = get(row, "response|completion|output")
            blank = isinstance(value, str) and not value.strip()
        except Unfit:
            blank, name = False, ""
        given = {**row, name: "(empty)"} if blank else row
        try:
            record = next(records(iter([(where, given)])))
        except PreftuneError as error:
            raise PreftuneError(f"{error}; files of answers need the columns prompt and response") from None
        if not isinstance(record, Demonstration | Judged):
            raise PreftuneError(f"{where} is no answer, expected the columns prompt and response")
        yield where, as_text(record.prompt), "" if blank else as_text(record.response), row

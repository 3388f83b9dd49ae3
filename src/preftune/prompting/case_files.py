"""Cases on disk, as rows that any command trains on, and splits that no source prompt lies on both sides of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from preftune.data import writing
from preftune.data.sources import Source, rows
from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.prompting.cases import Case, render
from preftune.prompting.records import PromptPair
from preftune.prompting.template import Template

T = TypeVar("T", PromptPair, Case)
_CASES = TypeAdapter(Case)
FIELDS = tuple(field for field in fields(Case) if field.name != "where")
CASE = "case"  # column that holds what a row was rendered from


def write_cases(path: Path, cases: Iterable[Case], template: Template, chat: bool) -> int:
    """Write cases, one JSON object a line: prompt, chosen and rejected as they are learned from (`preftune train` takes
    them), and the case itself under "case", which `read_cases` takes.

    Returns:
        How many there were.

    Raises:
        PreftuneError: if the file cannot be written; it is as it was then.
    """
    lines = [json.dumps(as_row(case, template, chat), ensure_ascii=False) + "\n" for case in cases]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(lines).encode())
    except OSError as error:
        raise PreftuneError(f"cannot write {path} ({error.strerror}): name another file") from None
    return len(lines)


def as_row(case: Case, template: Template, chat: bool) -> dict[str, Any]:
    """A case as a row: rendered, and what it was rendered from."""
    held = {field.name: getattr(case, field.name) for field in FIELDS}
    return {**writing.as_row(render(case, template, chat)), CASE: held}


def read_cases(source: Source) -> Iterator[Case]:
    """Cases as `write_cases` wrote them.

    Raises:
        PreftuneError: if the source cannot be read, or a row holds no case.
    """
    for where, row in rows(source):
        held = row.get(CASE)
        if not isinstance(held, dict):
            raise PreftuneError(f"{where} holds no case under {CASE!r}: write it with preftune prompts diversify")
        try:
            yield _CASES.validate_python({**held, "where": where})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            problem = f"{where}: the case's {field} is wrong ({first['msg']}): write it with preftune prompts diversify"
        else:
            continue
        raise PreftuneError(problem)


def is_held_out(source: str, share: float, seed: int = 0) -> bool:
    """True for this share of source prompts. It follows from the id and the seed alone, so that more data moves no
    prompt to the other side."""
    drawn = hashlib.sha256(f"{seed} {source}".encode()).digest()[:8]
    return int.from_bytes(drawn) < share * 2**64


def split_by_source(items: Iterable[T], share: float, seed: int = 0) -> tuple[list[T], list[T]]:
    """Pairs or cases to train on, and those to hold out; all of one naive prompt lie on the same side.

    Args:
        items: pairs or cases.
        share: of the naive prompts to hold out, from 0 to 1. What comes out is that share only on average: see
            `is_held_out`.
        seed: another seed, another split.

    Raises:
        PreftuneError: if the share is out of range.
    """
    if not 0 <= share <= 1:
        raise PreftuneError(f"the share to hold out is {share:g}, expected a number from 0 to 1")
    sides: tuple[list[T], list[T]] = ([], [])
    for item in items:
        source = item.id if isinstance(item, PromptPair) else item.source
        sides[is_held_out(source, share, seed)].append(item)
    return sides

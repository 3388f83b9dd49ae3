"""Records -> a file that reads back as the same records, for runs that were given rows instead of a path."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from preftune.data.records import ROW, Ranking, Record, Text

NAMES = {"response": "completion", "good": "label"}


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object for each record, under names that the reader recognises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        rows = ({**as_row(record), ROW: record.where.row} for record in records)
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_row(record: Record) -> dict[str, Any]:
    """A record as a row of its layout: what it leaves at its default is left out.

    Example:
        >>> from preftune.data.records import Judged, Where
        >>> as_row(Judged("2 + 2 =", " 4", True, Where("sums.csv", 0)))
        {'prompt': '2 + 2 =', 'completion': ' 4', 'label': True}
    """
    row: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name == "where" or value == field.default:
            continue
        several = isinstance(record, Ranking) and field.name in ("responses", "scores")
        row[NAMES.get(field.name, field.name)] = [_plain(each) for each in value] if several else _plain(value)
    return row


def _plain(value: Text | float | bool) -> Any:
    if isinstance(value, tuple):
        return [{"role": turn.role, "content": turn.content} for turn in value]
    return value

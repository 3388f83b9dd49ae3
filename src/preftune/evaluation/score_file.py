"""Scores as a file: a line, or a row, for each example."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from preftune.errors import PreftuneError
from preftune.evaluation.opening import Opened
from preftune.evaluation.scoring import ExampleScore, ResponseScore, Scores
from preftune.files import write_whole
from preftune.objectives.batch import Role
from preftune.training.run_folder import to_json

ENDINGS = (".jsonl", ".parquet")
SIDES = {Role.CHOSEN: "chosen_", Role.REJECTED: "rejected_"}


def check_out(path: Path) -> None:
    """Refuse a file that scores cannot be written to, before they are computed.

    Raises:
        PreftuneError: says why.
    """
    if path.suffix.lower() not in ENDINGS:
        raise PreftuneError(f"{path} has an unknown ending for scores: expected {' or '.join(ENDINGS)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise PreftuneError(f"cannot write {path}: name a file in a folder that exists")


def write_scores(path: Path, opened: Opened, scores: Scores) -> None:
    """Write scores, whole or not at all.

    Args:
        path: jsonl, or parquet by its ending.
        opened: what was scored.
        scores: of `opened.examples`.

    Raises:
        PreftuneError: if the disk does not take it.
    """
    rows = as_rows(opened, scores)
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        packed = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), packed)
        payload = packed.getvalue()
    else:
        payload = "".join(to_json(row) + "\n" for row in rows).encode()
    try:
        write_whole(path, payload)
    except OSError as error:
        raise PreftuneError(f"cannot write {path} ({error.strerror or error}): make room, or name another") from error


def as_rows(opened: Opened, scores: Scores) -> list[dict[str, Any]]:
    """One row for each example: `source` and `row` say where it came from.

    Pairs have chosen_ and rejected_ before logp, reference_logp, reward and tokens, and delta and margin beside them; a
    single response has the names alone (and a label, if it was judged); a ranking has a list under each name, in the
    order of its responses, with their scores. What is not known has no column.
    """
    places = (record.where for record in opened.records())
    return [
        {"source": where.source, "row": where.row, **_row(one, opened.kind)}
        for where, one in zip(places, scores, strict=True)
    ]


def _row(one: ExampleScore, kind: str) -> dict[str, Any]:
    if kind == "rankings":
        columns = [_values(response) for response in one.responses]
        row: dict[str, Any] = {name: [column[name] for column in columns] for name in columns[0]}
        row["scores"] = [response.label for response in one.responses]
    elif kind == "pairs":
        row = {
            f"{SIDES[response.role]}{name}": value
            for response in one.responses
            for name, value in _values(response).items()
        }
    else:
        row = _values(one.responses[0])
        if kind == "labels":
            row["label"] = one.responses[0].label == 1
    return row | {name: value for name in ("delta", "margin") if (value := getattr(one, name)) is not None}


def _values(response: ResponseScore) -> dict[str, Any]:
    named = ("logp", "reference_logp", "reward", "tokens", "token_logps", "token_reference_logps")
    found = {name: getattr(response, name) for name in named}
    return {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in found.items()
        if value is not None
    }

"""Rows that cannot be learned from."""

from __future__ import annotations

import math
from pathlib import Path

from bad_input.case import BadInput, file, good_rows, lines, row

TRAIN = "preftune train -m sandbox -d d.jsonl"
HERE = "d.jsonl row 3"
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


def other_layout(folder: Path) -> None:
    rows = [*good_rows(), {"messages": TURNS}]
    (folder / "d.jsonl").write_bytes(lines(rows))


def swapped(row: dict[str, str]) -> dict[str, str]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


ROWS = (
    BadInput(
        "chosen equals rejected",
        lambda folder: (folder / "d.jsonl").write_bytes(
            lines([{**each, "rejected": each["chosen"]} for each in good_rows()])
        ),
        TRAIN,
        ("chosen and rejected are identical", "d.jsonl row 0"),
        trl="trains in silence",
    ),
    BadInput("an empty answer", row({"chosen": ""}), TRAIN, (HERE, "chosen is empty, expected text"), trl="trains"),
    BadInput(
        "null for an answer",
        row({"chosen": None}),
        TRAIN,
        (HERE, "chosen is null, expected text"),
        trl="AttributeError: 'NoneType' object has no attribute 'endswith'",
    ),
    BadInput(
        "a number for an answer",
        row({"rejected": 3}),
        TRAIN,
        (HERE, "rejected is the number 3, expected text"),
        trl="AttributeError",
    ),
    BadInput(
        "`rejected` missing in one row",
        row({}, "rejected"),
        TRAIN,
        (HERE, "rejected is missing, expected it in every row"),
        trl="KeyError: 'rejected'",
    ),
    BadInput(
        "A over B and B over A for one prompt",
        lambda folder: (folder / "d.jsonl").write_bytes(lines([*good_rows(), swapped(good_rows()[3])])),
        f"{TRAIN} data.doctor.contradictions=error",
        ("d.jsonl row 3 contradicts row 16",),
        trl="trains in silence",
    ),
    BadInput(
        "every prompt too long",
        file("d.jsonl", lines(good_rows())),
        f"{TRAIN} data.rendering.max_length=4",
        ("no record is left to learn from", "max_length=4"),
        trl="num_samples should be a positive integer",
    ),
    BadInput(
        "an empty data set",
        file("d.jsonl", b""),
        TRAIN,
        ("0 rows in d.jsonl, expected at least one example",),
        trl="StopIteration",
    ),
    BadInput("a blank answer", row({"rejected": " \n\t"}), TRAIN, (HERE, "rejected is empty")),
    BadInput(
        "a list of numbers for an answer", row({"chosen": [1, 2]}), TRAIN, (HERE, "chosen turn 0 is the number 1")
    ),
    BadInput("columns of no known layout", file("d.jsonl", '{"a": 1}\n'), TRAIN, ("fit no known layout", "expected")),
    BadInput("half a pair", file("d.jsonl", '{"prompt": "a", "chosen": "b"}\n'), TRAIN, ("lacks rejected",)),
    BadInput("rows of two layouts in one file", other_layout, TRAIN, ("d.jsonl row 16", "is missing, expected it")),
    BadInput(
        "pairs and demonstrations in one folder",
        lambda folder: [
            (folder / "d").mkdir(),
            (folder / "d" / "a.jsonl").write_bytes(lines(good_rows())),
            (folder / "d" / "b.jsonl").write_text('{"prompt": "a", "completion": "b"}\n'),
        ],
        "preftune train -m sandbox -d d data.held_out=0.0",
        ("the data mixes demonstrations",),
    ),
    BadInput(
        "demonstrations for an objective on pairs",
        file("d.jsonl", '{"prompt": "a", "completion": "b"}\n'),
        f"{TRAIN} data.held_out=0.0",
        ("objective dpo learns from pairs", "demonstrations"),
    ),
    BadInput(
        "roles that do not alternate",
        row({"prompt": [TURNS[0], TURNS[0]], "chosen": TURNS[1:], "rejected": [{**TURNS[1], "content": "No."}]}),
        TRAIN,
        (HERE, "role"),
    ),
    BadInput(
        "a role that nobody has",
        row({"prompt": [{"role": "narrator", "content": "a"}]}),
        TRAIN,
        (HERE, "role of prompt turn 0 is 'narrator'"),
    ),
    BadInput("half a surrogate pair", row({"chosen": "a \ud83d b"}), TRAIN, (HERE, "half a surrogate pair")),
    BadInput("NaN for a weight", row({"weight": math.nan}), TRAIN, (HERE, "weight is the number nan")),
    BadInput("a weight below 0", row({"weight": -1}), TRAIN, (HERE, "weight is the number -1")),
    BadInput("a confidence above 1", row({"confidence": 2}), TRAIN, (HERE, "confidence is the number 2")),
    BadInput("a number of 400 digits", row({"weight": 10**399}), TRAIN, (HERE, "a huge number")),
    BadInput(
        "every weight 0",
        lambda folder: (folder / "d.jsonl").write_bytes(lines([{**each, "weight": 0} for each in good_rows()])),
        TRAIN,
        ("every training record has weight 0",),
    ),
    BadInput(
        "one prompt, nothing to hold out",
        file("d.jsonl", lines(good_rows()[:1])),
        TRAIN,
        ("cannot hold out 1 of 1 records by prompt",),
    ),
)

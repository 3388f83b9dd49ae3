"""Whatever a file or a row holds, it is read, or one sentence names it: no other exception, and no warning."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from fuzz_cases import EDITS, PIECES, Edits, check_sentence, edited, fuzz
from hypothesis import strategies as st

from preftune.data import records, sources
from preftune.data.layouts import LAYOUTS
from preftune.data.records import DropPolicy, Drops, Record
from preftune.errors import PreftuneError

TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 2 + 2?", "chosen": " 4", "rejected": " 5", "weight": 1.5},
    {"prompt": "Name a colour.", "chosen": " Blue, é", "rejected": " Seven", "weight": 0.25},
    {"prompt": 'Line\nend, and "quotes"', "chosen": "a", "rejected": "b", "weight": 3},
]
TALKS: list[dict[str, Any]] = [
    {"chosen": TURNS, "rejected": [TURNS[0], {**TURNS[1], "content": "No."}], "confidence": 0.75},
    {"chosen": TURNS, "rejected": [TURNS[0], {**TURNS[1], "content": "Never."}], "confidence": 1},
]


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    packed = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), packed, **options)
    return packed.getvalue()


COLUMNS = {key: [row[key] for row in ROWS] for key in ROWS[0]}
FILES = {
    "rows.jsonl": [as_lines(ROWS), as_lines(TALKS)],
    "rows.json": [
        json.dumps(ROWS).encode(),
        json.dumps({"data": TALKS}, indent=1).encode(),
        json.dumps(COLUMNS).encode(),
    ],
    "rows.csv": [as_csv(ROWS)],
    "rows.parquet": [as_parquet(ROWS), as_parquet(TALKS, compression="zstd"), as_parquet(TALKS, compression="none")],
}


NAMES = st.sampled_from(sorted(FILES))
POLICIES = st.sampled_from(("error", "drop"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_all(path: Path, drops: Drops) -> list[Record]:
    return list(records.records(sources.rows(path), None, drops))


def reads_or_says(name: str, content: bytes, policy: DropPolicy) -> None:
    """The property: records that can be kept, or one sentence that names the file."""
    path = Path(name)
    path.write_bytes(content)
    drops = Drops(policy)
    try:
        found = read_all(path, drops)
    except PreftuneError as error:
        check_sentence(str(error), name)
    else:
        assert found
        check_kept(found, drops)


def check_kept(found: list[Record], drops: Drops) -> None:
    for record in found:
        assert records.from_line(records.to_line(record), record.where) == record
    if drops.total:
        check_sentence(drops.summary())


@pytest.mark.parametrize("name", FILES)
def test_the_files_that_are_broken_below_can_be_read(name: str) -> None:
    for content in FILES[name]:
        Path(name).write_bytes(content)
        assert len(read_all(Path(name), Drops())) in (2, 3)


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_read_or_named(name: str) -> None:
    def check(which: int, edits: Edits, policy: DropPolicy) -> None:
        whole = FILES[name][which % len(FILES[name])]
        reads_or_says(name, edited(whole, edits), policy)

    fuzz(name, check, which=st.integers(0, 2), edits=EDITS, policy=POLICIES)


def test_a_broken_gz_file_is_read_or_named() -> None:
    packed = {name: gzip.compress(contents[0], mtime=0) for name, contents in FILES.items()}

    def check(name: str, edits: Edits, policy: DropPolicy) -> None:
        reads_or_says(f"{name}.gz", edited(packed[name], edits), policy)

    fuzz("gz, its bytes", check, name=NAMES, edits=EDITS, policy=POLICIES)


def test_a_broken_file_in_a_gz_file_is_read_or_named() -> None:
    def check(name: str, edits: Edits, policy: DropPolicy) -> None:
        reads_or_says(f"{name}.gz", gzip.compress(edited(FILES[name][0], edits), 1), policy)

    fuzz("gz, what it packs", check, name=NAMES, edits=EDITS, policy=POLICIES)


def test_any_bytes_are_read_or_named() -> None:
    content = st.lists(PIECES, max_size=12).map(b"".join)
    fuzz("pieces of files", reads_or_says, name=NAMES, content=content, policy=POLICIES)


# --- rows -------------------------------------------------------------------------------------------------------------

KEYS = sorted({name for layout in LAYOUTS for key in layout.keys for name in key.split("|")})
EXTRA = ["weight", "confidence", "chosen_votes", "rejected_votes", "gap", "score_chosen", "score_rejected", "system"]
INSIDE = ["role", "content", "from", "value", "history", "input", "name"]
TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "user", "assistant", "system", "tool", "true", "1", "Human: a\n\nAssistant: b", "\ud83d"]
    ),
    st.text(max_size=8),
)
NUMBERS = st.one_of(st.integers(-2, 2), st.integers(), st.floats(), st.just(10**400))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
TURN = st.dictionaries(st.sampled_from(INSIDE), st.one_of(TEXTS, SCALARS), max_size=3)
VALUES = st.one_of(
    TEXTS,
    SCALARS,
    st.lists(st.one_of(TURN, TEXTS, NUMBERS), max_size=3),
    st.sampled_from(
        [{}, [], [[]], [{}], [None], {"a": {"b": [1]}}, [[1], "a"], [["a", "b"]], {"role": []}, TURNS, TURNS[:1]]
    ),
)
GOOD = st.sampled_from(["text", TURNS, TURNS[:1], TURNS[1:], [1, 2], ["a", "b"], True])
ODD = st.dictionaries(st.one_of(st.sampled_from([*KEYS, *EXTRA]), TEXTS), VALUES, max_size=6)


@st.composite
def nearly_good(draw: st.DrawFn) -> dict[str, Any]:
    """A row that has the columns of a layout, most of them with sensible values."""
    layout = draw(st.sampled_from(LAYOUTS))
    row: dict[str, Any] = {}
    for key in layout.keys:
        name = draw(st.sampled_from(key.split("|")))
        row[name] = draw(st.one_of(GOOD, VALUES))
    if draw(st.booleans()):
        row[draw(st.sampled_from(EXTRA))] = draw(SCALARS)
    return row


def test_any_rows_are_records_or_named() -> None:
    def check(rows: list[dict[str, Any]], policy: DropPolicy) -> None:
        drops = Drops(policy)
        try:
            found = list(records.records(sources.rows(rows), None, drops))
        except PreftuneError as error:
            check_sentence(str(error), "given data")
        else:
            check_kept(found, drops)

    fuzz("rows", check, rows=st.lists(st.one_of(nearly_good(), ODD), min_size=1, max_size=2), policy=POLICIES)

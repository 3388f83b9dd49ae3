from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import sources
from preftune.data.records import Where
from preftune.errors import PreftuneError

ROWS = [{"prompt": f"question {i}\n", "completion": "Grüße, 世界 \u2028 \"quoted\", 'x'"} for i in range(3)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_zipped_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    plain = path.with_suffix("")
    write_parquet(rows, plain)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[list[dict[str, Any]], Path], object]] = {
    "array.json": lambda rows, path: path.write_bytes(json.dumps(rows, indent=1).encode()),
    "lines.json": lambda rows, path: path.write_bytes(lines(rows)),
    "marked.json": lambda rows, path: path.write_bytes(b"\xef\xbb\xbf\n " + json.dumps(rows).encode()),
    "lines.jsonl": lambda rows, path: path.write_bytes(lines(rows)),
    "marked.jsonl": lambda rows, path: path.write_bytes(b"\xef\xbb\xbf" + lines(rows)),
    "windows.jsonl": lambda rows, path: path.write_bytes(b"\r\n" + lines(rows).replace(b"\n", b"\r\n\r\n")),
    "array.json.gz": lambda rows, path: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
    "lines.JSONL.GZ": lambda rows, path: path.write_bytes(gzip.compress(lines(rows))),
    "table.csv": write_csv,
    "table.parquet": write_parquet,
    "table.parquet.gz": write_zipped_parquet,
    **{
        f"{key}-{indent}.json": lambda rows, path, key=key, indent=indent: path.write_text(
            json.dumps({"version": "1.0", key: rows}, indent=indent)
        )
        for key in ("data", "train")
        for indent in (None, 2)
    },
    "columns.json": lambda rows, path: path.write_text(json.dumps(columns(rows))),
    "columns.json.gz": lambda rows, path: path.write_bytes(gzip.compress(json.dumps(columns(rows), indent=2).encode())),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](ROWS, path)
    assert list(sources.rows(path)) == [(Where(str(path), i), row) for i, row in enumerate(ROWS)]
    assert list(sources.rows(str(path))) == list(sources.rows(path))


TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "row",
    [
        ROWS[0],
        {"messages": TURNS},
        {"chosen": TURNS, "rejected": TURNS},
        {"conversations": [{"from": "human", "value": "Why?"}], "tags": []},
        {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]},
    ],
    ids=["texts", "turns", "two lists of turns", "ShareGPT", "ranking"],
)
def test_a_json_file_of_one_object_is_one_row(tmp_path: Path, row: dict[str, Any], indent: int | None) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(row, indent=indent))
    assert list(sources.rows(path)) == [(Where(str(path), 0), row)]


def test_csv_in_gz_and_with_a_cell_longer_than_the_default_limit(tmp_path: Path) -> None:
    path = tmp_path / "long.csv.gz"
    path.write_bytes(gzip.compress(b"prompt,completion\n\nx," + b"y" * 200_000 + b"\n"))
    assert [len(row["completion"]) for _, row in sources.rows(path)] == [200_000]


def test_lines_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\nbroken\n')
    stream = sources.rows(path)
    assert next(stream)[1] == {"a": 1}
    with pytest.raises(PreftuneError, match=r"rows\.jsonl line 2 is broken JSON \(Expecting value at column 1\)"):
        next(stream)


def test_folder_is_read_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/2.json", "a/1.jsonl", ".cache/hidden.json", "a/.hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"name": name}))
    (tmp_path / "README.md").write_text("not data")
    found = list(sources.rows(tmp_path))
    assert [row["name"] for _, row in found] == ["a/1.jsonl", "a/2.json", "b.jsonl"]
    assert {where.row for where, _ in found} == {0}
    assert str(found[-1][0]) == f"{tmp_path / 'b.jsonl'} row 0"


def test_files_that_describe_a_folder_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(ROWS))
    for name in ("dataset_infos.json", "dataset_dict.json", "dataset_info.json"):
        (tmp_path / name).write_text('{"splits": ["train"]}')
    (tmp_path / "README.md").write_text("---\n")
    assert [row for _, row in sources.rows(tmp_path)] == ROWS
    assert [row for _, row in sources.rows(tmp_path, split="train")] == ROWS


def test_folder_by_split(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl", "training.jsonl"):
        (tmp_path / name).write_text(json.dumps({"name": name}))
    assert [row["name"][:11] for _, row in sources.rows(tmp_path, split="train")] == ["train-00000", "train-00001"]
    assert [row["name"] for _, row in sources.rows(tmp_path, split="test")] == ["test.jsonl"]
    with pytest.raises(PreftuneError, match=r"no file of folder .* belongs to split 'dev', found test.jsonl, train"):
        sources.rows(tmp_path, split="dev")


def test_iterables(tmp_path: Path) -> None:
    import datasets

    def generate() -> Iterator[dict[str, Any]]:
        yield from ROWS

    dataset = datasets.Dataset.from_list(ROWS)
    for source in (ROWS, generate(), dataset, dataset.to_iterable_dataset(), datasets.DatasetDict(train=dataset)):
        assert [row for _, row in sources.rows(source)] == ROWS
    two = datasets.DatasetDict(test=dataset.select([1]), train=dataset)
    assert [row for _, row in sources.rows(two)] == ROWS
    assert [row for _, row in sources.rows(two, split="test")] == ROWS[1:2]
    two.save_to_disk(tmp_path / "saved")
    assert [row for _, row in sources.rows(tmp_path / "saved", split="test")] == ROWS[1:2]
    assert [row for _, row in sources.rows(tmp_path / "saved" / "train")] == ROWS


def test_a_data_frame_is_its_rows_and_missing_cells_are_null(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    given: list[dict[str, Any]] = [
        {"prompt": "a", "chosen": "b", "weight": 2.0, "turns": TURNS, "tags": [["x"], []]},
        {"prompt": "c", "chosen": None, "weight": math.nan, "turns": TURNS[:1], "tags": pandas.NA},
    ]
    frame = pandas.DataFrame(given, index=["same", "same"])
    expected = [given[0], {**given[1], "chosen": None, "weight": None, "tags": None}]
    assert [row for _, row in sources.rows(frame)] == expected
    assert [row for _, row in sources.rows({"test": frame}, split="test")] == expected
    frame.to_parquet(tmp_path / "frame.parquet")
    again = pandas.read_parquet(tmp_path / "frame.parquet")  # its lists come back as arrays
    assert [row for _, row in sources.rows(again)] == expected
    with pytest.raises(PreftuneError, match="0 rows in given data"):
        list(sources.rows(frame[:0]))
    with pytest.raises(PreftuneError, match="two columns of one name"):
        list(sources.rows(pandas.concat([frame, frame], axis=1)))


@pytest.mark.parametrize("name", ["Series", "one number", "texts", "matrix"])
def test_objects_that_hold_no_rows_are_refused(name: str) -> None:
    pandas = pytest.importorskip("pandas")
    odd = {
        "Series": pandas.Series(["a", "b"]),
        "one number": numpy.array(7),
        "texts": {"a", "b"},
        "matrix": numpy.ones((2, 2)),
    }[name]
    with pytest.raises(
        PreftuneError, match=r"expected (a path or an iterable of mappings|an object with named fields)"
    ):
        list(sources.rows(odd))


@pytest.mark.slow
def test_sandbox_is_built_in() -> None:
    where, row = next(sources.rows("sandbox"))
    assert (where, set(row)) == (Where("sandbox", 0), {"prompt", "chosen", "rejected"})


def broken_files(folder: Path) -> dict[str, Path]:
    """One file for each way in which a file can be bad."""
    whole = gzip.compress(lines(ROWS * 50))
    contents = {
        "empty.jsonl": b"",
        "blank.json": b" \n\n",
        "none.json": b"[]",
        "header.csv": b"prompt,completion\n",
        "broken.json": b'[\n{"a": 1},\n{"a": }]',
        "pretty.json": b'{\n "a": 1,\n "b"\n}',
        "pretty.jsonl": b'{\n "a": 1\n}',
        "items.json": b'{"items": [{"a": 1}, {"a": 2}]}',
        "uneven.json": b'{"prompt": ["a", "b"],\n"chosen": ["c"]}',
        "cut.jsonl": b'{"a": 1}\n{"a": "x',
        "number.jsonl": b'{"a": 1}\n7',
        "null.json": b'[{"a": 1}, null]',
        "latin.jsonl": '{"a": 1}\n{"a": "é"}'.encode("latin-1"),
        "latin.json": '[{"a": 1},\n\n{"a": "é"}]'.encode("latin-1"),
        "latin.csv": "a,b\né,1\n".encode("latin-1"),
        "utf16.json": '[{"a": 1}]'.encode("utf-16"),
        "deep.json": b"[" * 100_000,
        "digits.jsonl": b'{"a": ' + b"9" * 5000 + b"}",
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "damaged.jsonl.gz": whole[:20] + bytes(10) + whole[30:],
        "plain.jsonl.gz": lines(ROWS),
        "cells.csv": b"a,b\n1,2\n1,2,3\n",
        "quote.csv": b'a,b\n"1,2\n',
        "twice.csv": b"a,a\n1,2\n",
        "not.parquet": b"PAR1 nothing PAR1",
        "empty.parquet": b"",
        "plain.parquet.gz": b"PAR1",
        "not.parquet.gz": gzip.compress(b"PAR1 nothing PAR1"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


EXPECTED = {
    "empty.jsonl": "0 rows in FILE, expected at least one example",
    "blank.json": "0 rows in FILE, expected at least one example",
    "none.json": "0 rows in FILE, expected at least one example",
    "header.csv": "0 rows in FILE, expected at least one example",
    "broken.json": "FILE line 3 is broken JSON (Expecting value at column 7), expected an array of objects or",
    "pretty.json": "FILE line 4 is broken JSON (Expecting ':' delimiter at column 1)",
    "pretty.jsonl": "FILE line 1 is broken JSON (Expecting property name enclosed in double quotes at column 2)",
    "items.json": "FILE holds one object with the lists items (2), expected an array of objects, an object per line, a "
    "list of objects under one of data, train, ",
    "uneven.json": "FILE holds one object with the lists prompt (2), chosen (1), expected",
    "cut.jsonl": "FILE line 2 is broken JSON (Unterminated string starting at column 7)",
    "number.jsonl": "FILE row 1 is int, expected an object with named fields",
    "null.json": "FILE row 1 is null, expected an object with named fields",
    "latin.jsonl": "FILE line 2 is not UTF-8 (byte 0xe9): save it as UTF-8",
    "latin.json": "FILE line 3 is not UTF-8 (byte 0xe9): save it as UTF-8",
    "latin.csv": "FILE is not UTF-8 after line 0 (byte 0xe9): save it as UTF-8",
    "utf16.json": "FILE line 1 is not UTF-8 (byte 0xff): save it as UTF-8",
    "deep.json": "FILE line 1 is broken JSON (it is nested too deeply), expected",
    "digits.jsonl": "FILE line 1 is broken JSON (Exceeds the limit",
    "cut.jsonl.gz": "FILE is cut off or is not gzip (Compressed file ended before the end-of-stream marker",
    "damaged.jsonl.gz": "FILE is cut off or is not gzip",
    "plain.jsonl.gz": "FILE is cut off or is not gzip (Not a gzipped file",
    "cells.csv": "FILE line 3 has 3 cells, expected 2 as in the header",
    "quote.csv": "FILE line 2 is broken CSV (unexpected end of data): quote its cells",
    "twice.csv": "FILE has two columns of one name",
    "not.parquet": "FILE is not a readable parquet file",
    "empty.parquet": "FILE is not a readable parquet file",
    "plain.parquet.gz": "FILE is cut off or is not gzip (Not a gzipped file",
    "not.parquet.gz": "FILE is not a readable parquet file",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_bad_files_are_named_with_the_place(tmp_path: Path, name: str) -> None:
    path = broken_files(tmp_path)[name]
    with pytest.raises(PreftuneError) as caught:
        list(sources.rows(path))
    message = str(caught.value)
    assert message.startswith(EXPECTED[name].replace("FILE", str(path)))
    assert "\n" not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_bad_sources_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text('{"a": 1}')
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "nothing").mkdir()
    sentences = {
        "data/pair.jsonl": "data/pair.jsonl does not exist: did you mean data/pairs.jsonl?",
        "data/pairs": "data/pairs does not exist: did you mean data/pairs.jsonl?",
        "nowhere/pairs.jsonl": "nowhere/pairs.jsonl does not exist, and neither does its folder",
        "sandbix": "sandbix does not exist: did you mean sandbox?",
        "notes.txt": "notes.txt has an unknown extension, expected one of .json, .jsonl",
        " ": "the path of the data is empty",
        "nothing": "no data file in folder nothing, expected files ending in .json",
        "x" * 300: "cannot read xxx",
        "~nobody-of-this-name/x.json": "cannot read ~nobody-of-this-name/x.json",
    }
    for source, sentence in sentences.items():
        with pytest.raises(PreftuneError) as caught:
            sources.rows(source)
        assert str(caught.value).startswith(sentence)
    for source in ("data/pairs.jsonl", "sandbox", [{"a": 1}]):
        with pytest.raises(PreftuneError, match="has no splits, but split 'test' was asked for"):
            sources.rows(source, split="test")
    for wrong, match in (
        (7, "is of type int, expected a path or an iterable"),
        (b"x.json", "is of type bytes, expected a path or an iterable"),
        ({"prompt": "a", "chosen": "b"}, "is one mapping, expected an iterable"),
        ({"a": [{}], "b": [{}]}, "a split must be named, expected one of a, b"),
    ):
        with pytest.raises(PreftuneError, match=match):
            sources.rows(wrong)  # type: ignore[arg-type]
    with pytest.raises(PreftuneError, match="there is no split 'dev', expected one of train"):
        sources.rows({"train": [{}]}, split="dev")
    with pytest.raises(PreftuneError, match="0 rows in given data"):
        list(sources.rows([]))


def test_hub_id_without_network_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "from preftune.data import sources\n"
        "from preftune.errors import PreftuneError\n"
        "try:\n    list(sources.rows('org/name:config'))\n"
        "except PreftuneError as error:\n    print(error)\n"
    )
    source = Path(sources.__file__).parents[2]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(source)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("cannot load org/name:config from the Hugging Face hub (")
    assert run.stdout.endswith("): check the id and the network, or give a file\n")
    assert run.stdout.count("\n") == 1


pieces = st.sampled_from(
    [b'{"a": 1}', b"[", b"]", b"{", b"}", b",", b"\n", b'"', b"\\", b"\xff", b"\x00", b"1e999", b"\r"]
)


@settings(max_examples=200, deadline=None)
@given(
    content=st.one_of(st.binary(max_size=40), st.lists(pieces, max_size=8).map(b"".join)),
    name=st.sampled_from(["x.json", "x.jsonl", "x.csv", "x.parquet", "x.json.gz", "x.csv.gz", "x.parquet.gz"]),
    squeeze=st.booleans(),
)
def test_any_bytes_give_rows_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, squeeze: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(gzip.compress(content) if squeeze and name.endswith(".gz") else content)
    try:
        found = list(sources.rows(path))
    except PreftuneError as error:
        message = str(error)
    else:
        message = ""
        assert found
        assert all(isinstance(row, dict) for _, row in found)
    assert message.count("\n") == 0


def test_broken_rows_are_told_and_passed_over_on_request(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n3\n\n{"a": 2}\n')
    told: list[tuple[int, str]] = []
    found = [*sources.rows(str(path), broken=lambda where, reason: told.append((where.row, reason)))]
    assert [(where.row, row) for where, row in found] == [(0, {"a": 1}), (3, {"a": 2})]
    assert [row for row, _ in told] == [1, 2]
    assert "line 2 is broken JSON" in told[0][1]
    assert told[1][1] == "is int, expected an object with named fields"
    with pytest.raises(PreftuneError, match=r"rows\.jsonl line 2 is broken JSON"):
        [*sources.rows(str(path))]
    given = [*sources.rows([{"a": 1}, "no", {"a": 2}], broken=lambda where, reason: None)]  # type: ignore[list-item]
    assert [where.row for where, _ in given] == [0, 2]

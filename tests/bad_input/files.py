"""Files and folders of data that cannot be read, and some that look so and can."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

from bad_input.case import BadInput, Make, file, good_rows, lines, nothing


def train(name: str) -> str:
    return f"preftune train -m sandbox -d {name}"


def goes(name: str) -> str:
    return f"preftune train -m sandbox -d {name} -o r -q train.max_steps=1 evaluate.samples=0 output.path=r"


def good() -> bytes:
    return lines(good_rows())


def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    packed = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(good_rows())), packed)
    return packed.getvalue()


def later(name: str, content: object) -> Make:
    """A file whose content is made when it is needed."""
    return lambda folder: (folder / name).write_bytes(content())  # type: ignore[operator]


def in_folder(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "d").mkdir()
        (folder / "d" / name).write_text("")

    return make


RUN = ("r", "r/*")

FILES = (
    BadInput("no such file", later("pairs.jsonl", good), train("pair.jsonl"), ("did you mean pairs.jsonl?",)),
    BadInput("no such folder", nothing, train("none/pairs.jsonl"), ("does not exist, and neither does its folder",)),
    BadInput("another kind of file", file("d.txt", "a"), train("d.txt"), ("d.txt has an unknown extension",)),
    BadInput("a folder without data", in_folder("notes.txt"), train("d"), ("no data file in folder d",)),
    BadInput("a folder named like a file", lambda d: (d / "d.jsonl").mkdir(), train("d.jsonl"), ("no data file in",)),
    BadInput("a pipe", lambda d: os.mkfifo(d / "d.jsonl"), train("d.jsonl"), ("d.jsonl is no regular file",)),
    BadInput("a device", lambda d: (d / "d.jsonl").symlink_to("/dev/zero"), train("d.jsonl"), ("is no regular file",)),
    BadInput("a link to itself", lambda d: (d / "d.jsonl").symlink_to("d.jsonl"), train("d.jsonl"), ("leads nowhere",)),
    BadInput(
        "a link to nothing",
        lambda d: (d / "d.jsonl").symlink_to("gone"),
        train("d.jsonl"),
        ("d.jsonl is a link that leads nowhere",),
    ),
    BadInput(
        "a folder that holds itself",
        lambda d: [(d / "d").mkdir(), (d / "d" / "d").symlink_to(".")],
        train("d"),
        ("no data file in folder d",),
    ),
    BadInput("a cut gz file", later("d.jsonl.gz", lambda: gzip.compress(good())[:-99]), train("d.jsonl.gz"), ("cut",)),
    BadInput(
        "text named gz", later("d.jsonl.gz", good), train("d.jsonl.gz"), ("d.jsonl.gz is cut off or is not gzip",)
    ),
    BadInput(
        "gz not named so", later("d.jsonl", lambda: gzip.compress(good())), train("d.jsonl"), ("is gzip, but its name",)
    ),
    BadInput("a cut parquet file", later("d.parquet", lambda: parquet()[:-9]), train("d.parquet"), ("not a readable",)),
    BadInput(
        "a parquet file with a hole",
        later("d.parquet", lambda: parquet()[:200] + bytes(300) + parquet()[500:]),
        train("d.parquet"),
        ("d.parquet is not a readable parquet file",),
    ),
    BadInput(
        "Latin-1 text", file("d.jsonl", '{"prompt": "\xe9"}\n'.encode("latin-1")), train("d.jsonl"), ("not UTF-8",)
    ),
    BadInput(
        "UTF-16 text", later("d.jsonl", lambda: good().decode().encode("utf-16")), train("d.jsonl"), ("not UTF-8",)
    ),
    BadInput(
        "a cut line", later("d.jsonl", lambda: good()[:-20]), train("d.jsonl"), ("d.jsonl line 16 is broken JSON",)
    ),
    BadInput("NUL bytes", later("d.jsonl", lambda: good() + bytes(64)), train("d.jsonl"), ("line 17 is broken JSON",)),
    BadInput("brackets 100,000 deep", file("d.json", "[" * 100_000), train("d.json"), ("d.json line 1", "nested")),
    BadInput("a number of 5,000 digits", file("d.jsonl", '{"a": ' + "9" * 5000 + "}"), train("d.jsonl"), ("digits",)),
    BadInput("a list of numbers", file("d.json", "[1, 2]"), train("d.json"), ("row 0 is int, expected an object",)),
    BadInput(
        "a key given twice",
        file("d.jsonl", '{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}\n'),
        train("d.jsonl"),
        ("d.jsonl line 1", "the key 'chosen' is given twice"),
    ),
    BadInput(
        "CSV with a cell too many", file("d.csv", "prompt,chosen,rejected\na,b,c,d\n"), train("d.csv"), ("4 cells",)
    ),
    BadInput("CSV with a cell too few", file("d.csv", "prompt,chosen,rejected\na,b\n"), train("d.csv"), ("2 cells",)),
    BadInput("CSV with an open quote", file("d.csv", 'prompt,chosen\n"a,b\n'), train("d.csv"), ("broken CSV",)),
    BadInput("CSV with two like columns", file("d.csv", "a,a\n1,2\n"), train("d.csv"), ("two columns of one name",)),
    BadInput("CSV that is NUL bytes", file("d.csv", bytes(64)), train("d.csv"), ("d.csv",)),
    BadInput("columns of unlike length", file("d.json", '{"a": ["x"], "b": []}'), train("d.json"), ("a (1), b (0)",)),
    BadInput(
        "a byte order mark and Windows line ends: fine",
        later("d.jsonl", lambda: b"\xef\xbb\xbf" + good().replace(b"\n", b"\r\n")),
        goes("d.jsonl"),
        (),
        code=0,
        leaves=RUN,
    ),
    BadInput(
        "a line of a million characters: left out",
        later("d.jsonl", lambda: good() + json.dumps({**good_rows()[0], "chosen": "good " * 200_000}).encode()),
        goes("d.jsonl"),
        ("1 left out: 1 because", "d.jsonl row 16"),
        code=0,
        leaves=RUN,
    ),
)

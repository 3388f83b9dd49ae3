"""Files of data, by the endings of their names: JSON, lines of JSON, CSV, parquet, each also as gzip."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from preftune.data.fields import shown
from preftune.errors import PreftuneError

GZIP = b"\x1f\x8b"  # how such files begin
BLANK = b"\xef\xbb\xbf \t\r\n"
LISTS = ("data", "train", "rows", "examples", "records")  # keys under which a file's one object may hold its rows


class Broken(str):
    """In place of a row: what is wrong with the text that should hold it."""

    __slots__ = ()


def reason(error: Exception) -> str:
    """The first line of a library's message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((line.rstrip(". ") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb"))


def _json_lines(path: Path) -> Iterator[Any]:
    """An array, which is loaded whole, or an object per line, which is streamed; told apart by the first character."""
    with _open(path) as file:
        first = next((line for line in file if line.strip(BLANK)), b"")
        file.seek(0)
        if first.lstrip(BLANK).startswith(b"["):
            yield from _parse(path, file.read(), 1)
            return
        for number, line in enumerate(file, 1):
            if line.strip(BLANK):
                yield _parsed(path, line.rstrip(b"\r\n"), number)


def _json_rows(path: Path) -> Iterator[Any]:
    """The same, or one object over any number of lines: then the second line begins with no brace."""
    with _open(path) as file:
        lines = islice((text for line in file if (text := line.strip(BLANK))), 2)
        first, second = next(lines, b""), next(lines, b"")
        if not first.startswith(b"{") or second.startswith(b"{"):
            yield from _json_lines(path)
            return
        file.seek(0)
        whole = _parse(path, file.read(), 1)
    yield from _unwrapped(path, whole)


def _unwrapped(path: Path, whole: Mapping[str, Any]) -> Iterable[Any]:
    """The rows in a file's one object: a list under a usual key, columns, or the object itself as the only row."""
    for key in LISTS:
        if isinstance(whole.get(key), list) and all(isinstance(row, Mapping) for row in whole[key]):
            return whole[key]
    columns = [value for value in whole.values() if isinstance(value, list)]
    mappings = [cell for column in columns for cell in column if isinstance(cell, Mapping)]
    if len(columns) < len(whole) or any("role" in turn or "from" in turn for turn in mappings):
        return [whole]  # a list of turns is no column: it is one conversation
    if mappings or len({len(column) for column in columns}) > 1:
        found = ", ".join(f"{name[:40]} ({len(column)})" for name, column in list(whole.items())[:8])
        raise PreftuneError(
            f"{path} holds one object with the lists {found}, expected an array of objects, an object per line, a list "
            f"of objects under one of {', '.join(LISTS)}, or columns of one length"
        )
    return [dict(zip(whole, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _parsed(path: Path, data: bytes, line: int) -> Any:
    """The same for a file of many values, of which the others can still be read."""
    try:
        return _parse(path, data, line)
    except PreftuneError as error:
        return Broken(error)


def _parse(path: Path, data: bytes, line: int) -> Any:
    """The JSON value in `data`, which begins at this line of the file."""
    try:
        return DECODER.decode(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        if data.startswith(GZIP):
            raise PreftuneError(f"{path} is gzip, but its name does not say so: let it end in .gz") from None
        line += data[: error.start].count(b"\n")
        raise PreftuneError(
            f"{path} line {line} is not UTF-8 (byte {error.object[error.start]:#04x}): save it as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        line, problem = line + error.lineno - 1, f"{error.msg.removesuffix(' at')} at column {error.colno}"
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:  # a key given twice, a number of thousands of digits
        problem = str(error).partition(";")[0]
    raise PreftuneError(
        f"{path} line {line} is broken JSON ({problem}), expected an array of objects or one object per line"
    )


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; of two values under one key, no reader can tell which was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles)


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 kB, is less than a long conversation
    with TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise PreftuneError(f"{path} has two columns of one name, expected different names in its first line")
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise PreftuneError(
                        f"{path} line {reader.line_num} has {len(cells)} cells, expected {len(header)} as in the header"
                    )
                if cells:
                    yield dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise PreftuneError(
                f"{path} line {reader.line_num} is broken CSV ({reason(error)}): quote its cells"
            ) from None
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise PreftuneError(
                f"{path} is not UTF-8 after line {reader.line_num} (byte {byte:#04x}): save it as UTF-8"
            ) from None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    whole: Path | BytesIO = path
    if path.suffix.lower() == ".gz":  # parquet is read from its end: unpacked in memory
        with _open(path) as packed:
            whole = BytesIO(packed.read())
    try:
        with pyarrow.parquet.ParquetFile(whole) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the file's
            raise
        raise PreftuneError(f"{path} is not a readable parquet file ({reason(error)}): write it again") from None


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".json": _json_rows,
    ".jsonl": _json_lines,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".json.gz": _json_rows,
    ".jsonl.gz": _json_lines,
    ".csv.gz": _csv_rows,
    ".parquet.gz": _parquet_rows,
}


def format_of(path: Path) -> str | None:
    """The known extension of a path."""
    name = path.name.lower()
    return next((extension for extension in READERS if name.endswith(extension)), None)


def reader_of(path: Path) -> Callable[[Path], Iterator[Any]]:
    """What reads a file.

    Raises:
        PreftuneError: for an extension that is not known.
    """
    extension = format_of(path)
    if extension is None:
        raise PreftuneError(f"{path} has an unknown extension, expected one of {extensions()}")
    return READERS[extension]


def extensions() -> str:
    """The known extensions, for messages."""
    return ", ".join(READERS)

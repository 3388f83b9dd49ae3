"""A file, folder, hub id, built-in name or Python iterable -> rows, each with the place it came from."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from preftune.data.fields import shown
from preftune.data.records import ROW, Where
from preftune.errors import PreftuneError

Row = tuple[Where, dict[str, Any]]
Told = Callable[[Where, str], None]
Source = str | Path | Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]]

HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<config>[\w.-]+))?")
GIVEN = "given data"  # what messages call an iterable
GZIP = b"\x1f\x8b"  # how such files begin
BLANK = b"\xef\xbb\xbf \t\r\n"
LISTS = ("data", "train", "rows", "examples", "records")  # keys under which a file's one object may hold its rows
ABOUT = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")  # they describe data


class Broken(str):
    """In place of a row: what is wrong with the text that should hold it."""

    __slots__ = ()


def rows(source: Source, *, split: str | None = None, broken: Told | None = None) -> Iterator[Row]:
    """Rows of a data source, streamed where its format allows.

    Args:
        source: a file (.json, .jsonl, .csv, .parquet, each also as .gz), a folder (all such files in it and below, in
            sorted order, or what `datasets.save_to_disk` left), a hub id "org/name" or "org/name:config", the built-in
            name "sandbox", an iterable of mappings (list, generator, Dataset), a pandas DataFrame, or a mapping of
            split names to such (DatasetDict). A .json file holds an array of objects, an object per line, or one
            object: with the rows as a list under "data", "train", "rows", "examples" or "records", with columns as
            lists of one length, or a single row. A name that is both built in and a path means the built-in source;
            write ./sandbox for the path.
        split: which split of a hub data set or of a mapping, or of a folder (files or folders whose name begins with
            it: train.jsonl, train-00000-of-00002.parquet). If None: all of a folder; elsewhere "train", or the only
            one.
        broken: told of rows that are no objects and of lines that are no JSON, which are left out then; if None, the
            first one is an error.

    Raises:
        PreftuneError: at once, if the source does not exist, its kind is unknown or it has no such split; while
            iterating, for broken, cut or empty data.
    """
    if isinstance(source, str | Path):
        try:
            return _at_least_one(_named(source, split, broken), str(source))
        except (OSError, RuntimeError) as error:  # a name that is too long, no right to look, no such home
            raise PreftuneError(f"cannot read {str(source)[:80]} ({_reason(error)}): check the path") from None
    return _at_least_one(_given(source, split, broken), GIVEN)


def files(source: str, split: str | None = None) -> list[Path] | None:
    """The files that `rows` reads of a named source, in order; None for what is built in or on the hub.

    Raises:
        PreftuneError: for a folder without such files.
        OSError: if they cannot be looked at.
    """
    path = Path(source).expanduser()
    if source == "sandbox" or not source.strip():
        return None
    if not path.is_dir():
        return [path] if path.is_file() else None
    return sorted(filter(Path.is_file, path.rglob("*"))) if _is_saved(path) else _folder_files(path, split)


def _at_least_one(found: Iterator[Row], name: str) -> Iterator[Row]:
    empty = True
    for row in found:
        empty = False
        yield row
    if empty:
        raise PreftuneError(f"0 rows in {name}, expected at least one example")


def _named(source: str | Path, split: str | None, broken: Told | None) -> Iterator[Row]:
    if not str(source).strip():
        raise PreftuneError("the path of the data is empty, expected a file, a folder, a hub id or sandbox")
    path = Path(source).expanduser()
    if source == "sandbox":
        _no_splits(split, "sandbox")
        return _sandbox()
    if path.is_dir():
        return _folder(path, split, broken)
    if path.exists():
        if not path.is_file():  # a pipe would keep us waiting, and cannot be read twice
            raise PreftuneError(f"{path} is no regular file, expected a file or a folder")
        _no_splits(split, str(path))
        return _file(path, _reader(path), broken)
    hub = HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if hub and _format(path) is None and not path.parent.exists():
        return _hub(hub["name"], hub["config"], split)
    raise PreftuneError(_missing(path))


def _missing(path: Path) -> str:
    """What to say about a path that does not exist."""
    folder = path.parent
    if path.is_symlink():
        return f"{path} is a link that leads nowhere: mend it, or name the file itself"
    if not folder.is_dir():
        return f"{path} does not exist, and neither does its folder: check the path"
    near = difflib.get_close_matches(path.name, [*(entry.name for entry in folder.iterdir()), "sandbox"], 1)
    hint = f"did you mean {near[0] if near[0] == 'sandbox' else folder / near[0]}?" if near else "check the path"
    return f"{path} does not exist: {hint} (a hub data set is written org/name)"


def _reason(error: Exception) -> str:
    """The first line of a library's message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((line.rstrip(". ") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _no_splits(split: str | None, name: str) -> None:
    if split is not None:
        raise PreftuneError(f"{name} has no splits, but split {split!r} was asked for: leave the split out")


def _choose(splits: Iterable[str], split: str | None, name: str) -> str:
    """The split asked for, else "train", else the only one."""
    splits = list(splits)
    if split in splits:
        return str(split)
    if split is None and ("train" in splits or len(splits) == 1):
        return "train" if "train" in splits else splits[0]
    asked = "a split must be named" if split is None else f"there is no split {split!r}"
    raise PreftuneError(f"{name}: {asked}, expected one of {', '.join(splits) or '(none)'}")


# --- Python objects, built-in and hub ---------------------------------------------------------------------------------


def _given(source: Any, split: str | None, broken: Told | None) -> Iterator[Row]:
    if isinstance(source, Mapping):
        splits = [str(name) for name, value in source.items() if _is_iterable(value)]
        if len(splits) < len(source):
            raise PreftuneError(
                f"{GIVEN} is one mapping, expected an iterable of mappings, one per example: put it into a list"
            )
        source = source[_choose(splits, split, GIVEN)]
    else:
        _no_splits(split, GIVEN)
    if not _is_iterable(source):
        raise PreftuneError(f"{GIVEN} is of type {type(source).__name__}, expected a path or an iterable of mappings")
    return _rows_of(_frame_rows(source) if _is_frame(source) else source, GIVEN, broken)


def _is_iterable(value: Any) -> bool:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return False
    try:
        iter(value)
    except TypeError:  # an array of no dimension
        return False
    return True


def _is_frame(value: Any) -> bool:
    """True for a pandas DataFrame, told by its methods: pandas itself is not needed."""
    return all(hasattr(value, name) for name in ("to_dict", "isna", "iloc", "columns"))


def _frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    """The rows of a DataFrame; a missing cell (NaN, NaT, None) is None, as it is in other sources."""
    if len(set(frame.columns)) < len(frame.columns):
        raise PreftuneError(f"{GIVEN} has two columns of one name, expected different names")
    missing = frame.isna().to_dict(orient="records")
    for row, absent in zip(frame.to_dict(orient="records"), missing, strict=True):
        yield {str(name): None if absent[name] else _as_list(value) for name, value in row.items()}


def _as_list(value: Any) -> Any:
    """Arrays, as which pandas reads the lists of a parquet file, as lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_as_list(each) for each in value] if isinstance(value, list) else value


def _rows_of(values: Iterable[Any], name: str, broken: Told | None = None) -> Iterator[Row]:
    for index, value in enumerate(values):
        where = Where(name, index)
        if isinstance(value, Mapping):
            row = dict(value)
            if type(row.get(ROW)) is int and row[ROW] >= 0:
                where = Where(name, row.pop(ROW))
            yield where, row
            continue
        kind = {str: "text", list: "a list", type(None): "null"}.get(type(value), type(value).__name__)
        what = "" if isinstance(value, Broken) else f"is {kind}, expected an object with named fields"
        if broken is None:
            raise PreftuneError(f"{where} {what}" if what else value)
        broken(where, what or value)


def _sandbox() -> Iterator[Row]:
    from preftune.sandbox.preferences import rows as preferences

    yield from _rows_of(preferences(), "sandbox")


def _hub(name: str, config: str | None, split: str | None) -> Iterator[Row]:
    import datasets

    label = f"{name}:{config}" if config else name
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:  # loading runs code of many libraries, whose errors have no common class
        raise PreftuneError(
            f"cannot load {label} from the Hugging Face hub ({_reason(error)}): "
            "check the id and the network, or give a file"
        ) from None
    return _rows_of(loaded[_choose(loaded, split, label)], label)


# --- files ------------------------------------------------------------------------------------------------------------


def _folder(path: Path, split: str | None, broken: Told | None) -> Iterator[Row]:
    if _is_saved(path):
        return _saved(path, split)
    return (row for file in _folder_files(path, split) for row in _file(file, _reader(file), broken))


def _is_saved(path: Path) -> bool:
    """True for a folder that `datasets.save_to_disk` left."""
    return (path / "state.json").is_file() or (
        (path / "dataset_dict.json").is_file() and any(path.glob("*/state.json"))
    )


def _folder_files(path: Path, split: str | None) -> list[Path]:
    """The data files of a folder, of one split if it is named."""
    files = [file for file in sorted(path.rglob("*")) if _format(file) and file.name not in ABOUT and file.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise PreftuneError(f"no data file in folder {path}, expected files ending in {_extensions()}")
    if split is not None:
        pattern = re.compile(re.escape(split) + r"(?![^\W_])")
        chosen = [file for file in files if any(pattern.match(part) for part in file.relative_to(path).parts)]
        if not chosen:
            listed = ", ".join(str(file.relative_to(path)) for file in files[:8])
            raise PreftuneError(f"no file of folder {path} belongs to split {split!r}, found {listed}")
        files = chosen
    return files


def _saved(path: Path, split: str | None) -> Iterator[Row]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # as in _hub
        raise PreftuneError(f"cannot load the saved data set {path} ({_reason(error)}): save it again") from None
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_choose(loaded, split, str(path))]
    else:
        _no_splits(split, str(path))
    return _rows_of(loaded, str(path))


def _file(path: Path, read: Callable[[Path], Iterator[Any]], broken: Told | None) -> Iterator[Row]:
    try:
        yield from _rows_of(read(path), str(path), broken)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PreftuneError(f"{path} is cut off or is not gzip ({_reason(error)}): copy it again") from None
    except OSError as error:
        raise PreftuneError(f"cannot read {path}: {_reason(error)}") from None


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
                f"{path} line {reader.line_num} is broken CSV ({_reason(error)}): quote its cells"
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
        raise PreftuneError(f"{path} is not a readable parquet file ({_reason(error)}): write it again") from None


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


def _format(path: Path) -> str | None:
    """The known extension of a path."""
    name = path.name.lower()
    return next((extension for extension in READERS if name.endswith(extension)), None)


def _reader(path: Path) -> Callable[[Path], Iterator[Any]]:
    extension = _format(path)
    if extension is None:
        raise PreftuneError(f"{path} has an unknown extension, expected one of {_extensions()}")
    return READERS[extension]


def _extensions() -> str:
    return ", ".join(READERS)

"""A file, folder, hub id, built-in name or Python iterable -> rows, each with the place it came from."""

from __future__ import annotations

import difflib
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from preftune.data.formats import Broken, extensions, format_of, reader_of, reason
from preftune.data.records import ROW, Where
from preftune.errors import PreftuneError

Row = tuple[Where, dict[str, Any]]
Told = Callable[[Where, str], None]
Source = str | Path | Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]]

HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<config>[\w.-]+))?")
GIVEN = "given data"  # what messages call an iterable
ABOUT = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")  # they describe data


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
            raise PreftuneError(f"cannot read {str(source)[:80]} ({reason(error)}): check the path") from None
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
        return _file(path, reader_of(path), broken)
    hub = HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if hub and format_of(path) is None and not path.parent.exists():
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
            f"cannot load {label} from the Hugging Face hub ({reason(error)}): "
            "check the id and the network, or give a file"
        ) from None
    return _rows_of(loaded[_choose(loaded, split, label)], label)


# --- files ------------------------------------------------------------------------------------------------------------


def _folder(path: Path, split: str | None, broken: Told | None) -> Iterator[Row]:
    if _is_saved(path):
        return _saved(path, split)
    return (row for file in _folder_files(path, split) for row in _file(file, reader_of(file), broken))


def _is_saved(path: Path) -> bool:
    """True for a folder that `datasets.save_to_disk` left."""
    return (path / "state.json").is_file() or (
        (path / "dataset_dict.json").is_file() and any(path.glob("*/state.json"))
    )


def _folder_files(path: Path, split: str | None) -> list[Path]:
    """The data files of a folder, of one split if it is named."""
    files = [file for file in sorted(path.rglob("*")) if format_of(file) and file.name not in ABOUT and file.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise PreftuneError(f"no data file in folder {path}, expected files ending in {extensions()}")
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
        raise PreftuneError(f"cannot load the saved data set {path} ({reason(error)}): save it again") from None
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_choose(loaded, split, str(path))]
    else:
        _no_splits(split, str(path))
    return _rows_of(loaded, str(path))


def _file(path: Path, read: Callable[[Path], Iterator[Any]], broken: Told | None) -> Iterator[Row]:
    try:
        yield from _rows_of(read(path), str(path), broken)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PreftuneError(f"{path} is cut off or is not gzip ({reason(error)}): copy it again") from None
    except OSError as error:
        raise PreftuneError(f"cannot read {path}: {reason(error)}") from None

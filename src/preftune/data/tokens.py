"""Examples in an Arrow file, a row each, and sequences that read them from there.

Any reader of Arrow can open the file. A row that became no example has the reason and nothing else.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from preftune.data.examples import Example, Response
from preftune.data.records import Dropped, Where
from preftune.objectives.batch import Role

RESPONSE = pa.struct(
    [
        ("ids", pa.list_(pa.int32())),
        ("role", pa.int8()),
        ("score", pa.float64()),
        ("targets", pa.list_(pa.uint8())),  # empty where all tokens are targets
    ]
)
SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.int32())),
        ("responses", pa.list_(RESPONSE)),
        ("row", pa.int64()),
        ("weight", pa.float64()),
        ("confidence", pa.float64()),
        ("gap", pa.float64()),
        ("left_out", pa.string()),  # why there is no example, null where there is one
        ("source", pa.string()),  # of a row that was left out, for the message
    ]
)
KEPT_READS = 8  # examples read before the pages that they touched are let go: up to 5 MB


def to_batch(outcomes: Sequence[Example | Dropped]) -> pa.RecordBatch:
    """A piece of the file. Values per token, which rendering does not give, are not kept."""
    examples = [one if isinstance(one, Example) else None for one in outcomes]
    responses = [response for example in examples if example for response in example.responses]
    nothing = np.empty(0, dtype=np.int32)
    fields = [
        _lists([response.ids for response in responses], np.int32),
        pa.array(np.array([response.role for response in responses], dtype=np.int8)),
        pa.array(np.array([response.score for response in responses], dtype=np.float64)),
        _lists([nothing if response.targets is None else response.targets for response in responses], np.uint8),
    ]
    columns = [
        _lists([example.prompt if example else nothing for example in examples], np.int32),
        pa.ListArray.from_arrays(
            _offsets([len(example.responses) if example else 0 for example in examples]),
            pa.StructArray.from_arrays(fields, fields=[*RESPONSE]),
        ),
        pa.array([one.row if isinstance(one, Example) else one.where.row for one in outcomes], pa.int64()),
        *(
            pa.array(np.array([getattr(example, name) if example else np.nan for example in examples], np.float64))
            for name in ("weight", "confidence", "gap")
        ),
        pa.array([None if isinstance(one, Example) else one.reason for one in outcomes], pa.string()),
        pa.array([None if isinstance(one, Example) else one.where.source for one in outcomes], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def largest_id(batch: pa.RecordBatch) -> int:
    """The largest token id of a piece, -1 if it has none."""
    ids = (batch.column("prompt").values, batch.column("responses").values.field("ids").values)
    return max(int(part.to_numpy().max(initial=-1)) for part in ids)


def _lists(parts: Sequence[NDArray[Any]], dtype: type) -> pa.ListArray:
    values: NDArray[Any] = np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
    return pa.ListArray.from_arrays(_offsets([len(part) for part in parts]), pa.array(values))


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))


class _Piece(NamedTuple):
    """The arrays of one record batch, in the map. `first` gives what is in `values` of row i: first[i]:first[i + 1]."""

    prompt_first: NDArray[np.int32]
    prompts: NDArray[np.int32]
    response_first: NDArray[np.int32]
    ids_first: NDArray[np.int32]
    ids: NDArray[np.int32]
    role: NDArray[np.int8]
    score: NDArray[np.float64]
    targets_first: NDArray[np.int32]
    targets: NDArray[np.uint8]
    row: NDArray[np.int64]
    weight: NDArray[np.float64]
    confidence: NDArray[np.float64]
    gap: NDArray[np.float64]


class TokenFile:
    """An Arrow file of examples, memory-mapped.

    Args:
        path: of the file, which may be deleted as soon as it is open.

    Attributes:
        lengths_N3: of each row the tokens of its prompt tree, those of its longest path, and its responses, shape
            (rows, 3); zeros for those that were left out.
        is_example: False for rows that were left out, shape (rows,).
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._touched = 0
        self._reader = pa.ipc.open_file(pa.py_buffer(self._map))
        self._pieces: list[_Piece] = []
        found = [np.empty((0, 3), dtype=np.int32)]
        for i in range(self._reader.num_record_batches):
            self._pieces.append(_piece(self._reader.get_batch(i)))
            found.append(_lengths(self._pieces[i]))
            self._let_go()
        self._first = np.cumsum([len(lengths_N3) for lengths_N3 in found], dtype=np.int64)
        self.lengths_N3 = np.concatenate(found)
        self.is_example: NDArray[np.bool_] = self.lengths_N3[:, 2] > 0

    def example(self, index: int) -> Example:
        """The example of a row."""
        self._touched += 1
        if self._touched >= KEPT_READS:
            self._let_go()
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        piece, at = self._pieces[number], index - int(self._first[number])
        prompt_T = piece.prompts[piece.prompt_first[at] : piece.prompt_first[at + 1]].copy()
        responses = []
        for i in range(piece.response_first[at], piece.response_first[at + 1]):
            ids_T = piece.ids[piece.ids_first[i] : piece.ids_first[i + 1]].copy()
            targets_T = piece.targets[piece.targets_first[i] : piece.targets_first[i + 1]].astype(np.bool_)
            role, score = Role(int(piece.role[i])), float(piece.score[i])
            responses.append(Response(ids_T, role, score, targets=targets_T if len(targets_T) else None))
        return Example(
            prompt_T,
            tuple(responses),
            row=int(piece.row[at]),
            weight=float(piece.weight[at]),
            confidence=float(piece.confidence[at]),
            gap=float(piece.gap[at]),
        )

    def left_out(self) -> Iterator[tuple[int, Dropped]]:
        """The rows that became no example, each with the reason."""
        for i, first in enumerate(self._first[:-1]):
            batch = self._reader.get_batch(i)
            reasons, places, rows = (batch.column(name) for name in ("left_out", "source", "row"))
            for at in np.flatnonzero(reasons.is_valid().to_numpy(zero_copy_only=False)):
                where = Where(places[at].as_py(), rows[at].as_py())
                yield int(first + at), Dropped(where, reasons[at].as_py())
            self._let_go()

    def _let_go(self) -> None:
        """Unmap the pages that were read; they stay in the system's file cache and come back when they are read again.

        Pages that a process has touched through a map count as its resident memory, and so does what the kernel maps
        around each (64 kB). An epoch in random order touches all: without this, memory would grow with the data.
        """
        self._touched = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class StoredExamples(Sequence[Example]):
    """Examples that are read from their file each time they are asked for.

    Args:
        file: where they are.
        rows: of the file, one for each example, shape (examples,).
    """

    def __init__(self, file: TokenFile, rows: NDArray[np.int64]) -> None:
        self._file, self.rows = file, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> StoredExamples: ...
    def __getitem__(self, index: int | slice) -> Example | StoredExamples:
        if isinstance(index, slice):
            return StoredExamples(self._file, self.rows[index])
        return self._file.example(int(self.rows[index]))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """What `training.batches.lengths` wants to know, without reading any: shape (examples, 3)."""
        return self._file.lengths_N3[self.rows].astype(np.int64)


def _piece(batch: pa.RecordBatch) -> _Piece:
    prompt, responses = batch.column("prompt"), batch.column("responses")
    ids, role, score, targets = (responses.values.field(i) for i in range(4))
    lists = [prompt.offsets, prompt.values, responses.offsets, ids.offsets, ids.values, role, score]
    plain = [batch.column(name) for name in ("row", "weight", "confidence", "gap")]
    return _Piece(*(part.to_numpy() for part in (*lists, targets.offsets, targets.values, *plain)))


def _lengths(piece: _Piece) -> NDArray[np.int32]:
    """Of each row: tokens of the prompt tree and of its longest path, number of responses; shape (rows, 3)."""
    prompt_E, count_E = np.diff(piece.prompt_first), np.diff(piece.response_first)
    total_E, longest_E = np.diff(piece.ids_first[piece.response_first]), np.zeros_like(count_E)
    starts = piece.response_first[:-1][count_E > 0]
    if len(starts):
        longest_E[count_E > 0] = np.maximum.reduceat(np.diff(piece.ids_first), starts)
    return np.stack([prompt_E + total_E, prompt_E + longest_E, count_E], axis=1)

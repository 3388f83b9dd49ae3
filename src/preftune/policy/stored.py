"""Log-probs of a reference on disk, found by the exact tokens of an example: shards that are whole or absent.

A shard is named after its own SHA-256: it may be copied and merged, two processes may write into one folder at once,
and one that is damaged or cut short shows. It holds, one after the other:

    count, total    int64: examples, and targets of all of them
    keys            16 bytes for each example
    lengths         int32 for each example: its targets
    values          float32 for each target: its log-prob in nats, example after example

Keys are held in memory, sorted (about 40 bytes for each example); values are mapped.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preftune.data.examples import Example
from preftune.errors import PreftuneError
from preftune.files import write_whole

# Sixteen bytes that numpy compares and sorts as one. (It reads trailing zeros as padding: harmless at one length.)
KEY = np.dtype("S16")
HEADER_BYTES = 16
ALL = -1  # number of targets where every token is one
LEFT_BEHIND = 3600  # seconds after which a temporary file is that of a writer which was killed
# Reads after which pages are given back. A read may map 2 MiB around it, all of which would count as this process's.
READS_MAPPED = 32
# Shards mapped at once: each holds a file open, and a system may allow no more than 256.
MOST_OPEN = 64


def example_key(example: Example) -> bytes:
    """Sixteen bytes that stand for an example's exact tokens and targets, and for nothing else."""
    shape, parts = [len(example.prompt)], [np.asarray(example.prompt, dtype=np.int32).tobytes()]
    for response in example.responses:
        shape += (len(response.ids), ALL if response.targets is None else len(response.targets))
        parts.append(np.asarray(response.ids, dtype=np.int32).tobytes())
        if response.targets is not None:
            parts.append(np.asarray(response.targets, dtype=bool).tobytes())
    # counts first, so that the rest can be read in one way only
    head = struct.pack(f"<{len(shape) + 1}q", len(shape), *shape)
    return hashlib.sha256(head + b"".join(parts)).digest()[: KEY.itemsize]


def keys_of(examples: Iterable[Example]) -> NDArray[np.bytes_]:
    """The keys of several examples, in order."""
    return np.frombuffer(b"".join([example_key(example) for example in examples]), dtype=KEY)


class Shards:
    """The shards of one folder, which need not exist.

    Attributes:
        folder: where they lie.
        damaged: names of those that were not what their name says; they are removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.damaged = folder, list[str]()
        self._seen = set[str]()
        self._shards = list[tuple[Path, int, int]]()  # file, number of values, and where they begin
        self._open = OrderedDict[int, tuple[mmap.mmap, NDArray[np.float32]]]()  # each holds a file open: not too many
        self._keys_N = np.empty(0, dtype=KEY)
        self._shard_N = np.empty(0, dtype=np.int32)
        self._start_N = np.empty(0, dtype=np.int64)  # in the shard's values
        self._length_N = np.empty(0, dtype=np.int32)
        self._read = list[int]()  # shards, since pages were given back
        self.refresh()

    def __len__(self) -> int:
        return len(self._keys_N)

    def refresh(self) -> None:
        """Take in the shards that were written meanwhile, by this process or another."""
        new = sorted(path for path in self.folder.glob("*.shard") if path.name not in self._seen)
        if not new:
            return
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
            whole = list(pool.map(_is_whole, new))
        found: list[tuple[np.ndarray, ...]] = [(self._keys_N, self._shard_N, self._start_N, self._length_N)]
        for path, good in zip(new, whole, strict=True):
            if good is None:  # not ours to read, or gone
                continue
            if good:
                self._seen.add(path.name)
                found.append(self._index(path))
            elif path.name not in self.damaged:
                self.damaged.append(path.name)
                with suppress(OSError):
                    path.unlink()
        keys, shards, starts, lengths = (np.concatenate(parts) for parts in zip(*found, strict=True))
        self._keys_N, first_N = np.unique(keys, return_index=True)
        self._shard_N, self._start_N, self._length_N = shards[first_N], starts[first_N], lengths[first_N]

    def has(self, keys_N: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """True for each key that is there."""
        return self._find(keys_N)[1]

    def values(self, keys_N: NDArray[np.bytes_]) -> NDArray[np.float32]:
        """The log-probs of several examples, one after the other.

        Raises:
            KeyError: if one is not there.
        """
        at_N, found_N = self._find(keys_N)
        if not found_N.all():
            raise KeyError(f"no log-probs are stored for {int((~found_N).sum())} of {len(keys_N)} examples")
        shards, starts_N = self._shard_N[at_N].tolist(), self._start_N[at_N]
        places = zip(shards, starts_N.tolist(), (starts_N + self._length_N[at_N]).tolist(), strict=True)
        joined = np.concatenate([self._mapped(shard)[start:end] for shard, start, end in places])
        self._let_go(shards)
        return joined

    def write(self, keys_N: NDArray[np.bytes_], lengths_N: NDArray[np.int32], values_K: NDArray[np.float32]) -> None:
        """Add a shard; it is on disk when this returns.

        Raises:
            OSError: if it cannot be written.
        """
        head = np.array([len(keys_N), len(values_K)], dtype=np.int64)
        columns = (head, keys_N, lengths_N.astype(np.int32), values_K.astype(np.float32))
        payload = b"".join(column.tobytes() for column in columns)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{_name_of(hashlib.sha256(payload).hexdigest())}.shard", payload)
        for path in self.folder.glob("*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFT_BEHIND:
                    path.unlink()
        self.refresh()

    def _index(self, path: Path) -> tuple[np.ndarray, ...]:
        """What a shard holds: for each of its examples key, number of the shard, first value, length."""
        with path.open("rb") as file:
            count, total = np.frombuffer(file.read(HEADER_BYTES), np.int64).tolist()
            keys_N = np.frombuffer(file.read(KEY.itemsize * count), KEY)
            lengths_N = np.frombuffer(file.read(4 * count), np.int32)
            places_N = np.full(count, len(self._shards), dtype=np.int32)
            self._shards.append((path, total, file.tell()))
        return keys_N, places_N, np.cumsum(lengths_N, dtype=np.int64) - lengths_N, lengths_N

    def _mapped(self, shard: int) -> NDArray[np.float32]:
        """A shard's values, mapped. Those of many shards are mapped in turn."""
        if shard not in self._open:
            if len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)
            path, total, offset = self._shards[shard]
            try:
                with path.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise PreftuneError(
                    f"{path} cannot be read any more ({error.strerror}): start again, and what it held is computed anew"
                ) from error
            self._open[shard] = mapped, np.frombuffer(mapped, np.float32, total, offset)
        self._open.move_to_end(shard)
        return self._open[shard][1]

    def _find(self, keys_N: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each key is, and whether it is there."""
        if not len(self):
            return np.zeros(len(keys_N), dtype=np.int64), np.zeros(len(keys_N), dtype=bool)
        at_N = np.minimum(np.searchsorted(self._keys_N, keys_N), len(self) - 1)
        return at_N, self._keys_N[at_N] == keys_N

    def _let_go(self, shards: Iterable[int]) -> None:
        """Give the pages of what was read back to the system now and then; they stay in its cache of files."""
        self._read.extend(shards)
        if len(self._read) >= READS_MAPPED and hasattr(mmap, "MADV_DONTNEED"):
            for shard in set(self._read) & set(self._open):
                self._open[shard][0].madvise(mmap.MADV_DONTNEED)
            self._read.clear()


def _is_whole(path: Path) -> bool | None:
    """True if a shard is what its name says; None if it cannot be read. Read, not mapped: the file's pages do not
    become the process's."""
    try:
        with path.open("rb") as file:
            return _name_of(hashlib.file_digest(file, "sha256").hexdigest()) == path.stem
    except OSError:
        return None


def _name_of(digest: str) -> str:
    return digest[:32]

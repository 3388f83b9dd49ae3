"""Rows that say the same as another row: exactly, or nearly so by MinHash.

A row's set holds the runs of three words of its prompt and of each response, marked by the side they stand on: a pair
with its sides exchanged is no duplicate (it is a contradiction). Signatures have 125 places, in 25 bands of 5: two rows
whose sets have a Jaccard index of 0.8 meet in some band with a probability of 0.9999, and are near duplicates if 0.8 of
their signatures agree, which is off by 0.04 (one standard deviation). Source: Broder 1997; Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import IO

import numpy as np

from preftune.data.doctor.findings import LISTED, Finding, Numbers, rows
from preftune.data.doctor.index import Index, sides
from preftune.data.doctor.words import Hashes, grams, mixed, plain, words
from preftune.data.lines import Lines, Mask
from preftune.data.records import Record

RUN = 3  # words
BANDS, BAND = 25, 5
PLACES = BANDS * BAND
ALIKE = 0.8
SEED = 1
CHUNK = 1024
LAST = np.uint16  # of a signature's 32 bits the last 16 are kept: others agree by chance in 1 of 65,536


def duplicates(index: Index) -> tuple[Finding | None, Mask]:
    """Rows that repeat an earlier one, and a mask of those that do not, shape (records,)."""
    _, first, group = np.unique(index.content, return_index=True, return_inverse=True)
    origin: Numbers = first[group]
    repeats = np.flatnonzero(origin != np.arange(len(index)))
    fresh = np.ones(len(index), dtype=np.bool_)
    fresh[repeats] = False
    if not len(repeats):
        return None, fresh
    text = rows(len(repeats), "repeat an earlier one", "repeats an earlier one")
    return _finding("duplicates", text, "is the same as", index, repeats, origin[repeats]), fresh


def near_duplicates(lines: Lines, index: Index, fresh: Mask) -> Finding | None:
    """Rows that are nearly the same as an earlier one, among those that `fresh` marks.

    Memory: 24 bytes a record, and one band's keys; signatures lie in temporary files, 450 bytes a record.
    """
    numbers = np.flatnonzero(fresh)
    with tempfile.TemporaryFile() as signatures, tempfile.TemporaryFile() as bands:
        said = np.concatenate([np.empty(0, np.bool_), *_sign(lines, fresh, len(numbers), signatures, bands)])
        origin = np.arange(len(numbers))
        for band in range(BANDS):
            bands.seek(band * len(numbers) * 8)
            keys = np.frombuffer(bands.read(len(numbers) * 8), dtype=np.uint64)
            _join(origin, keys, said, signatures)
    origin = np.fromiter((_root(origin, i) for i in range(len(origin))), np.int64, len(origin))
    later = np.flatnonzero(origin != np.arange(len(origin)))
    if not len(later):
        return None
    text = rows(len(later), "are nearly the same as an earlier one", "is nearly the same as an earlier one")
    return _finding("near_duplicates", text, "is nearly the same as", index, numbers[later], numbers[origin[later]])


def _finding(name: str, text: str, reason: str, index: Index, records: Numbers, against: Numbers) -> Finding:
    places = index.places.listed(records[:LISTED], against[:LISTED])
    return Finding(name, "warning", text, len(records), places, records, against, reason)


def _shingles(record: Record) -> Hashes:
    parts = [("prompt", record.prompt), *sides(record)]
    return np.concatenate([grams(words(plain(text)), RUN, salt=_salt(name)) for name, text in parts])


def _salt(name: str) -> int:
    return int.from_bytes(name.encode()[-8:], "little") % 2**31


def _sign(lines: Lines, fresh: Mask, count: int, signatures: IO[bytes], bands: IO[bytes]) -> Iterator[Mask]:
    """Write signatures and the keys of their bands, band after band; give a mask of the rows that hold words."""
    from rensa import RMinHash

    records, first = lines.records(fresh), 0
    while chunk := [_shingles(record) for record in islice(records, CHUNK)]:
        ends = np.cumsum([0, *map(len, chunk)], dtype=np.uint64)
        found = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(chunk), ends, PLACES, SEED)
        signed = np.array(found.to_rows(), dtype=np.uint64)
        signatures.write(signed.astype(LAST).tobytes())
        for band in range(BANDS):
            key = np.full(len(chunk), band, dtype=np.uint64)
            for column in signed[:, band * BAND : (band + 1) * BAND].T:
                key = mixed(key ^ column)
            bands.seek((band * count + first) * 8)
            bands.write(key.tobytes())
        first += len(chunk)
        yield np.array([len(one) > 0 for one in chunk], dtype=np.bool_)
    signatures.flush()


def _join(origin: Numbers, keys: Hashes, said: Mask, signatures: IO[bytes]) -> None:
    """Join rows that share a key, if their signatures agree as well; the earliest row stands for the others."""
    order = np.argsort(keys, kind="stable")
    follows = np.flatnonzero(keys[order[1:]] == keys[order[:-1]]) + 1
    begin, last = 0, -2
    for place in follows.tolist():
        if place != last + 1:
            begin = place - 1
        last = place
        for before in {begin, place - 1}:  # the first of those that share the key, and the one just before
            one, other = int(order[before]), int(order[place])
            root, branch = sorted((_root(origin, one), _root(origin, other)))
            if root != branch and said[one] and said[other] and _agreement(signatures, one, other) >= ALIKE:
                origin[branch] = root


def _root(origin: Numbers, number: int) -> int:
    while origin[number] != number:
        origin[number] = number = int(origin[origin[number]])
    return number


def _agreement(signatures: IO[bytes], one: int, other: int) -> float:
    size = PLACES * np.dtype(LAST).itemsize
    read = []
    for number in (one, other):
        signatures.seek(number * size)
        read.append(np.frombuffer(signatures.read(size), dtype=LAST))
    return float((read[0] == read[1]).mean())

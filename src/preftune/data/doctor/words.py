"""Texts -> words -> numbers for runs of words. The numbers are the same in every process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from preftune.data.records import Text

Hashes = NDArray[np.uint64]
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # written without spaces: each character is a word
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
TOKEN = re.compile(rf"[{CJK}]|[^\W{CJK}]+|[^\w\s]+")
PRIME = np.uint64(0x9E3779B97F4A7C15)


def plain(text: Text) -> str:
    """All that a text says, turn after turn."""
    return text if isinstance(text, str) else "\n".join(turn.content for turn in text)


def answer(text: Text) -> str:
    """What the assistant says in a response."""
    return text if isinstance(text, str) else "\n".join(t.content for t in text if t.role == "assistant")


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return WORD.findall(text.lower())


def grams(words: Sequence[str], n: int, salt: int = 0) -> Hashes:
    """A 64-bit hash of each run of n words, shape (len(words) - n + 1,); of all of them if there are fewer.

    Args:
        words: of one text.
        n: words in a run.
        salt: runs with different salts differ.
    """
    if not words:
        return np.empty(0, dtype=np.uint64)
    n = min(n, len(words))
    ids = np.fromiter((crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64, len(words))
    found = np.full(len(words) - n + 1, salt * 1_000_003 + n, dtype=np.uint64)
    for place in range(n):
        found = mixed(found ^ ids[place : place + len(found)])
    return found


def mixed(values: Hashes) -> Hashes:
    """Each value spread over all 64 bits (splitmix64, Steele et al. 2014)."""
    values = (values + PRIME).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

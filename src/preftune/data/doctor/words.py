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
KNOWN = 100_000  # words whose numbers are kept
PRIME = np.uint64(0x9E3779B97F4A7C15)


def plain(text: Text) -> str:
    """All that a text says, turn after turn."""
    return text if isinstance(text, str) else "\n".join(turn.content for turn in text)


def asked(prompt: Text) -> str:
    """What a prompt says but its system prompt, which many share."""
    return prompt if isinstance(prompt, str) else "\n".join(t.content for t in prompt if t.role != "system")


def answer(text: Text) -> str:
    """What the assistant says in a response."""
    return text if isinstance(text, str) else "\n".join(t.content for t in text if t.role == "assistant")


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return WORD.findall(text.lower())


class _Ids(dict[str, int]):
    """A number for each word, kept for those that come again."""

    def __missing__(self, word: str) -> int:
        if len(self) >= KNOWN:
            self.clear()
        self[word] = found = crc32(word.encode("utf-8", "surrogatepass"))
        return found


_number = _Ids().__getitem__


def numbered(words: Sequence[str]) -> Hashes:
    """A 32-bit hash of each word."""
    return np.fromiter(map(_number, words), np.uint64, len(words))


def grams(words: Sequence[str], n: int, salt: int = 0) -> Hashes:
    """A 64-bit hash of each run of n words, shape (len(words) - n + 1,); of all of them if there are fewer.

    Args:
        words: of one text.
        n: words in a run.
        salt: runs with different salts differ.
    """
    return runs(numbered(words), n, salt)


def runs(numbers: Hashes, n: int, salt: int = 0) -> Hashes:
    """The same for words that are numbered already."""
    n = min(n, len(numbers))
    if n == 0:
        return numbers
    found = numbers[: len(numbers) - n + 1] + np.uint64(salt)
    for place in range(1, n):
        found = found * PRIME + numbers[place : place + len(found)]
    found = found * PRIME + np.uint64(n)
    return found ^ (found >> np.uint64(32))


def mixed(values: Hashes) -> Hashes:
    """Each value spread over all 64 bits (the steps of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

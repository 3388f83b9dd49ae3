"""How many cases are tried, and how each is broken: bytes of files, in the ways in which files break.

In CI the cases are the same each time. `make fuzz` sets PREFTUNE_FUZZ to a factor: so many times as many, at random.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

FACTOR = int(os.environ.get("PREFTUNE_FUZZ", "1"))
LONGEST = 800  # characters of a sentence that somebody will read
BUDGET = {  # cases in CI
    "rows.jsonl": 1500,
    "rows.json": 1300,
    "rows.csv": 1500,
    "rows.parquet": 900,
    "gz, its bytes": 800,
    "gz, what it packs": 500,
    "pieces of files": 1000,
    "rows": 500,
    "configs": 400,
    "pieces of configs": 800,
    "overrides": 800,
}


def fuzz(name: str, check: Callable[..., None], /, **strategies: SearchStrategy[Any]) -> None:
    """Hold a property against as many cases as are planned under this name."""
    count, wanted = 0, BUDGET[name] * FACTOR

    @settings(
        max_examples=wanted,
        deadline=None,
        derandomize=FACTOR == 1,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(**strategies)
    def one(**drawn: Any) -> None:
        nonlocal count
        count += 1
        check(**drawn)

    one()
    assert count >= wanted


def check_sentence(message: str, *names: str) -> None:
    """One sentence that names where."""
    assert message, "nothing is said"
    assert message.splitlines() == [message], message
    assert len(message) <= LONGEST, message
    assert not names or any(name in message for name in names), message


# What formats are made of, and what breaks them: brackets, quotes, ends of lines, bad UTF-8, numbers without end.
PIECES = st.sampled_from(
    [
        *(b"", b"\0", b"\n", b"\r", b"\r\n", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\xed\xa0\xbd", b"\xe2\x80\xa8"),
        *(b'"', b"'", b"\\", b"\\ud83d", b"{", b"}", b"[", b"]", b",", b":", b"{}", b"[]", b"null", b"NaN", b"-"),
        *(b"1e999", b"-0", b"9" * 40, b"9" * 5000, b"[" * 99, b'{"a":' * 99, b"true", b" ", b"\t", b"a" * 300),
        *(b"&a ", b"*a", b"!!", b"<<: ", b"? ", b"- ", b"# ", b"%", b"|\n", b">\n", b"---\n", b"...\n", b"${", b"="),
    ]
)
Edits = list[tuple[str, int, int, bytes]]
EDITS: SearchStrategy[Edits] = st.lists(
    st.tuples(
        st.sampled_from(("insert", "replace", "delete", "double", "cut", "flip")),
        st.integers(0, 9999),  # where, in parts of the length
        st.integers(0, 64),  # how many bytes
        st.one_of(PIECES, st.binary(max_size=8)),
    ),
    min_size=1,
    max_size=5,
)


def edited(data: bytes, edits: Edits) -> bytes:
    """The data after some accidents."""
    for kind, place, size, piece in edits:
        at = place * len(data) // 10_000
        before, there, after = data[:at], data[at : at + size], data[at + size :]
        match kind:
            case "insert":
                data = before + piece + there + after
            case "replace":
                data = before + piece + after
            case "delete":
                data = before + after
            case "double":
                data = before + there + there + after
            case "cut":
                data = before
            case "flip":
                data = before + bytes(byte ^ (1 << (size % 8)) for byte in there[:1]) + there[1:] + after
    return data

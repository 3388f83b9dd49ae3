"""A held-out split by prompt: no prompt is on both sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from preftune.data.records import Demonstration, Judged, Preference, Ranking, Record, Text
from preftune.errors import PreftuneError

R = TypeVar("R", Preference, Judged, Ranking, Demonstration, Record)

DIGEST = 16  # bytes kept of a prompt's hash: among a million prompts, chances that two share them are 1 in 10^27


def held_out(records: Sequence[R], fraction_or_count: float | int, seed: int) -> tuple[list[R], list[R]]:
    """Split records into those to train on and those to hold out, each in their given order; see `choose`."""
    chosen = choose((record.prompt for record in records), fraction_or_count, seed)
    return list(compress(records, ~chosen)), list(compress(records, chosen))


def choose(prompts: Iterable[Text], fraction_or_count: float | int, seed: int) -> NDArray[np.bool_]:
    """The records to hold out, told by the prompt of each.

    Prompts are ranked by a hash of (prompt, seed), and the first of them are held out, each with all its records, as
    long as that brings the size closer to the one asked for. So the split does not depend on the order of the records,
    and records that are added later move only prompts at the border.

    Args:
        prompts: of each record; read once, and not kept.
        fraction_or_count: share of the records to hold out, a float in (0, 1), or their number, an int >= 1.
        seed: another seed, another split.

    Returns:
        True for each record to hold out, shape (records,). Their number misses the one asked for by half the records of
        one prompt, unless prompts with many records leave no better choice.

    Raises:
        PreftuneError: if the size is out of range or one side would be empty.
    """
    digests = prompt_digests(prompts, seed)
    target = _target(len(digests), fraction_or_count)
    ranked, prompt_of, sizes = np.unique(digests, return_inverse=True, return_counts=True)
    taken, held = np.zeros(len(ranked), dtype=np.bool_), 0
    for rank, size in enumerate(sizes):
        if 2 * (target - held) > size:
            taken[rank], held = True, held + int(size)
        elif held >= target:
            break
    if held in (0, len(digests)):
        raise PreftuneError(
            f"cannot hold out {target} of {len(digests)} records by prompt: they have {len(ranked)} different prompts, "
            "and one side would be empty; give more prompts, another size, or held-out data of its own"
        )
    chosen: NDArray[np.bool_] = taken[prompt_of]
    return chosen


def prompt_digests(prompts: Iterable[Text], seed: int = 0) -> NDArray[Any]:
    """A hash of each (prompt, seed), of type S16: equal for prompts that are the same, and in random order."""
    found = bytearray()
    for prompt in prompts:
        found += hashlib.sha256(f"{seed} {prompt_key(prompt)}".encode()).digest()[:DIGEST]
    return np.frombuffer(found, dtype=f"S{DIGEST}")


def _target(size: int, fraction_or_count: float | int) -> int:
    if isinstance(fraction_or_count, int) and not isinstance(fraction_or_count, bool):
        if 1 <= fraction_or_count < size:
            return fraction_or_count
    elif isinstance(fraction_or_count, float) and 0 < fraction_or_count < 1:
        return max(1, round(fraction_or_count * size))
    raise PreftuneError(
        f"cannot hold out {fraction_or_count!r} of {size} records, expected a fraction between 0 and 1 "
        "or a whole number from 1 to one less than there are"
    )


def prompt_key(prompt: Text) -> str:
    """What makes two prompts the same one: see `text_key`."""
    return text_key(prompt)


def text_key(text: Text, role: str = "user") -> str:
    """What makes two texts the same one: roles and texts, less blanks at either end; plain text is a turn of `role`."""
    turns = [(role, text)] if isinstance(text, str) else [(turn.role, turn.content) for turn in text]
    return json.dumps([[role, content.strip()] for role, content in turns])

"""A held-out split by prompt: no prompt is on both sides."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from preftune.data.records import Demonstration, Judged, Preference, Ranking, Record, Text
from preftune.errors import PreftuneError

R = TypeVar("R", Preference, Judged, Ranking, Demonstration, Record)


def held_out(records: Sequence[R], fraction_or_count: float | int, seed: int) -> tuple[list[R], list[R]]:
    """Split records into those to train on and those to hold out, each in their given order.

    Prompts are ranked by a hash of (prompt, seed), and the first of them are held out, each with all its records, as
    long as that brings the size closer to the one asked for. So the split does not depend on the order of the records,
    and records that are added later move only prompts at the border.

    Args:
        records: what to split.
        fraction_or_count: share of the records to hold out, a float in (0, 1), or their number, an int >= 1.
        seed: another seed, another split.

    Returns:
        (train, held_out). The held-out size misses the one asked for by half the records of one prompt, unless prompts
        with many records leave no better choice.

    Raises:
        PreftuneError: if the size is out of range or one side would be empty.
    """
    target = _target(len(records), fraction_or_count)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[prompt_key(record.prompt)].append(index)
    held: set[int] = set()
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()):
        if 2 * (target - len(held)) > len(groups[key]):
            held.update(groups[key])
    if not held or len(held) == len(records):
        raise PreftuneError(
            f"cannot hold out {target} of {len(records)} records by prompt: they have {len(groups)} different prompts, "
            "and one side would be empty; give more prompts, another size, or held-out data of its own"
        )
    train = [record for index, record in enumerate(records) if index not in held]
    return train, [record for index, record in enumerate(records) if index in held]


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
    """What makes two prompts the same one: roles and texts, less blanks at either end; plain text is a user turn."""
    turns = [("user", prompt)] if isinstance(prompt, str) else [(turn.role, turn.content) for turn in prompt]
    return json.dumps([[role, content.strip()] for role, content in turns])

"""Whether runs held out the same data, as far as their folders tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from preftune.report.reading import RunData
from preftune.report.values import listed, mapping, number

SPLIT = ("path", "held_out_path", "held_out", "split", "limit")  # keys under `data` that decide what is held out


def apart(runs: Sequence[RunData]) -> str:
    """In what the held-out data of runs differs, in words; empty if it is the same, as far as can be told.

    Equal hashes of the data mean equal sides. Unequal ones may come from the training side alone, where held-out data
    has a file of its own.
    """
    found: list[str] = []
    for run in runs[1:]:
        found += [reason for reason in _differences(runs[0], run) if reason not in found]
    return listed(found)


def _differences(one: RunData, other: RunData) -> list[str]:
    hashes = [run.manifest.get("data_sha256") for run in (one, other)]
    if all(hashes) and hashes[0] == hashes[1]:
        return []
    data = [_data(run) for run in (one, other)]
    own_file = bool(data[0].get("held_out_path"))
    keys = ("held_out_path", "split") if own_file and data[1].get("held_out_path") else SPLIT
    found = [f"data.{key}" for key in keys if data[0].get(key) != data[1].get(key)]
    counts = [number(mapping(run.manifest.get("records")).get("held_out")) for run in (one, other)]
    if None not in counts and counts[0] != counts[1]:
        found.append("the number of held-out records")
    if found or own_file or not all(hashes):
        return found
    seeds = [run.config.get("seed") for run in (one, other)]
    return ["the seed, which draws what is held out"] if seeds[0] != seeds[1] else ["what the data holds"]


def _data(run: RunData) -> dict[str, Any]:
    """The block of the config, with values that compare by what they say; one text alone is its path."""
    given = run.config.get("data")
    block = mapping(given) or ({"path": given} if isinstance(given, str) else {})
    return {key: json.dumps(block[key], default=str) for key in SPLIT if block.get(key) is not None}

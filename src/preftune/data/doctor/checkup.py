"""The checks that are asked for on the records of a source, and what their policies make of what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from preftune.data.doctor import conflicts, duplicates, shortcuts
from preftune.data.doctor.contamination import Asked, Prompts, contamination
from preftune.data.doctor.findings import LISTED, DoctorConfig, Finding, Numbers, rows
from preftune.data.doctor.index import Index, index
from preftune.data.lines import Lines, Mask
from preftune.errors import PreftuneError


class Chart:
    """Records, and what is known of them; each thing is found out when it is first needed.

    Args:
        lines: the records.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    @cached_property
    def index(self) -> Index:
        """Hashes and lengths of all records."""
        return index(self.lines)

    @cached_property
    def votes(self) -> conflicts.Votes:
        """What the rows say about each question."""
        return conflicts.votes(self.index)

    @cached_property
    def repeats(self) -> tuple[Finding | None, Mask]:
        """Rows that repeat an earlier one, and a mask of the others."""
        return duplicates.duplicates(self.index)

    @cached_property
    def sample(self) -> Mask:
        """Records whose words and forms are looked at."""
        return shortcuts.sample(self.index)

    def figures(self) -> dict[str, Any]:
        """What is worth knowing of good data too."""
        label_noise = conflicts.noise(self.index, self.votes)
        return {**shortcuts.length_bias(self.index)[1], "label_noise": label_noise}


CHECKS: dict[str, Callable[[Chart], Finding | None]] = {
    "duplicates": lambda chart: chart.repeats[0],
    "near_duplicates": lambda chart: duplicates.near_duplicates(chart.lines, chart.index, chart.repeats[1]),
    "contradictions": lambda chart: conflicts.contradictions(chart.index, chart.votes),
    "cycles": lambda chart: conflicts.cycles(chart.index, chart.votes),
    "confidence": lambda chart: _marked(
        chart.index, chart.index.doubtful, "confidence", "a confidence below one half, so that the other is the better"
    ),
    "templated": lambda chart: _marked(
        chart.index,
        chart.index.templated,
        "templated",
        "marks of a chat template in the text, which would stand there twice",
        chart.index.marks,
    ),
    "length_bias": lambda chart: shortcuts.length_bias(chart.index)[0],
    "markers": lambda chart: shortcuts.markers(chart.lines, chart.sample),
    "formats": lambda chart: shortcuts.formats(chart.lines, chart.sample),
    "language": lambda chart: shortcuts.language(chart.lines, chart.sample),
}


def examine(chart: Chart, config: DoctorConfig) -> list[Finding]:
    """What the checks that the config does not ignore find, but those that need other data: see `overlap`."""
    asked = (check for name, check in CHECKS.items() if getattr(config, name) != "ignore")
    return [finding for check in asked if (finding := check(chart)) is not None]


def overlap(chart: Chart, mask: Mask, evaluation: Iterable[Asked], name: str) -> Finding | None:
    """Rows, those that `mask` marks, that hold prompts of evaluation data called `name`."""
    return contamination(chart.lines, chart.index, mask, Prompts(evaluation), name)


def decide(findings: Iterable[Finding], config: DoctorConfig, count: int) -> tuple[Mask, list[str]]:
    """Which of `count` records to train on, and what to tell the user.

    Raises:
        PreftuneError: for a finding whose policy is "error"; if no record is left.
    """
    kept, said = np.ones(count, dtype=np.bool_), []
    for finding in findings:
        policy, key, told = getattr(config, finding.name), f"data.doctor.{finding.name}", finding.sentence()
        droppable = len(finding.drop) > 0
        if policy == "error":
            other = f"{key}=drop" if droppable else f"{key}=warn"
            raise PreftuneError(f"{told}: mend the data (`preftune validate` shows more), or set {other}")
        if policy == "drop":
            kept[finding.drop] = False
            said.append(f"{rows(len(finding.drop))} left out: {told}")
        else:
            said.append(told + (f"; {key}=drop leaves such rows out" if droppable else ""))
    if count and not kept.any():
        raise PreftuneError(f"no record is left to learn from: {'; '.join(said)}; change the policies of data.doctor")
    return kept, said


def report(chart: Chart, findings: Iterable[Finding], config: DoctorConfig) -> dict[str, Any]:
    """What was found at the start of training, as plain values for data_doctor.json.

    Args:
        chart: the records; its figures are told only where checks have gone over the data anyway.
        findings: what the checks found.
        config: the policies.
    """
    left_out = {name: chart.lines.drops(name) for name in ("unreadable", "identical")}
    drops = [
        {"name": name, "severity": "error", "text": drop.summary(), "count": drop.total, "policy": "drop"}
        for name, drop in left_out.items()
        if drop.total
    ]
    found = [
        {
            "name": finding.name,
            "severity": finding.level,
            "text": finding.sentence(),
            "count": finding.count,
            "policy": getattr(config, finding.name),
        }
        for finding in findings
    ]
    looked = any(getattr(config, name) != "ignore" for name in CHECKS)
    rows_read = chart.lines.count + sum(drop.total for drop in left_out.values())
    return {"rows": rows_read, "findings": [*drops, *found], "figures": chart.figures() if looked else {}}


def _marked(index: Index, records: Numbers, name: str, what: str, why: Sequence[str] = ()) -> Finding | None:
    """Records with something in common, and why the first of them have it."""
    if not len(records):
        return None
    reasons = [*why, *[""] * (min(len(records), LISTED) - len(why))]
    places = [(index.places[number], None, reason) for number, reason in zip(records[:LISTED], reasons, strict=True)]
    text = rows(len(records), f"have {what}", f"has {what}")
    return Finding(name, "warning", text, len(records), places, records, reason=f"has {what}")

"""All that can be said about data before training: errors of reading, the doctor's findings, errors as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.data.doctor.checkup import Chart, examine, overlap
from preftune.data.doctor.cleaning import clean_rows
from preftune.data.doctor.contamination import prompts_of
from preftune.data.doctor.findings import LISTED, DoctorConfig, Finding, Listing
from preftune.data.lines import Lines, Reading
from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preftune.data.rendering import RenderingConfig

# What `preftune validate` looks for, unless told otherwise: everything; "drop" is for --write.
THOROUGH: dict[str, str] = {
    **dict.fromkeys(("identical", "tokens", "duplicates", "near_duplicates", "contradictions", "cycles"), "drop"),
    "contamination": "drop",
    **dict.fromkeys(("confidence", "templated", "length_bias", "markers", "formats", "language"), "warn"),
}


@dataclass(frozen=True)
class Checked:
    """What to check, and how.

    Attributes:
        source: file, folder, hub id or built-in name.
        reading: how to read it.
        doctor: which checks; those with the policy "drop" decide what `write` leaves out.
        held_out: data to be held out, if it lies apart.
        against: an evaluation set.
        write: where to write the rows that are good.
    """

    source: str
    reading: Reading = field(default_factory=lambda: Reading(bad_rows="drop"))
    doctor: DoctorConfig = field(default_factory=lambda: DoctorConfig.model_validate(THOROUGH))
    held_out: str | None = None
    against: str | None = None
    write: Path | None = None


@dataclass(frozen=True)
class AsTokens:
    """A tokenizer and how to render with it."""

    tokenizer: PreTrainedTokenizerBase
    rendering: RenderingConfig
    workers: int | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What came out.

    Attributes:
        source: what was read.
        rows: how many there were.
        records: by kind, how many of them can be read.
        findings: errors first.
        figures: by name.
        notes: what to know besides.
        doctor: the policies.
        written: rows kept and rows left out by `write`, None if nothing was to be written.
    """

    source: str
    rows: int
    records: Mapping[str, int]
    findings: list[Finding]
    figures: dict[str, Any]
    notes: list[str]
    doctor: DoctorConfig
    written: tuple[int, int] | None = None

    def is_error(self, finding: Finding) -> bool:
        """True for what cannot be trained on, and for what is not to be, by its policy."""
        return finding.level == "error" or getattr(self.doctor, finding.name, None) == "error"

    @property
    def exit_code(self) -> int:
        """0: clean; 1: warnings; 2: errors."""
        return 2 if any(map(self.is_error, self.findings)) else 1 if self.findings else 0


def diagnose(checked: Checked, tokens: AsTokens | None = None) -> Diagnosis:
    """Read, check, and write the good rows if asked to.

    Raises:
        PreftuneError: if the source cannot be read at all, or the good rows cannot be written.
    """
    unreadable = Listing("unreadable", "cannot be read", "cannot be read")
    identical = Listing("identical", "hold no preference", "holds no preference")
    lines = Lines(checked.source, checked.reading, (unreadable, identical))
    try:
        count = lines.count
    except PreftuneError:
        if not unreadable.total:
            raise
        count = 0
    errors = [found for listing in (unreadable, identical) if (found := listing.finding()) is not None]
    total = count + unreadable.total + identical.total
    if not count:
        nothing = [] if checked.write is None else [f"no row is good, so {checked.write} was not written"]
        return Diagnosis(checked.source, total, {}, errors, {}, nothing, checked.doctor)
    chart = Chart(lines)
    if len(chart.index.kinds) > 1:
        mixed = " and ".join(f"{number:,} {kind}" for kind, number in chart.index.kinds.items())
        errors.append(Finding("mixed", "error", f"the rows are of different kinds ({mixed}): train on one of them"))
    notes: list[str] = []
    if tokens is not None:
        from preftune.data.doctor.tokens import unfit_as_tokens

        unfit, notes = unfit_as_tokens(lines, chart.index.places, tokens.tokenizer, tokens.rendering, tokens.workers)
        errors += unfit
    notes = [*lines.notes, *notes]
    findings = [*errors, *_warnings(chart, checked)]
    written = None
    if checked.write is not None:
        places = chart.index.places
        written = clean_rows(checked.write, checked.source, checked.reading, places, count, findings, checked.doctor)
    return Diagnosis(
        checked.source, total, chart.index.kinds, findings, chart.figures(), notes, checked.doctor, written
    )


def _warnings(chart: Chart, checked: Checked) -> list[Finding]:
    found = examine(chart, checked.doctor)
    if checked.doctor.contamination != "ignore":
        everything = np.ones(len(chart.index), dtype=np.bool_)
        for source, what in ((checked.held_out, "held-out data"), (checked.against, "evaluation set")):
            if source is not None:
                shared = overlap(chart, everything, prompts_of(source), f"the {what} {source}")
                found += [shared] if shared is not None else []
    return found


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis as plain values; of each finding the first 1,000 rows."""
    return {
        "source": diagnosis.source,
        "rows": diagnosis.rows,
        "records": dict(diagnosis.records),
        "exit_code": diagnosis.exit_code,
        "findings": [
            {
                "name": finding.name,
                "level": "error" if diagnosis.is_error(finding) else "warning",
                "text": finding.text,
                "count": finding.count,
                "rows": [
                    {"file": where.source, "row": where.row}
                    | ({"reason": why or finding.reason} if why or finding.reason else {})
                    | ({} if other is None else {"other": {"file": other.source, "row": other.row}})
                    for where, other, why in finding.places[:LISTED]
                ],
                **({"signs": [*finding.signs]} if finding.signs else {}),
                **({"details": finding.details} if finding.details else {}),
            }
            for finding in diagnosis.findings
        ],
        "figures": diagnosis.figures,
        "notes": diagnosis.notes,
        **({} if diagnosis.written is None else {"kept": diagnosis.written[0], "dropped": diagnosis.written[1]}),
    }

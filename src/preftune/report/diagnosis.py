"""What the two doctors say: the training doctor's findings as cards, the data doctor's as a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preftune.report.values import interval, mapping, number, rows, show, show_interval

SHOWN = 12  # rows that are named
POLICIES = {"drop": "left out", "warn": "kept, with a warning", "error": "stops a run"}


@dataclass(frozen=True)
class Symptom:
    """A finding of the training doctor.

    Attributes:
        rule: its name, in words.
        severity: "warning" or "information".
        figure: a short phrase with the number that fired it.
        explanation: two sentences.
        remedy: one sentence.
        when: at which steps it was seen.
        stands: True if it stood at the end, or stands now.
        rows: of the data, that drive it.
    """

    rule: str
    severity: str
    figure: str
    explanation: str
    remedy: str
    when: str
    stands: bool
    rows: str


@dataclass(frozen=True)
class Checkup:
    """What the data doctor found at the start.

    Attributes:
        lead: how many rows, how many findings.
        findings: each with name, severity, text, and what became of it.
        figures: what is worth knowing of good data too, in sentences.
    """

    lead: str
    findings: Sequence[tuple[str, str, str, str]]
    figures: Sequence[str]


def symptoms(history: Sequence[dict[str, Any]], summary: dict[str, Any]) -> list[Symptom] | None:
    """Each rule that fired, as last seen, those that stand first; None if the doctor did not watch.

    Args:
        history: the lines of metrics.jsonl.
        summary: summary.json, whose "doctor" lists what stands at the end; empty while the run goes on.
    """
    lines = [row for row in history if row.get("kind") == "doctor" and isinstance(row.get("rule"), str)]
    ended = "doctor" in summary
    standing = {row["rule"]: row for row in rows(summary.get("doctor")) if isinstance(row.get("rule"), str)}
    if not lines and not ended:
        return None
    last = {**{row["rule"]: row for row in lines}, **standing}
    found = []
    for rule, row in last.items():
        seen = [number(line.get("step")) for line in (*lines, row) if line["rule"] == rule]
        found.append(
            Symptom(
                rule=_called(rule),
                severity="warning" if row.get("severity") == "warning" else "information",
                figure=_text(row.get("figure")),
                explanation=_text(row.get("explanation")),
                remedy=_text(row.get("remedy")),
                when=_when([step for step in seen if step is not None]),
                stands=rule in standing if ended else True,
                rows=_rows(row.get("rows")),
            )
        )
    return sorted(found, key=lambda one: (not one.stands, one.severity != "warning"))


def checkup(data_doctor: dict[str, Any]) -> Checkup | None:
    """data_doctor.json in words; None if there is none."""
    if not data_doctor:
        return None
    count = number(data_doctor.get("rows"))
    findings = [
        (
            _text(row.get("name")).replace("_", " "),
            "error" if row.get("severity") == "error" else "warning",
            _text(row.get("text")),
            {"drop": "left out", "warn": "kept, with a warning", "error": "stops a run"}.get(
                _text(row.get("policy")), ""
            ),
        )
        for row in rows(data_doctor.get("findings"))
    ]
    amount = f"{count:,.0f} {'row' if count == 1 else 'rows'} were read" if count is not None else "The data was read"
    said = f"{len(findings)} {'finding' if len(findings) == 1 else 'findings'}" if findings else "no findings"
    return Checkup(f"{amount}: {said}.", findings, _figures(mapping(data_doctor.get("figures"))))


def _figures(figures: dict[str, Any]) -> list[str]:
    said = []
    longer, bounds = number(figures.get("longer_wins")), interval(figures.get("longer_wins_ci95"))
    if longer is not None:
        shown = show_interval(bounds, "share")
        verdict = ""
        if bounds is not None:
            fair = bounds[0] <= 0.5 <= bounds[1]
            verdict = "; length alone does not tell them apart" if fair else "; length alone tells something"
        said.append(
            f"The longer response is the better one in {show(longer, 'share')} of comparisons"
            + (f" (95% interval {shown})" if shown else "")
            + f"{verdict}."
        )
    noise = mapping(figures.get("label_noise"))
    repeats = number(noise.get("from_repeats"))
    if repeats is not None:
        shown = show_interval(interval(noise.get("from_repeats_ci95")), "share")
        said.append(
            f"Where a question has several votes, {show(repeats, 'share')} of labels are wrong"
            + (f" (95% interval {shown})." if shown else ".")
        )
    doubt = number(noise.get("from_confidences"))
    if doubt is not None:
        said.append(f"By the confidences given with the rows, {show(doubt, 'share')} of labels are wrong.")
    return said


def _called(rule: str) -> str:
    """The name of a rule for people: "kl_blow_up" is "KL blow up"."""
    return rule.replace("_", " ").capitalize().replace("Kl ", "KL ")


def _when(steps: list[float]) -> str:
    if not steps:
        return ""
    first, last = min(steps), max(steps)
    return f"step {last:,.0f}" if first == last else f"first at step {first:,.0f}, last at step {last:,.0f}"


def _rows(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return ""
    named = ", ".join(_text(row) for row in value[:SHOWN])
    return f"{named} and {len(value) - SHOWN:,} more" if len(value) > SHOWN else named


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    shown = number(value)
    return f"{shown:g}" if shown is not None else ""

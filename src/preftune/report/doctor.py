"""What the data doctor found, as a table in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preftune.data.doctor.findings import Finding
from preftune.data.doctor.validation import Diagnosis

REPEATS = 10  # questions with several votes, below which their disagreement says little
SHOWN = 5  # rows of each finding
WHAT = {"Preference": "pairs", "Judged": "judged responses", "Ranking": "rankings", "Demonstration": "demonstrations"}


def show(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print findings with their first rows, figures, and what came of `--write`."""
    console = console or Console()
    read = ", ".join(f"{count:,} {WHAT[kind]}" for kind, count in diagnosis.records.items())
    _say(console, f"{diagnosis.source}: {diagnosis.rows:,} rows, {read or 'none of which can be used'}")
    if diagnosis.findings:
        table = Table("", "finding", "rows", "what", show_lines=True)
        for finding in diagnosis.findings:
            level = "[red]error[/red]" if diagnosis.is_error(finding) else "[yellow]warning[/yellow]"
            table.add_row(
                level, finding.name, f"{finding.count:,}" if finding.count else "all", _what(finding, diagnosis.source)
            )
        console.print(table)
    for line in (*_figures(diagnosis.figures), *diagnosis.notes):
        _say(console, line)
    if diagnosis.written is not None:
        _say(console, f"{diagnosis.written[0]:,} rows written, {diagnosis.written[1]:,} left out")
    verdict = ("clean", "warnings, no errors", "errors")[diagnosis.exit_code]
    _say(console, f"{verdict} (exit code {diagnosis.exit_code})")


def _what(finding: Finding, source: str) -> str:
    shown = finding.shown(len(finding.signs) or SHOWN, source)
    more = 0 if finding.signs else finding.count - len(shown)
    rest = [f"and {more:,} more (--json lists them)"] if shown and more > 0 else []
    return "\n".join([escape(finding.text), *(f"[dim]{escape(line)}[/dim]" for line in (*shown, *rest))])


def _figures(figures: Mapping[str, Any]) -> list[str]:
    lines = []
    if "longer_wins" in figures:
        low, high = figures["longer_wins_ci95"]
        wins = f"{figures['longer_wins']:.1%} (95% interval {low:.1%} to {high:.1%})"
        lines.append(f"the longer response is the better one in {wins}")
    noise = figures.get("label_noise", {})
    if noise.get("questions_answered_twice", 0) >= REPEATS:
        low, high = noise["from_repeats_ci95"]
        lines.append(
            f"label noise: {noise['from_repeats']:.1%} (95% interval {low:.1%} to {high:.1%}) of labels are wrong, if "
            f"the {noise['questions_answered_twice']:,} questions with several votes are like all others and each vote "
            "errs on its own"
        )
    if noise.get("from_confidences") is not None:
        lines.append(f"label noise: {noise['from_confidences']:.1%} of labels are wrong, if confidences are calibrated")
    return lines


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)

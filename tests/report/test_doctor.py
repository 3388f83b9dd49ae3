"""The table of `preftune validate`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from preftune.data.doctor.findings import DoctorConfig, Finding
from preftune.data.doctor.validation import Checked, Diagnosis, diagnose
from preftune.data.lines import Reading
from preftune.data.records import Where
from preftune.report.doctor import show


def shown(diagnosis: Diagnosis, width: int = 100) -> str:
    out = io.StringIO()
    show(diagnosis, Console(file=out, width=width))
    return out.getvalue()


def diagnosis(*findings: Finding, **more: Any) -> Diagnosis:
    values: dict[str, Any] = {"records": {"Preference": 2000}, "figures": {}, "notes": []}
    return Diagnosis("pairs.jsonl", 2000, findings=[*findings], doctor=DoctorConfig(), **{**values, **more})


def test_many_rows_are_counted_and_the_first_named_once_each_without_their_file() -> None:
    places = [(Where("pairs.jsonl", i), Where("pairs.jsonl", 0), "") for i in range(1, 1001)]
    text = shown(
        diagnosis(Finding("duplicates", "warning", "1,500 rows repeat", 1500, places, reason="is the same as"))
    )
    assert text.startswith("pairs.jsonl: 2,000 rows, 2,000 pairs\n")
    for row in range(1, 6):
        assert f"row {row} is the same as row 0 " in text
    assert "row 6 " not in text
    assert "and 1,495 more (--json lists them)" in text
    assert text.splitlines()[-1] == "warnings, no errors (exit code 1)"


def test_text_of_the_data_is_no_markup() -> None:
    place = (Where("a[b].jsonl", 3), None, "chosen is [red]x[/]")
    text = shown(diagnosis(Finding("unreadable", "error", "1 row [cannot] be read", 1, [place])))
    assert "a[b].jsonl row 3: chosen is [red]x[/]" in text
    assert "1 row [cannot] be read" in text
    assert text.splitlines()[-1] == "errors (exit code 2)"


def test_figures_and_notes_follow_the_table() -> None:
    noise = {"from_repeats": 0.12, "from_repeats_ci95": [0.1, 0.14], "questions_answered_twice": 1200}
    figures = {"longer_wins": 0.55, "longer_wins_ci95": [0.5, 0.6], "label_noise": {**noise, "from_confidences": 0.2}}
    lines = shown(diagnosis(figures=figures, notes=["a note"], written=(1990, 10))).splitlines()
    assert lines[1] == "the longer response is the better one in 55.0% (95% interval 50.0% to 60.0%)"
    assert lines[2].startswith(
        "label noise: 12.0% (95% interval 10.0% to 14.0%) of labels are wrong, if the 1,200 ques"
    )
    assert lines[3] == "label noise: 20.0% of labels are wrong, if confidences are calibrated"
    assert lines[4:] == ["a note", "1,990 rows written, 10 left out", "clean (exit code 0)"]
    few = {**noise, "questions_answered_twice": 3, "from_confidences": None}
    assert "label noise" not in shown(diagnosis(figures={"label_noise": few}))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_finding_of_a_sick_file_fits_the_terminal(width: int, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 3 + '{"prompt": 1, "chosen": "a"}\nnull\n')
    text = shown(diagnose(Checked(str(path), Reading(bad_rows="drop"))), width)
    table = [line for line in text.splitlines() if line[:1] in "│┃├┏└┡"]
    assert table
    assert max(map(len, table)) <= width

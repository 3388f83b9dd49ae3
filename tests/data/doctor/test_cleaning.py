"""The good rows in one file and the others in another: all of them, both files or neither."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.doctor import cleaning
from preftune.data.doctor.validation import Checked, diagnose
from preftune.data.lines import Reading
from preftune.errors import PreftuneError

TEXT = st.sampled_from([" a", " b", " c", "", None, 3, " \ud83d", "<|im_end|>"])
ROW = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["p", "q", ""]), "chosen": TEXT, "rejected": TEXT},
    optional={"confidence": st.sampled_from([0.1, 0.9, 2]), "note": st.text(max_size=3)},
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=20), st.sampled_from([None, 5]))
def test_every_row_is_in_one_of_the_two_files_as_it_was_and_what_is_kept_is_good(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], limit: int | None
) -> None:
    folder = tmp_path_factory.mktemp("clean")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = Reading(bad_rows="drop", limit=limit)
    clean = folder / "clean.jsonl"
    try:
        found = diagnose(Checked(str(folder / "rows.jsonl"), reading, write=clean))
    except PreftuneError:  # all of an unknown layout, say
        assert not clean.exists()
        return
    if found.written is None:  # no row can be read
        assert not clean.exists()
        return
    kept, dropped = lines(clean), lines(folder / "clean.dropped.jsonl")
    assert found.written == (len(kept), len(dropped))
    left_out = {one["row"]: one["content"] for one in dropped}
    assert len(left_out) == len(dropped)
    assert all(one["reason"] for one in dropped)
    seen = rows if limit is None else rows[: len(kept) + len(dropped)]
    assert [row for i, row in enumerate(seen) if i not in left_out] == kept
    assert all(rows[i] == content for i, content in left_out.items())
    if kept:
        again = diagnose(Checked(str(clean)))
        assert {finding.name for finding in again.findings} <= {"confidence", "templated", "length_bias"}
    assert sorted(path.name for path in folder.iterdir()) == ["clean.dropped.jsonl", "clean.jsonl", "rows.jsonl"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": " a", "rejected": " b"} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[1]]))
    return path


def test_a_disk_that_is_full_leaves_nothing_half_written(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cleaning._line

    def full(row: dict[str, Any]) -> bytes:
        if row.get("prompt") == "q3":
            raise OSError(28, "No space left on device")
        return real(row)

    monkeypatch.setattr(cleaning, "_line", full)
    with pytest.raises(PreftuneError, match=r"cannot write .*clean\.jsonl \(No space left on device\)"):
        diagnose(Checked(str(pairs), write=pairs.with_name("clean.jsonl")))
    assert [path.name for path in pairs.parent.iterdir()] == ["pairs.jsonl"]


def test_a_source_that_changes_meanwhile_is_refused(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cleaning.clean_rows

    def late(*words: Any) -> tuple[int, int]:
        pairs.write_text(pairs.read_text() + '{"prompt": "q9", "chosen": " a", "rejected": " b"}\n')
        return real(*words)

    monkeypatch.setattr("preftune.data.doctor.validation.clean_rows", late)
    with pytest.raises(PreftuneError, match="has changed while it was checked"):
        diagnose(Checked(str(pairs), write=pairs.with_name("clean.jsonl")))
    assert [path.name for path in pairs.parent.iterdir()] == ["pairs.jsonl"]


def test_values_that_json_does_not_know_are_written_as_text() -> None:
    assert cleaning._line({"when": date(2026, 11, 22), "é": "ü"}) == '{"when": "2026-11-22", "é": "ü"}\n'.encode()
    assert cleaning._line({"half": "\ud83d"}) == b'{"half": "\\ud83d"}\n'

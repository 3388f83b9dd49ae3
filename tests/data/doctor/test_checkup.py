"""What the policies of `data.doctor` make of findings when a run reads its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.data import dataset
from preftune.data.dataset import DataConfig
from preftune.data.doctor.checkup import CHECKS
from preftune.data.doctor.findings import DoctorConfig
from preftune.data.doctor.validation import THOROUGH
from preftune.errors import PreftuneError

WORDS = "amber birch cedar delta ember fjord grove heath inlet jetty".split()


def pair(prompt: str, chosen: str = " yes", rejected: str = " no!", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


GOOD = [pair(word) for word in WORDS]
LONG = " ".join(WORDS)
SICK: dict[str, tuple[list[dict[str, Any]], int]] = {  # rows that come after the good ones, and how many are left out
    "identical": ([pair("q", " a", " a")], 1),
    "duplicates": ([GOOD[3], GOOD[4]], 2),
    "near_duplicates": ([pair(LONG * 9, LONG, " no"), pair(LONG * 9, LONG, " nope")], 1),
    "contradictions": ([pair(WORDS[2], " no!", " yes")], 2),
    "cycles": ([pair("q", " a", " b"), pair("q", " b", " c"), pair("q", " c", " a")], 3),
    "confidence": ([pair("q", confidence=0.2)], 1),
    "templated": ([pair("q", " yes<|im_end|>")], 1),
}


def read(rows: list[dict[str, Any]], policy: dict[str, str], held_out: Any = ()) -> dataset.Records:
    quiet = {name: "ignore" for name, _ in DoctorConfig() if name not in ("identical", "tokens")}
    config = DataConfig(doctor=DoctorConfig.model_validate({**quiet, **policy}))
    return dataset.read(config, rows, 0, held_out)


@pytest.mark.parametrize("name", SICK)
def test_drop_leaves_the_rows_out_and_says_so(name: str) -> None:
    sick, left_out = SICK[name]
    found = read([*GOOD, *sick], {name: "drop"})
    assert len(found.train) == len(GOOD) + len(sick) - left_out
    (message,) = found.messages
    assert "left out: " in message
    assert "given data row " in message


@pytest.mark.parametrize("name", SICK)
def test_error_stops_in_one_sentence_that_names_rows_and_key(name: str) -> None:
    with pytest.raises(PreftuneError, match=rf"given data row \d+.*data\.doctor\.{name}=drop"):
        read([*GOOD, *SICK[name][0]], {name: "error"})


@pytest.mark.parametrize("name", [name for name in SICK if name != "identical"])
def test_warn_says_it_and_ignore_does_not(name: str) -> None:
    rows = [*GOOD, *SICK[name][0]]
    (message,) = read(rows, {name: "warn"}).messages
    assert message.endswith(f"; data.doctor.{name}=drop leaves such rows out")
    ignored = read(rows, {name: "ignore"})
    assert (len(ignored.train), ignored.messages) == (len(rows), [])


def test_length_bias_warns_unless_told_otherwise_and_can_stop() -> None:
    rows = [pair(f"{word} {i}", " yes, it is", " no") for i in range(5) for word in WORDS]
    (message,) = dataset.read(DataConfig(), rows, 0, ()).messages
    assert message.startswith("the longer response is the better one in 100.0% of comparisons (95% interval 92")
    with pytest.raises(PreftuneError, match=r"data\.doctor\.length_bias=warn"):
        read(rows, {"length_bias": "error"})


def test_held_out_prompts_in_training_texts_are_left_out_on_request() -> None:
    rows = [*GOOD, pair(f"Say it again: {LONG}")]
    held_out = [pair(LONG)]
    assert len(read(rows, {}, held_out).train) == 11
    found = read(rows, {"contamination": "drop"}, held_out)
    assert (len(found.train), len(found.held_out)) == (10, 1)
    assert "holds 1 of the 1 prompts of the held-out data" in found.messages[-1]
    with pytest.raises(PreftuneError, match=r"data\.doctor\.contamination=drop"):
        read(rows, {"contamination": "error"}, held_out)


def test_rows_are_left_out_before_the_split() -> None:
    rows = [pair(f"{word} {i}") for i in range(4) for word in WORDS]
    config = DataConfig(held_out=0.5, doctor=DoctorConfig(duplicates="drop"))
    found = dataset.read(config, [*rows, *rows], 0)
    assert (len(found.train), len(found.held_out)) == (20, 20)
    assert {record.where.row for side in (found.train, found.held_out) for record in side} == set(range(40))


def test_policies_that_leave_nothing_are_refused() -> None:
    rows = [pair("q", " a", " b"), pair("q", " b", " a")]
    with pytest.raises(PreftuneError, match="no record is left to learn from: 2 rows left out: 2 rows contradict"):
        read(rows, {"contradictions": "drop"})


def test_what_was_found_is_remembered_with_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, GOOD[0], *SICK["cycles"][0]]))
    config = DataConfig(doctor=DoctorConfig(cycles="drop"))
    first = dataset.read(config, str(path), 0)
    monkeypatch.setattr("preftune.data.dataset.examine", None)  # would raise
    again = dataset.read(config, str(path), 0)
    assert again.messages == first.messages
    assert len(again.messages) == 2
    assert [*again.train] == [*first.train]
    with pytest.raises(TypeError):
        dataset.read(DataConfig(), str(path), 0)


def test_every_check_has_a_policy_and_validate_looks_for_all() -> None:
    assert {*CHECKS} == {name for name, _ in DoctorConfig()} - {"identical", "tokens", "contamination"}
    assert THOROUGH.keys() == dict(DoctorConfig()).keys()
    assert "ignore" not in THOROUGH.values()


def test_demonstrations_and_rankings_are_looked_at_too() -> None:
    answers = [{"prompt": word, "completion": " yes"} for word in WORDS]
    assert len(read([*answers, answers[1]], {"duplicates": "drop"}).train) == 10
    ranking = {"prompt": "q", "responses": [" a", " b"], "scores": [1, 0]}
    rows = [{**ranking, "prompt": word} for word in WORDS]
    assert len(read([*rows, {**rows[0], "scores": [0, 1]}], {"contradictions": "drop"}).train) == 9

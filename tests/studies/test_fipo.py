"""FIPO in small: its parts against values worked by hand, and the quick form from the command line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preftune.errors import PreftuneError
from preftune.sandbox.tasks import SEEN, SHIPPED, UNSEEN
from preftune.sandbox.tasks.asking import asked
from preftune.sandbox.tasks.families import FAMILIES
from preftune.sandbox.tasks.wordings import IDLE, PLANS
from preftune.studies.fipo.answers import Answers
from preftune.studies.fipo.form import FULL, QUICK, STRATEGIES, TEACHERS, Form
from preftune.studies.fipo.rewrites import PROBED, TEST, VALIDATION, demonstrations, judged_pairs, kind, shuffled
from preftune.studies.fipo.study import study
from preftune.studies.fipo.tables import Line, accuracy, difference, outcome, resampled, some

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
QUICKLY = [sys.executable, "-W", "error", "-m", "preftune", "study", "fipo", "--quick", "-q", "-o", "here"]


def test_forms_are_those_that_are_promised() -> None:
    assert len(FULL.seeds) >= 3
    assert FULL.test >= 500
    assert set(FULL.teachers) == set(TEACHERS)
    assert {"sft", "dpo", "ipo", "ipl-dpo", "ipl-ipo"} <= set(FULL.strategies)
    for form in (FULL, QUICK):
        for key in form.strategies:
            start = STRATEGIES[key].start
            assert start == "untrained" or form.strategies.index(start) < form.strategies.index(key)


def test_teachers_write_as_often_as_they_should_what_they_should() -> None:
    for teacher in TEACHERS.values():
        some_asked = {one.prompt: one for one in asked(2000, 5)}
        written = [(prompt, kind(text, some_asked[prompt])) for prompt, text in demonstrations(teacher, 2000, 5)]
        shares = {name: sum(each == name for _, each in written) / len(written) for name in {k for _, k in written}}
        assert set(shares) == {"plan for both", "plan for one", "idle"}
        assert shares["plan for both"] + shares["plan for one"] == pytest.approx(teacher.plans, abs=0.04)
        assert shares["plan for both"] == pytest.approx(teacher.plans / 3, abs=0.04)
    poor = [text for _, text in demonstrations(TEACHERS["poor"], 2000, 5)]
    usual = IDLE[0].partition("{}")[0]
    assert sum(text.startswith(usual) for text in poor) / len(poor) == pytest.approx(0.5, abs=0.04)


def test_kinds_of_rewrites() -> None:
    one = next(each for each in asked(10, 1) if each.question.family == "sum")
    data = one.question.data
    plans = [kind(text.format(data), one) for text in PLANS["sum"]]
    shared = set(SHIPPED[SEEN[0]].understands["sum"]) & set(SHIPPED[SEEN[1]].understands["sum"])
    assert plans == ["plan for both" if number in shared else "plan for one" for number in range(3)]
    assert {kind(text.format(one.prompt), one) for text in IDLE} == {"idle"}
    assert kind(one.prompt, one) == "restated"
    assert kind(PLANS["sum"][0].format(data[::-1]), one) == "other"
    assert kind(PLANS["gap"][0].format(data), one) == "other"
    assert kind("", one) == "other"


def test_pairs_are_judged_by_what_generators_answer(tmp_path: Path) -> None:
    with Answers(tmp_path) as answers:
        pairs = judged_pairs(TEACHERS["poor"], 60, 1, answers)
        assert len(pairs) > 10
        golds = [str(pair.ground_truth) for pair in pairs]
        chosen = answers.score([pair.chosen for pair in pairs], golds)
        rejected = answers.score([pair.rejected for pair in pairs], golds)
        assert all(better > worse for better, worse in zip(chosen, rejected, strict=True))
        assert answers.right(SEEN[0], ["", pairs[0].chosen], ["1", "no digit"]).tolist() == [False, False]
    turned = shuffled(pairs, 1)
    back = sum(one.chosen == other.rejected for one, other in zip(pairs, turned, strict=True))
    assert 0.2 < back / len(pairs) < 0.8
    assert [pair.prompt for pair in turned] == [pair.prompt for pair in pairs]


def line(key: str, split: str, right: dict[str, list[int]], seed: int | None = None) -> Line:
    row = {
        "strategy": key, "decoding": "greedy", "split": split, "kinds": {"idle": 3, "other": 1}, "copied": 1.0,
        "teacher": None if seed is None else "poor", "seed": seed,
        "right": {name: "".join(map(str, flags)) for name, flags in right.items()}, "training_seconds": 1.0,
    }  # fmt: skip
    return Line.read(row)


def test_the_choice_looks_at_seen_generators_alone() -> None:
    form = Form((1, 2), ("poor",), ("sft", "dpo", "ipo"), 1, 1, 1, 1, 1, 4, 4, 1)
    good, bad = [1, 1, 1, 0], [0, 0, 0, 0]
    lines = [line("naive", "test", {name: [0, 1, 0, 0] for name in (*SEEN, UNSEEN)})]
    for seed in form.seeds:
        for key, seen, unseen in (("sft", good, good), ("dpo", good, bad), ("ipo", bad, good)):
            lines.append(line(key, "validation", dict.fromkeys(SEEN, seen), seed))
            lines.append(line(key, "test", {**dict.fromkeys(SEEN, seen), UNSEEN: unseen}, seed))
    (found,) = outcome(lines, form)
    assert found.strategy == "dpo", "SFT is no candidate, and IPO is better where nobody may look"
    assert found.validation == {"dpo": 0.75, "ipo": 0.0}
    assert found.gain.value == pytest.approx(-0.25)
    assert found.over_sft[0] == pytest.approx(-0.75)
    assert not found.held
    assert accuracy(some(lines, "ipo", "greedy", "test", "poor"), [UNSEEN]).value == 0.75
    assert lines[0].share("idle") == 0.75
    paired = difference(some(lines, "ipo", "greedy", "test", "poor"), lines[:1], UNSEEN)
    assert paired.tolist() == [[1, 0, 1, 0], [1, 0, 1, 0]]


def test_resampling_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for number in range(40):
        of_questions = rng.normal(0.3, 1.0, 200)
        sample = (rng.normal(0, 0.1, (8, 1)) + of_questions + rng.normal(0, 0.3, (8, 200))) * 1.0
        low, high = resampled(sample, seed=number)
        inside += low < 0.3 < high
        assert low < sample.mean() < high
    assert inside >= 33, "95% promised; few seeds make it somewhat less"
    assert resampled(np.ones((3, 5))) == (1.0, 1.0)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    done = subprocess.run(QUICKLY, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "confirmed once" in done.stdout
    assert done.stderr == ""
    return folder / "here"


def results(folder: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]


def test_the_quick_form_measures_every_strategy(out: Path) -> None:
    lines = results(out / "poor-1")
    assert len(lines) == len(QUICK.strategies) * 3
    for one in lines:
        right = one["right"]
        assert isinstance(right, dict)
        assert set(right) == set(SEEN if one["split"] == "validation" else (*SEEN, UNSEEN))
        assert {len(flags) for flags in right.values()} == {QUICK.test if one["split"] == "test" else QUICK.validation}
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by = {(row["strategy"], row["decoding"], row["generator"]): float(row["accuracy"]) for row in rows}
    for row in rows:
        flags = [
            one["right"][row["generator"]]  # type: ignore[index]
            for folder in ("poor-1", "baselines")
            for one in results(out / folder)
            if "right" in one and one["split"] == "test"
            and (one["strategy"], one["decoding"]) == (row["strategy"], row["decoding"])
        ]  # fmt: skip
        assert float(row["accuracy"]) == pytest.approx(np.mean([int(each) for each in "".join(flags)]), abs=1e-4)
    assert by["oracle", "greedy", UNSEEN] > 0.85
    assert by["naive", "greedy", UNSEEN] < 0.4
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "too small for conclusions" in page
    assert "preftune study fipo --quick" in page


def test_preferences_bring_what_the_teacher_did_not(out: Path) -> None:
    with (out / "results.csv").open(newline="") as file:
        by = {(r["strategy"], r["decoding"], r["generator"]): float(r["accuracy"]) for r in csv.DictReader(file)}
    for name in SEEN:
        assert by["dpo", "greedy", name] > by["naive", "greedy", name] + 0.2


def test_what_is_lost_is_made_again_and_the_rest_kept(out: Path) -> None:
    path, models = out / "poor-1" / "results.jsonl", sorted((out / "poor-1" / "models").rglob("*.safetensors"))
    before, whole = path.read_text(), results(out / "poor-1")
    stamps = [model.stat().st_mtime_ns for model in models]
    path.write_text("".join(before.splitlines(keepends=True)[:-1]) + before.splitlines()[-1][:40])
    study(out, quick=True, jobs=1)
    again = results(out / "poor-1")
    assert [{**one, "training_seconds": None} for one in again] == [{**one, "training_seconds": None} for one in whole]
    assert [model.stat().st_mtime_ns for model in models] == stamps


def test_a_folder_keeps_to_one_form_and_what_is_missing_is_said(out: Path, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="another form"):
        study(out, quick=False, jobs=0)
    with pytest.raises(PreftuneError, match="not come far enough"):
        study(tmp_path / "new", quick=True, jobs=0)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(PreftuneError, match="another folder"):
        study(file, quick=True)


def test_no_question_of_training_is_held_out_in_any_wording() -> None:
    held_out = {one.question for seed in (TEST, VALIDATION, PROBED) for one in asked(500, seed, held_out=True)}
    learned = {one.question for seed in (1, 2, 30) for one in asked(3000, seed)}
    assert len(held_out) > 900
    assert not held_out & learned
    assert {one.family for one in held_out} == set(FAMILIES)

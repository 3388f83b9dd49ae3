"""What each objective may be trained on, through the ordinary door: labels, rankings, pairs for all, and refusals."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import preftune
from preftune import PreftuneError, Run
from preftune.data.records import Preference
from preftune.objectives import registry
from preftune.sandbox.preferences import pairs

QUICK: dict[str, Any] = {"train": {"max_steps": 4, "log_every": 1}, "evaluate": {"samples": 0}, "quiet": True}
TEXT = {"optim": {"learning_rate": 1e-3}}


@pytest.fixture(scope="module")
def records() -> list[Preference]:
    return pairs(60)


@pytest.fixture(scope="module")
def labels(records: list[Preference]) -> list[dict[str, Any]]:
    return [
        {"prompt": record.prompt, "completion": text, "label": good}
        for record in records
        for text, good in ((record.chosen, True), (record.rejected, False))
    ]


@pytest.fixture(scope="module")
def rankings(records: list[Preference]) -> list[dict[str, Any]]:
    return [
        {"prompt": one.prompt, "responses": [one.chosen, one.rejected, other.chosen], "scores": [3, 1, 2]}
        for one, other in zip(records, [*records[1:], records[0]], strict=True)
    ]


def trained(data: Any, objective: Any, output: Path, **settings: Any) -> Run:
    return preftune.train("sandbox", data, objective, output=output, **{**QUICK, **TEXT, **settings})


def test_kto_learns_from_labels_and_reports_good_against_bad(labels: Any, tmp_path: Path) -> None:
    run = trained(labels, "kto", tmp_path / "run")
    before, after = run.summary["before"], run.summary["after"]
    assert before["preference_accuracy"] == 0.5
    assert before["loss"] == pytest.approx(0.5, abs=1e-5)
    assert after["preference_accuracy_ci95"][0] <= after["preference_accuracy"] <= after["preference_accuracy_ci95"][1]
    assert after["margin"] != 0
    page = run.report.read_text(encoding="utf-8")
    assert "Held-out preference accuracy is" in page


def test_the_last_batch_of_kto_is_never_a_single_example(labels: Any, tmp_path: Path) -> None:
    settings = {"train": {"epochs": 1, "log_every": 1}, "batch": {"size": 8}, "config": {"data": {"held_out": 0}}}
    run = trained(labels[:33], "kto", tmp_path / "run", **settings)
    assert [line["step"] for line in run.history if line["kind"] == "train"] == [1, 2, 3, 4]
    assert run.summary["examples"] == 33


@pytest.mark.parametrize("objective", ["kto", "sft", "plackett_luce", "dpo"])
def test_pairs_serve_every_objective(objective: str, records: Any, tmp_path: Path) -> None:
    run = trained(records, objective, tmp_path / "run")
    assert run.summary["steps"] == 4
    assert "preference_accuracy" in run.summary["after"]


def test_a_mix_of_kinds_trains_on_pairs(records: Any, tmp_path: Path) -> None:
    run = trained(records, ["dpo", {"name": "kto", "weight": 0.5}, {"name": "sft", "weight": 0.1}], tmp_path / "run")
    assert run.summary["objective"] == "dpo+kto+sft"


def test_two_responses_in_order_are_a_pair(records: Any, tmp_path: Path) -> None:
    rows = [{"prompt": r.prompt, "responses": [r.rejected, r.chosen], "ranks": [2, 1]} for r in records]
    ranked = trained(rows, "plackett_luce", tmp_path / "ranked", config={"data": {"held_out": 0}})
    paired = trained(records, "dpo", tmp_path / "paired", config={"data": {"held_out": 0}})
    losses = [[line["loss"] for line in run.history if line["kind"] == "train"] for run in (ranked, paired)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rankings_report_their_order(rankings: Any, tmp_path: Path) -> None:
    settings = {"train": {"epochs": 6, "log_every": 1}, "optim": {"learning_rate": 3e-3}}
    run = trained(rankings, "plackett_luce", tmp_path / "run", **settings)
    assert run.summary["before"]["order_accuracy"] == 0.5
    lines = [line["order_accuracy"] for line in run.history if line["kind"] == "train"]
    assert lines[0] == 0.5
    assert sum(lines[-6:]) / 6 > 0.6  # on its own training data


@pytest.mark.parametrize(
    ("kind", "objective", "settings", "said"),
    [
        ("labels", "dpo", {}, "objective dpo learns from pairs .* but the data has judged responses"),
        ("labels", "plackett_luce", {}, "learns from rankings .* but the data has judged responses"),
        ("rankings", "kto", {}, "objective kto learns from judged responses .* but the data has rankings"),
        ("labels", ["kto", "sft"], {}, r"objective kto\+sft learns from pairs .* but the data has judged responses"),
        (
            "labels",
            "kto",
            {"batch": {"size": 1}},
            "kto .* at least 2 of them, but batch.size is 1: set it to 2 or more",
        ),
        (
            "pairs",
            "kto",
            {"config": {"data": {"held_out": 1}}},
            "at least 2 examples, but the held-out data has 1: give more",
        ),
        ("one label", "kto", {"config": {"data": {"held_out": 0}}}, "at least 2 examples, but the training data has 1"),
        ("one prompt", "kto", {"config": {"data": {"held_out": 0}}}, "row 0: .* give data of at least two prompts"),
        ("pairs", "tdpo", {"reference": {"kind": "stored"}}, "objective tdpo compares whole .* set it to live"),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: str, objective: Any, settings: dict[str, Any], said: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    labels = request.getfixturevalue("labels")
    data = {
        "labels": labels[:40],
        "one label": labels[:1],
        "one prompt": [{**row, "prompt": labels[0]["prompt"]} for row in labels[:6]],
        "rankings": request.getfixturevalue("rankings"),
        "pairs": request.getfixturevalue("records"),
    }[kind]
    with pytest.raises(PreftuneError, match=said) as raised:
        trained(data, objective, tmp_path / "run", **settings)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_verdict_may_be_doubtful(labels: Any, tmp_path: Path) -> None:
    doubtful = [{**row, "confidence": 0.5} for row in labels]

    def first_losses(data: Any, objective: Any, name: str) -> list[float]:
        run = trained(data, objective, tmp_path / name, config={"data": {"held_out": 0}})
        return [line["loss"] for line in run.history if line["kind"] == "train"]

    plain = first_losses(labels, "kto", "plain")
    assert first_losses(doubtful, "kto", "doubtful") != pytest.approx(plain, abs=1e-6)
    ignored = {"name": "kto", "modifiers": {"confidence": "ignore"}}
    assert first_losses(doubtful, ignored, "ignored") == pytest.approx(plain, abs=1e-6)
    smoothed = {"name": "kto", "modifiers": {"label_smoothing": 0.2}}
    softened = [{**row, "confidence": 0.8} for row in labels]
    assert first_losses(labels, smoothed, "smoothed") == pytest.approx(first_losses(softened, "kto", "soft"), abs=1e-6)


def test_votes_of_annotators_are_a_probability(records: Any, tmp_path: Path) -> None:
    """PsiPO regresses on it: with four of five votes the target is 0.6 of that of certain labels."""
    rows = [{"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected} for r in records]
    losses = []
    for column in ({"chosen_votes": 4, "rejected_votes": 1}, {"confidence": 0.8}):
        data = [{**row, **column} for row in rows]
        run = trained(data, "psi_po", tmp_path / str(len(losses)), config={"data": {"held_out": 0}})
        losses.append([line["loss"] for line in run.history if line["kind"] == "train"])
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx((0.6 / 0.2) ** 2, rel=1e-4)


def test_no_room_but_objectives_knows_an_objective_by_name() -> None:
    """Adding one touches one file. Sentences may name some: what nothing can be decided by."""
    source = Path(preftune.__file__).parent
    files = [*(p for room in ("data", "policy", "training", "evaluation") for p in (source / room).rglob("*.py"))]
    names = set(registry.names())
    for path in [*files, source / "config.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = {
                ast.Constant: lambda node: str(node.value),
                ast.Name: lambda node: node.id,
                ast.Attribute: lambda node: node.attr,
                ast.ImportFrom: lambda node: str(node.module).removeprefix("preftune.objectives."),
            }.get(type(node))
            assert said is None or said(node).lower() not in names, f"{path}: {ast.unparse(node)}"

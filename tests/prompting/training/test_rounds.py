"""Iterative preference learning: what is proposed, accepted and replaced, and what the next round learns from."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from preftune import yaml_tree
from preftune.errors import PreftuneError
from preftune.evaluation.evaluate import evaluate
from preftune.evaluation.models import find
from preftune.prompting.case_files import read_cases
from preftune.prompting.cases import Case
from preftune.prompting.generators import GeneratorSampling
from preftune.prompting.rewriter import Asked, cleaned, open_rewriter
from preftune.prompting.rounds import Rounds
from preftune.prompting.training import Trained, train_prompts
from preftune.report.prompt_rounds import write as write_page


def data(trained: Trained, number: int) -> list[Case]:
    return list(read_cases(str(trained.path / "data" / f"round-{number}.jsonl")))


def written(trained: Trained) -> set[str]:
    """Everything that the optimiser wrote."""
    lines = [json.loads(line) for line in (trained.path / "kept" / "replies.jsonl").read_text().splitlines()]
    return {reply["text"] for line in lines for reply in line["replies"]}


def test_prompts_are_replaced_by_what_was_accepted_and_labels_stay(trained) -> None:
    first, second = data(trained, 1), data(trained, 2)
    line, said = trained.rounds[0], {cleaned(text) for text in written(trained)}
    before = {(case.source, case.type): case for case in first if case.kind == "rewrite"}
    after = {(case.source, case.type): case for case in second if case.kind == "rewrite"}

    assert before.keys() == after.keys()
    moved = [key for key in before if after[key].prompt != before[key].prompt]
    assert len(moved) == line["accepted"]
    for key, case in after.items():
        old = before[key]
        assert (case.chosen, case.rejected, case.original, case.words) == (
            old.chosen,
            old.rejected,
            old.original,
            old.words,
        )
        if key in moved:
            assert any(old.completed(text) == case.prompt for text in said), "an optimiser wrote it"
            assert case.prompt.endswith(old.completed("").strip()), "options are still there"
        else:
            assert replace(case, where=old.where) == old
    answered = [key for key in moved if after[key].shows_response and after[key].response != before[key].response]
    assert all(after[key].response in said or after[key].response in "AB" for key in answered)


def test_instruction_rows_are_answered_anew_and_discrimination_rows_thin_out(trained) -> None:
    first, second = data(trained, 1), data(trained, 2)
    kinds = [Counter(case.kind for case in cases) for cases in (first, second)]
    assert kinds[0]["rewrite"] == kinds[1]["rewrite"] == 14
    assert kinds[0]["instruction"] == kinds[1]["instruction"] > 0
    assert 0 <= kinds[1]["discrimination"] < kinds[0]["discrimination"]
    asked = {case.source: case for case in first if case.kind == "instruction"}
    for case in (case for case in second if case.kind == "instruction"):
        old = asked[case.source]
        assert (case.prompt, case.chosen) == (old.prompt, old.chosen)
        assert case.rejected == old.rejected or case.rejected in {text.strip() for text in written(trained)} | {
            "A",
            "B",
        }


def test_each_round_begins_with_the_last_and_is_compared_with_the_first(trained, world) -> None:
    first, second = (yaml_tree.read(trained.path / f"round-{i}" / "config.yaml") for i in (1, 2))
    base = str(world / "base" / "model")
    assert first["model"]["path"] == base
    assert first["reference"]["path"] is None, "its own start"
    assert second["model"]["path"] == str(trained.path / "round-1" / "model")
    assert second["reference"]["path"] == base
    before = json.loads((trained.path / "round-2" / "summary.json").read_text())["before"]
    assert before["loss"] != pytest.approx(25.0), "it has left the reference already: (1 / (2 * 0.1)) ** 2"
    assert (second["seed"], first["seed"]) == (1, 0)


def test_the_reference_may_be_the_last_round(rounds) -> None:
    found = rounds(prompts={"reference": "last_round"})
    second = yaml_tree.read(found.path / "round-2" / "config.yaml")
    assert second["reference"]["path"] is None
    before = json.loads((found.path / "round-2" / "summary.json").read_text())["before"]
    assert before["loss"] == pytest.approx(25.0, rel=1e-4)


def test_the_folder_stands_for_its_last_round(trained) -> None:
    assert find(trained.path).run == trained.path / "round-2"
    with open_rewriter(str(trained.path)) as rewriter:
        assert rewriter.template.optimizer == "{prompt}{known} In {words}:"
        assert rewriter.rewrite([Asked("Draw a dog.", 10)], GeneratorSampling(max_new_tokens=24))
    evaluate(trained.path, prompts=0, device="cpu")
    assert (trained.path / "round-2" / "evaluation.json").is_file()


def test_what_came_of_each_round_is_told(trained) -> None:
    lines = [json.loads(line) for line in (trained.path / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    first, last = lines
    asked = first["proposed"] - sum(first["left_out"].values())
    assert first["accepted"] + first["flips"] + first["ties"] + first["silent"] <= asked
    assert first["acceptance"] == first["accepted"] / first["proposed"]
    assert "proposed" not in last, "no other round learns from it"
    for line in lines:
        for side, rows in (("held_out", 4), ("training", 14)):
            found = line["discriminator"][side]
            assert found["rows"] == rows
            assert found["flips"] == 0, "it scores rewrites apart"
    page = (trained.path / "report.html").read_text()
    assert "Acceptance, and who accepts" in page
    assert f"{first['accepted']} of {first['proposed']}" in page
    assert 'href="round-2/report.html"' in page
    (trained.path / "report.html").unlink()
    write_page(trained.path)
    assert (trained.path / "report.html").read_text() == page


def test_adapters_are_merged_between_rounds(rounds, world) -> None:
    found = rounds(model={"lora": {"r": 2}}, optim={"learning_rate": 1e-2})
    first, second = (yaml_tree.read(found.path / f"round-{i}" / "config.yaml") for i in (1, 2))
    assert second["model"]["path"] == str(found.path / "merged" / "round-1")
    assert second["model"]["lora"]["r"] == 2
    assert first["reference"]["path"] is None
    assert second["reference"]["path"] == str(world / "base" / "model"), "not the adapter switched off"
    before, after = (
        json.loads((found.path / f"round-{i}" / "summary.json").read_text())[when]["loss"]
        for i, when in ((2, "before"), (1, "after"))
    )
    assert before == pytest.approx(after, rel=1e-3), "what was merged is what was trained"
    assert before != pytest.approx(25.0, rel=1e-4)
    with open_rewriter(str(found.path)) as rewriter:
        assert rewriter.rewrite([Asked("Draw a dog.", 10)], GeneratorSampling(max_new_tokens=8))


def test_the_same_seed_gives_the_same_rounds(trained, rounds) -> None:
    found = [trained, rounds()]
    weights = [(each.path / "round-2" / "model" / "model.safetensors").read_bytes() for each in found]
    assert weights[0] == weights[1]
    rows = [(each.path / "data" / "round-2.jsonl").read_bytes() for each in found]
    assert rows[0] == rows[1]


def test_a_folder_that_holds_rounds_is_not_replaced(trained, settings) -> None:
    with pytest.raises(PreftuneError, match="holds rounds: name another folder, or move it away"):
        train_prompts(settings(prompts={"rounds": 1}, output={"path": str(trained.path)}), quiet=True)


def test_a_round_that_fails_before_anything_is_trained_leaves_nothing(settings, tmp_path) -> None:
    with pytest.raises(PreftuneError, match="cannot load a tokenizer from no-such-model"):
        train_prompts(settings("folder", model={"path": "no-such-model"}, prompts={"rounds": 2}), quiet=True)
    wrong = settings("folder", prompts={"rounds": 2}, data={"rendering": {"max_length": 2}})
    with pytest.raises(PreftuneError, match="no record is left"):
        train_prompts(wrong, quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_round_alone_is_a_run_on_the_same_rows(settings) -> None:
    once = train_prompts(settings("once", prompts={"extra": True}), quiet=True)
    one = train_prompts(settings("one", prompts={"rounds": 1, "measured": 0}), quiet=True)
    plain, first = (
        (path / "model" / "model.safetensors").read_bytes() for path in (once.path, Rounds(one.path).run(1))
    )
    assert plain == first
    assert one.rounds[0]["discriminator"]["held_out"] == {"rows": 0}
    assert not (one.path / "data" / "round-2.jsonl").exists()

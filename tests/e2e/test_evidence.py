"""Evaluate, score, export and chat, as a user meets them after a run."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from preftune import Run, evaluate


def test_evaluate_writes_into_the_run_and_says_what_it_found(preftune, run_folder: Path) -> None:
    before = (run_folder / "summary.json").read_bytes()
    said = preftune("evaluate", str(run_folder), "-q", "--prompts", "5", "--samples", "2", "--max-new-tokens", "12")
    assert said.code == 0, said.err
    found = json.loads((run_folder / "evaluation.json").read_text())
    logged = json.loads(before)["after"]

    assert found["pairs"]["accuracy"] == logged["preference_accuracy"]
    assert found["pairs"]["margin"] == pytest.approx(logged["margin"], abs=1e-5)
    assert found["data"]["pairs"] == 24
    assert found["rewards"] == {"objective": "dpo", "beta": 0.1}
    assert found["command"].startswith("preftune evaluate")
    assert {"calibration", "by_length", "baselines", "generation"} <= found.keys()
    assert found["generation"]["prompts"] == 5
    assert found["generation"]["kl"]["per_response"] > 0
    lines = [json.loads(line) for line in (run_folder / "generations.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert {"prompt", "policy", "against", "policy_tokens", "against_tokens", "policy_ended", "against_ended"} <= set(
        lines[0]
    )
    assert all(line["policy_tokens"] <= 12 for line in lines)
    for shown in ("preference accuracy", "baseline: the longer one", "calibration error", "KL to the reference"):
        assert shown in said.out
    assert (run_folder / "summary.json").read_bytes() == before

    again = preftune("evaluate", str(run_folder), "-q", "--prompts", "5", "--samples", "2", "--max-new-tokens", "12")
    assert again.code == 0
    assert [json.loads(line) for line in (run_folder / "generations.jsonl").read_text().splitlines()] == lines


def test_score_to_lines_and_to_parquet(preftune, run_folder: Path, tmp_path: Path) -> None:
    assert preftune("score", str(run_folder), "-q", "--tokens").code == 0
    assert preftune("score", str(run_folder), "-q", "-o", "s.parquet").code == 0
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert len(lines) == len(table) == 24
    for line, row in zip(lines, table, strict=True):
        for side in ("chosen", "rejected"):
            tokens, theirs = line.pop(f"{side}_token_logps"), line.pop(f"{side}_token_reference_logps")
            assert len(tokens) == len(theirs) == line[f"{side}_tokens"]
            assert math.fsum(tokens) == pytest.approx(line[f"{side}_logp"], abs=1e-4)
            assert math.fsum(theirs) == pytest.approx(line[f"{side}_reference_logp"], abs=1e-4)
        assert line == row
        assert line["margin"] == pytest.approx(line["chosen_reward"] - line["rejected_reward"], abs=1e-6)
    logged = json.loads((run_folder / "summary.json").read_text())["after"]
    assert sum(line["margin"] for line in lines) / 24 == pytest.approx(logged["margin"], abs=1e-4)


def test_a_model_on_data_against_another(preftune, run_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    model = str(run_folder / "model")
    words = ["--data", str(pairs_file), "--against", "sandbox", "-q", "--prompts", "2", "--max-new-tokens", "4"]
    said = preftune("evaluate", model, *words)
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert (found["model"], found["against"], found["data"]["pairs"]) == (model, "sandbox", 96)


def test_as_a_library(run_folder: Path, tmp_path: Path) -> None:
    done = evaluate(run_folder, prompts=0, out=tmp_path / "out", quiet=True)
    assert "generation" not in done.figures
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluation.json"]
    assert done.opened.term is not None


def test_export_then_chat(preftune, lora_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = preftune("export", str(lora_run.path), "merged", "--merge")
    assert said.code == 0, said.err
    assert said.out == "wrote merged: the adapter merged into sandbox\n"
    answers = []
    for subject in (str(lora_run.path), "merged"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("A heist film set in Norway.\n/quit\n"))
        said = preftune("chat", subject, "--temperature", "0", "--max-new-tokens", "12")
        assert said.code == 0, said.err
        answers.append(said.out)
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) == 1


def test_the_best_of_several_answers_from_the_command_line(preftune, run_folder: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(run_folder), "-q", "-o", str(tmp_path / "e"), "--prompts", "3", "--max-new-tokens", "12"]
    said = preftune(*words, "--against-best-of", "4", "--best-by", "sandbox")
    assert said.code == 0, said.err
    assert "against: best of 4 by sandbox, whose mean score rises from " in said.out
    assert "at a KL of at most 0.636 nats per response to the model sampled" in said.out  # log 4 - 3 / 4
    for option, missing in ((["--best-of", "4"], "with --best-by"), (["--best-by", "sandbox"], "add --best-of or")):
        refused = preftune(*words, *option)
        assert refused.code == 2
        assert missing in refused.err

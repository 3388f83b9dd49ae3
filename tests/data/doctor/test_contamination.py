"""Rows that hold prompts of the evaluation data, and those that only share a template with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preftune.data.doctor.checkup import Chart, overlap
from preftune.data.doctor.contamination import prompts_of
from preftune.data.lines import Lines, Reading
from preftune.errors import PreftuneError

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("al", "en", "ir", "ot", "un", "ask", "est", "ost")]


def text(random: np.random.Generator, count: int = 30) -> str:
    return " ".join(WORDS[i] for i in random.integers(len(WORDS), size=count))


def found(training: list[dict[str, Any]], evaluation: list[dict[str, Any]]) -> Any:
    chart = Chart(Lines(training, Reading()))
    mask = np.ones(len(training), dtype=np.bool_)
    prompts = ((one.where, one.prompt) for one in Lines(evaluation, Reading()).records())
    return overlap(chart, mask, prompts, "the evaluation set")


def row(prompt: str, chosen: str = " yes it is", rejected: str = " no") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.fixture
def prompts() -> list[str]:
    random = np.random.default_rng(0)
    return [text(random) for _ in range(40)]


def test_prompts_are_found_whole_in_part_and_within_responses(prompts: list[str]) -> None:
    words = prompts[2].split()
    training = [
        row(prompts[30]),
        row(prompts[0].upper() + "!"),  # word for word
        row(f"Please answer: {prompts[1]} And be brief."),
        row(" ".join(words[:20])),  # 13 of 23 runs
        row(" ".join(words[:14])),  # 7 of 23
        row(prompts[31], chosen=f" {prompts[3]}"),
    ]
    finding = found(training, [row(prompt) for prompt in prompts[:4]])
    assert [(where.row, other.row) for where, other, _ in finding.places] == [(1, 0), (2, 1), (3, 2), (5, 3)]
    assert [share for _, _, share in finding.places] == ["100%", "100%", "57%", "100%"]
    assert finding.text == "4 rows hold 4 of the 4 prompts of the evaluation set"
    assert finding.drop.tolist() == [1, 2, 3, 5]


def test_a_shared_template_is_no_contamination(prompts: list[str]) -> None:
    template = "Answer the following question about the text below in a single sentence without any comment: {}"
    evaluation = [row(template.format(" ".join(prompt.split()[:5]))) for prompt in prompts[:20]]
    training = [row(template.format(" ".join(prompt.split()[:5]))) for prompt in prompts[20:]]
    assert found(training, evaluation) is None
    assert found([*training, evaluation[7]], evaluation).drop.tolist() == [20]


def test_short_prompts_are_found_as_a_whole_alone() -> None:
    evaluation = [row("What is rain?"), row("Name a colour.")]
    assert found([row("What is rain? Name three kinds.")], evaluation) is None
    assert found([row("what is RAIN")], evaluation).drop.tolist() == [0]


def test_texts_without_words_match_nothing() -> None:
    assert found([row("?!"), row("...")], [row("?!")]) is None


def test_a_system_prompt_says_nothing(prompts: list[str]) -> None:
    def chat(prompt: str, system: str) -> dict[str, Any]:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        return {"prompt": turns, "chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no"}

    training = [chat(prompts[0], prompts[5]), chat(prompts[1], prompts[6])]
    assert found(training, [chat(prompts[2], prompts[5])]) is None
    assert found(training, [row(prompts[1])]).drop.tolist() == [1]


@pytest.mark.parametrize("column", ["prompt", "question", "instruction", "problem", "input", "text"])
def test_evaluation_sets_need_no_answers(column: str, tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({column: "What is rain?", "choices": [1, 2]}))
    assert [(where.row, prompt) for where, prompt in prompts_of(str(path))] == [(0, "What is rain?")]
    path.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}))
    assert [prompt for _, prompt in prompts_of(str(path))] == ["q"]


@pytest.mark.parametrize("row", [{"answer": "It is"}, {"question": None}, {"question": 3}])
def test_evaluation_rows_without_a_prompt_are_named(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(PreftuneError, match=r"eval\.jsonl row 0: (prompt or )?question"):
        [*prompts_of(str(path))]

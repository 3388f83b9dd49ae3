"""Rows that hold prompts of the evaluation data, and those that only share a template with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preftune.data.doctor.checkup import Chart, overlap
from preftune.data.lines import Lines, Reading

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("al", "en", "ir", "ot", "un", "ask", "est", "ost")]


def text(random: np.random.Generator, count: int = 30) -> str:
    return " ".join(WORDS[i] for i in random.integers(len(WORDS), size=count))


def found(training: list[dict[str, Any]], evaluation: list[dict[str, Any]]) -> Any:
    chart = Chart(Lines(training, Reading()))
    mask = np.ones(len(training), dtype=np.bool_)
    return overlap(chart, mask, Lines(evaluation, Reading()).records(), "the evaluation set")


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

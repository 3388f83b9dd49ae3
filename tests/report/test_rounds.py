"""The section of runs that learn from their own answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import preftune
from preftune.report import rounds
from preftune.report.html import render
from preftune.report.reading import read
from preftune.report.verdict import verdict

CONFIG = "model: {path: tiny}\ndata: {path: prompts.jsonl}\nobjective: {name: ppo}\nonline: {judge: 'mine:score'}\n"
HISTORY: list[dict[str, Any]] = [
    {"kind": "eval", "step": 0, "reward": 0.1, "reward_ci95": [-0.1, 0.3], "kl": 0.0},
    *(
        {
            "kind": "round",
            "round": at,
            "step": 2 * at,
            "reward": 0.1 * at,
            "kl": 0.5 * at,
            "entropy": 2.0 - 0.1 * at,
            "response_tokens": 12.0,
            "ended": 1.0,
            "empty": 0.0,
            "value": 0.1,
            "return": 0.2,
            "value_explained": 0.3,
            "kl_coefficient": 0.05,
            "tokens_sampled": 100 * (at + 1),
            "seconds": 0.5,
        }
        for at in range(4)
    ),
    {"kind": "train", "step": 4, "loss": 0.1, "seconds": 10.0},
    {"kind": "train", "step": 8, "loss": 0.1, "seconds": 2.0},
    {"kind": "eval", "step": 8, "reward": 0.9, "reward_ci95": [0.7, 1.1], "kl": 1.6},
]
SUMMARY = {
    "objective": "ppo",
    "steps": 8,
    "seconds": 12.0,
    "before": {"reward": 0.1, "reward_ci95": [-0.1, 0.3], "kl": 0.0},
    "after": {"reward": 0.9, "reward_ci95": [0.7, 1.1], "kl": 1.6},
}


def panels() -> dict[str, Any]:
    return {panel.key: panel for panel in rounds.panels(HISTORY)}


def test_every_curve_is_drawn_where_it_was_measured() -> None:
    assert list(panels()) == [
        *("rounds-reward", "rounds-path", "rounds-kl", "rounds-answers", "rounds-tokens", "rounds-seconds"),
        "rounds-values",
    ]
    plain = [
        {key: row[key] for key in ("kind", "round", "step", "reward")} for row in HISTORY if row["kind"] == "round"
    ]
    assert [panel.key for panel in rounds.panels(plain)] == ["rounds-reward"]
    assert rounds.panels([row for row in HISTORY if row["kind"] != "round"]) == []


def test_the_axes_are_what_they_say() -> None:
    found = panels()
    rewards = [0.0, 0.1, 0.2, 0.3]
    for key, x in (
        ("rounds-path", [0.0, 0.5, 1.0, 1.5]),
        ("rounds-tokens", [100, 200, 300, 400]),
        ("rounds-seconds", [0.0, 5.0, 10.0, 11.0]),  # 10 s for the first four steps, 2 s for the next four
    ):
        (trace,) = found[key].cells[0].traces
        assert list(trace.x) == x
        assert list(trace.y) == pytest.approx(rewards)
    sampled = next(trace for trace in found["rounds-reward"].cells[0].traces if trace.name == "sampled")
    assert list(sampled.x) == [0, 2, 4, 6]
    assert [len(cell.traces) for cell in found["rounds-values"].cells] == [2, 1]


def test_answers_of_the_first_round_and_the_last_are_shown_the_best_first() -> None:
    rows = [
        {"round": at, "prompt": f"prompt {at}", "responses": ["low", "high", "none"], "scores": [0.5, 2.0, None]}
        for at in (0, 1, 7)
    ]
    first, last = rounds.rounds(rows)
    assert (first.title, last.title) == ("First round (0)", "Last round (7)")
    assert last.prompts[0].answers == [("score 2.00", "high"), ("score 0.500", "low"), ("no score", "none")]
    assert rounds.rounds([]) == []
    assert len(rounds.rounds(rows[:1])) == 1
    odd = rounds.rounds([{"round": 0, "prompt": None, "responses": "x", "scores": [1]}, {"prompt": "no round"}])
    assert odd[0].prompts[0].answers == []
    many = rounds.rounds([{"round": 0, "prompt": "p", "responses": ["a"] * 20, "scores": [1] * 20}])
    assert many[0].prompts[0].left_out == 12


def test_the_page_shows_rounds_and_says_whether_the_score_rose(write_run: Callable[..., Path]) -> None:
    folder = write_run(config=CONFIG, metrics=HISTORY, samples=None, summary=SUMMARY)
    answers = {"round": 0, "prompt": "<b>p</b>", "responses": ["<script>alert(1)</script>"], "scores": [1.0]}
    (folder / "rollouts.jsonl").write_text(json.dumps(answers) + "\n")
    page = render(read(folder))
    assert "which mine:score scored" in page
    assert 'id="figure-rounds-seconds"' in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert(1)" not in page
    said = verdict(read(folder))
    assert said.headline == "The score of its answers went from 0.100 to 0.900."
    better = dict(said.paragraph)["Did it get better?"]
    assert "by the judge it learned from, went from 0.100 (95% interval" in better
    assert "Nothing was measured" not in better


def test_a_run_on_data_has_no_rounds(write_run: Callable[..., Path]) -> None:
    assert 'id="rounds"' not in render(read(write_run()))


def test_a_real_online_run_has_the_section(tmp_path: Path) -> None:
    run = preftune.train(
        "sandbox",
        "sandbox",
        {"name": "rloo", "beta": 0.1},
        output=tmp_path / "run",
        quiet=True,
        config={"data": {"limit": 40, "held_out": 0.3}, "batch": {"size": 4}},
        online={"judge": "sandbox", "rounds": 3, "prompts": 4, "samples": 2, "max_new_tokens": 12, "held_out": 4},
        evaluate={"samples": 0},
        doctor={"answers": 0},
    )
    page = run.report.read_text()
    assert "which sandbox scored" in page
    assert "First round (0)" in page
    assert "Last round (2)" in page
    assert 'id="figure-rounds-path"' in page

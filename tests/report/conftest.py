"""Run folders written by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from preftune.report.browser import FLAGS, find

sys.path.insert(0, str(Path(__file__).parent))  # evidence.py and visits.py, beside this file

WriteRun = Callable[..., Path]

TRAIN = [
    {
        "kind": "train",
        "step": step,
        "epoch": step / 30,
        "loss": loss,
        "preference_accuracy": accuracy,
        "policy_accuracy": accuracy - 0.02,
        "chosen_reward": margin / 2,
        "rejected_reward": -margin / 2,
        "delta": 10 * margin,
        "delta_sd": 1.0,
        "margin": margin,
        "margin_sd": 0.1,
        "margin_q10": margin - 0.2,
        "margin_q50": margin,
        "margin_q90": margin + 0.2,
        "chosen_logp_per_token": -1.5,
        "rejected_logp_per_token": -1.75,
        "chosen_length": 14.0,
        "rejected_length": 15.0,
        "gradient_norm": 0.5,
        "learning_rate": 1e-4,
        "tokens_per_second": 20000.0,
        "pairs_per_second": 400.0,
        "padding_share": 0.0,
        "seconds": step / 10,
    }
    for step, loss, accuracy, margin in [(10, 0.66, 0.6, 0.2), (20, 0.62, 0.7, 0.4), (30, 0.6, 0.72, 0.5)]
]


def evaluation(step: int, accuracy: float, interval: list[float], margin: float) -> dict[str, Any]:
    """A line of metrics.jsonl, with one histogram bin per reward sign."""
    histogram = {"edges": [-1.0, 0.0, 1.0], "counts": [25, 75]}
    return {
        "kind": "eval",
        "step": step,
        "loss": 0.693 - margin / 5,
        "preference_accuracy": accuracy,
        "preference_accuracy_ci95": interval,
        "policy_accuracy": 0.5,
        "chosen_reward": margin / 2,
        "rejected_reward": -margin / 2,
        "margin": margin,
        "margin_q10": margin - 0.3,
        "margin_q90": margin + 0.3,
        "chosen_logp_per_token_change": 0.01 * step,
        "rejected_logp_per_token_change": -0.01 * step,
        "chosen_reward_histogram": histogram,
        "rejected_reward_histogram": {"edges": [-1.0, 0.0, 1.0], "counts": [60, 40]},
    }


EVALUATIONS = [evaluation(0, 0.5, [0.5, 0.5], 0.0), evaluation(30, 0.75, [0.7, 0.8], 0.6)]
SUMMARY = {
    "objective": "dpo",
    "steps": 30,
    "seconds": 9.12,
    "pairs_per_second": 400.0,
    "before": {"preference_accuracy": 0.5, "preference_accuracy_ci95": [0.5, 0.5], "margin": 0.0, "true_reward": -0.03},
    "after": {
        "preference_accuracy": 0.75,
        "preference_accuracy_ci95": [0.7, 0.8],
        "margin": 0.6,
        "true_reward": 1.13,
        "true_reward_ci95": [1.09, 1.17],
        "kl": 1.35,
    },
    "difference": {"true_reward": 1.16, "true_reward_ci95": [1.1, 1.22]},
    "messages": ["padded path taken because the model is a Bloom"],
}
SAMPLES = [
    {"when": "start", "step": 0, "prompt": "a film", "response": "it was dull", "true_reward": -0.5, "logp": -12.25},
    {"when": "start", "step": 0, "prompt": "a play", "response": "it was long"},
    {"when": "end", "step": 30, "prompt": "a film", "response": " it was lovely", "true_reward": 1.5, "ended": False},
    {"when": "end", "step": 30, "prompt": "a play", "response": ""},
]
MANIFEST = {
    "preftune": "0.1.0",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "seed": 0,
    "command": "preftune train --model tiny --data pairs.jsonl",
    "started": "2026-01-02T03:04:05+00:00",
    "device": "cpu",
    "processes": 1,
}
CONFIG = "model:\n  path: tiny\ndata:\n  path: pairs.jsonl\nobjective:\n  name: dpo\n  beta: 0.1\n"


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes a run folder; a file given as None is left out, metrics and samples may also be given as bytes."""

    def write(
        name: str = "run",
        *,
        config: str | None = CONFIG,
        manifest: dict[str, Any] | None = MANIFEST,
        metrics: Iterable[dict[str, Any]] | bytes | None = (*TRAIN, *EVALUATIONS),
        samples: Iterable[dict[str, Any]] | bytes | None = SAMPLES,
        summary: dict[str, Any] | None = SUMMARY,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if config is not None:
            (folder / "config.yaml").write_text(config, encoding="utf-8")
        for file, content in (("manifest.json", manifest), ("summary.json", summary)):
            if content is not None:
                (folder / file).write_text(json.dumps(content), encoding="utf-8")
        for file, lines in (("metrics.jsonl", metrics), ("samples.jsonl", samples)):
            if lines is not None:
                whole = lines if isinstance(lines, bytes) else "".join(json.dumps(row) + "\n" for row in lines).encode()
                (folder / file).write_bytes(whole)
        return folder

    return write


@pytest.fixture
def history() -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a whole run."""
    return [*TRAIN, *EVALUATIONS]


@pytest.fixture
def sft_run(write_run: WriteRun) -> Path:
    """A run on demonstrations: no pairs, so no accuracy, rewards or margin; some are null, others absent."""
    metrics = [
        {"kind": "eval", "step": 0, "loss": 4.0, "preference_accuracy": None, "margin": None},
        {"kind": "train", "step": 10, "loss": 3.0, "margin": None, "gradient_norm": 1.0, "learning_rate": 1e-3},
        {"kind": "eval", "step": 20, "loss": 2.0, "preference_accuracy": None, "margin": None},
    ]
    summary = {
        "objective": "sft",
        "steps": 20,
        "seconds": 200.0,
        "before": {"preference_accuracy": None, "loss": 4.0},
        "after": {"loss": 2.0},
    }
    return write_run("sft", metrics=metrics, samples=[], summary=summary)


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser of the Chromium family, or the reason why there is none."""
    found = find()
    if found is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """The same without a window, driven by Playwright."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Any]]:
    """Opens a page: `visit(path_or_address, color_scheme="dark", ...)` gives a `visits.Visit`."""
    from visits import Visit

    opened: list[Visit] = []

    def go(address: str | Path, **options: Any) -> Visit:
        opened.append(Visit(browser, address.as_uri() if isinstance(address, Path) else address, **options))
        return opened[-1]

    yield go
    for one in opened:
        one.page.close()

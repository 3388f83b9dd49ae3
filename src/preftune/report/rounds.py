"""A run that learns from its own answers, round by round: what they scored, what that cost, and a few of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from preftune.report.curves import History, band, line, points, rows_of
from preftune.report.drawing import CHOSEN, HELD_OUT, OWN, REJECTED, TRAINING, Cell, Panel, short
from preftune.report.samples import plain_text
from preftune.report.thinning import extremes
from preftune.report.values import number, show

SAMPLED = "sampled"
PROMPTS, ANSWERS = 4, 8  # shown of a round, and of a prompt
LONGEST = 4000  # characters of an answer on a page


@dataclass(frozen=True)
class Answered:
    """A prompt of a round, and what was answered.

    Attributes:
        prompt: as text.
        answers: each with its score, the highest first.
        left_out: further ones.
    """

    prompt: str
    answers: Sequence[tuple[str, str]]
    left_out: int


@dataclass(frozen=True)
class Shown:
    """A round with some of its answers.

    Attributes:
        key: fit for an HTML id.
        title: of its tab.
        prompts: in the order of the file.
    """

    key: str
    title: str
    prompts: Sequence[Answered]


def panels(history: History) -> list[Panel]:
    """The curves of an online run, in reading order; none for another run."""
    if not rows_of(history, "round"):
        return []
    found = [
        _rewards(history),
        _path(history),
        _distance(history),
        _answers(history),
        *_costs(history),
        _values(history),
    ]
    return [panel for panel in found if panel is not None]


def rounds(rollouts: Sequence[dict[str, Any]]) -> list[Shown]:
    """The first round and the last one of which answers were kept."""
    by_round: dict[int, list[dict[str, Any]]] = {}
    for row in rollouts:
        if (at := number(row.get("round"))) is not None:
            by_round.setdefault(int(at), []).append(row)
    if not by_round:
        return []
    first, last = min(by_round), max(by_round)
    titles = {first: f"First round ({first})"} | ({last: f"Last round ({last})"} if last != first else {})
    return [
        Shown(f"round-{at}", title, [_answered(row) for row in by_round[at][:PROMPTS]]) for at, title in titles.items()
    ]


def _answered(row: dict[str, Any]) -> Answered:
    responses, scores = row.get("responses"), row.get("scores")
    texts = responses if isinstance(responses, list) else []
    marks = scores if isinstance(scores, list) and len(scores) == len(texts) else [None] * len(texts)
    both = sorted(
        ((number(mark), plain_text(text)[:LONGEST]) for mark, text in zip(marks, texts, strict=True)),
        key=lambda each: -float("inf") if each[0] is None else each[0],
        reverse=True,
    )
    shown = [("no score" if mark is None else f"score {show(mark)}", text) for mark, text in both[:ANSWERS]]
    return Answered(plain_text(row.get("prompt")), shown, len(both) - len(shown))


def _rewards(history: History) -> Panel | None:
    """Score of answers over steps, those that it learns from and those to held-out prompts."""
    traces = [
        *band(history, "eval", "reward_ci95", "95% interval", HELD_OUT),
        *line(history, "round", "reward", SAMPLED, TRAINING),
        *line(history, "eval", "reward", "held-out", HELD_OUT),
    ]
    return _panel(
        "reward",
        "Score of its answers",
        "What the judge gives the answers that each round learns from, and those to held-out prompts. The score of a "
        "learned judge may rise while answers get worse: have another judge look (preftune evaluate --judge).",
        Cell("score", traces),
    )


def _path(history: History) -> Panel | None:
    """Score against KL, round after round."""
    values = [
        (kl, reward)
        for _, row in rows_of(history, "round")
        if (kl := number(row.get("kl"))) is not None and (reward := number(row.get("reward"))) is not None
    ]
    if len(values) < 2:
        return None
    kept = extremes([reward for _, reward in values])
    trace = go.Scatter(
        x=[short(max(0.0, values[i][0])) for i in kept],
        y=[short(values[i][1]) for i in kept],
        name="rounds",
        mode="lines+markers",
        line={"color": OWN, "width": 1.2},
        marker={"size": 5},
        hovertemplate="KL %{x:.3g}, %{y:.4g}",
    )
    return Panel(
        "rounds-path",
        "Score against KL",
        "Each dot is a round, joined in order: what was gained for how much distance from the reference. Where the "
        "line goes right and no longer up, KL is spent for nothing.",
        (Cell("score", [trace]),),
        x_title="KL to the reference, nats per response",
        x_range="tozero",
    )


def _distance(history: History) -> Panel | None:
    """KL over steps, and the coefficient that holds it."""
    distance = [
        *line(history, "round", "kl", SAMPLED, TRAINING),
        *line(history, "eval", "kl", "held-out", HELD_OUT),
    ]
    held = line(history, "round", "kl_coefficient", "coefficient", OWN)
    return _panel(
        "kl",
        "Distance from the reference",
        "Log-probability of an answer under the policy less that under the reference, mean over answers"
        + ("; below it the coefficient with which it is held against the score." if held else "."),
        Cell("KL, nats per response", distance, y_range="tozero"),
        Cell("coefficient", held, y_format="~g", y_range="tozero"),
    )


def _answers(history: History) -> Panel | None:
    """Entropy, length and ends of the answers of each round."""
    shares = [
        *line(history, "round", "ended", "ended by themselves", CHOSEN),
        *line(history, "round", "empty", "without a word", REJECTED),
    ]
    return _panel(
        "answers",
        "What it samples",
        "Entropy per token: where it falls towards 0, all answers become alike, and there is nothing left to learn "
        "from. Length, and the share of answers that came to an end: a judge that likes long answers shows here.",
        Cell("nats per token", line(history, "round", "entropy", "entropy", OWN), y_range="tozero"),
        Cell("tokens", line(history, "round", "response_tokens", "length", HELD_OUT), y_range="tozero"),
        Cell("share", shares, y_format=".0%", y_range="tozero"),
    )


def _costs(history: History) -> list[Panel]:
    """Score against what it took: tokens that were sampled, and seconds."""
    found = []
    seconds = _seconds(history)
    for key, title, x_title, place in (
        (
            "tokens",
            "Score against tokens sampled",
            "tokens sampled",
            lambda step, row: number(row.get("tokens_sampled")),
        ),
        ("seconds", "Score against time", "seconds of sampling, scoring and training", lambda step, row: seconds(step)),
    ):
        values = [
            (at, reward)
            for step, row in rows_of(history, "round")
            if (at := place(step, row)) is not None and (reward := number(row.get("reward"))) is not None
        ]
        if len(values) < 2:
            continue
        kept = extremes([reward for _, reward in values])
        trace = go.Scatter(
            x=[short(values[i][0]) for i in kept],
            y=[short(values[i][1]) for i in kept],
            name=SAMPLED,
            mode="lines",
            line={"color": TRAINING, "width": 1.3},
            hovertemplate="%{y:.4g}",
        )
        caption = "What a round's answers score, against what the run has cost by then."
        found.append(
            Panel(f"rounds-{key}", title, caption, (Cell("score", [trace]),), x_title=x_title, x_range="tozero")
        )
    return found


def _values(history: History) -> Panel | None:
    """What a value network expects, and how much of the returns it explains."""
    levels = [
        *line(history, "round", "value", "expected", HELD_OUT),
        *line(history, "round", "return", "came out", TRAINING),
    ]
    explained = line(history, "round", "value_explained", "explained", OWN)
    return _panel(
        "values",
        "Value network",
        "Mean of the values that it expected and of the returns that came out, and the share of the returns' variance "
        "that it explains: near 0 it is of no use to the policy, below 0 it does harm.",
        Cell("return", levels),
        Cell("variance explained", explained, level=0.0),
    )


def _seconds(history: History) -> Any:
    """Gives the seconds that the run had taken at a step, in between the lines that say so; None beyond them."""
    steps, each = points(history, "train", "seconds")
    known, total = [(0.0, 0.0)], 0.0
    for step, more in zip(steps, each, strict=True):
        total += more
        known.append((step, total))

    def at(step: float) -> float | None:
        for (low, before), (high, after) in pairwise(known):
            if low <= step <= high and high > low:
                return before + (after - before) * (step - low) / (high - low)
        return None

    return at


def _panel(key: str, title: str, caption: str, *cells: Cell) -> Panel | None:
    full = tuple(cell for cell in cells if cell.traces)
    return Panel(f"rounds-{key}", title, caption, full) if full else None

"""The lines of metrics.jsonl as curves: steps against one metric, thinned honestly where there are too many to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import plotly.graph_objects as go

from preftune.report.drawing import HELD_OUT, TRAINING, short, transparent
from preftune.report.thinning import extremes
from preftune.report.values import Interval, interval, number

History = Sequence[dict[str, Any]]
Kind = Literal["train", "eval", "round"]


KINDS: tuple[Kind, ...] = ("train", "eval", "round")


def rows_of(history: History, kind: Kind) -> list[tuple[float, dict[str, Any]]]:
    """The lines of one kind with their step, in its order; of lines with one step the last one counts, as a resumed
    run may have written a step again."""
    by_step = {
        step: row for row in history if row.get("kind") == kind and (step := number(row.get("step"))) is not None
    }
    return sorted(by_step.items(), key=lambda item: item[0])


def most_points(history: History) -> int:
    """Lines of that kind of which there are most."""
    return max(len(rows_of(history, kind)) for kind in KINDS)


def points(history: History, kind: Kind, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, wherever it has a value."""
    pairs = [(step, value) for step, row in rows_of(history, kind) if (value := number(row.get(key))) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def training_and_held_out(history: History, key: str) -> list[go.Scatter]:
    """One metric in training and on held-out data."""
    return [
        *line(history, "train", key, "training", TRAINING),
        *line(history, "eval", key, "held-out", HELD_OUT),
    ]


def line(history: History, kind: Kind, key: str, name: str, colour: str) -> list[go.Scatter]:
    """One metric as a thin line (training) or a thick one with markers (held-out); nothing if it has no values."""
    steps, values = points(history, kind, key)
    if not steps:
        return []
    held_out, drawn = kind == "eval", extremes(values)
    few = len(drawn) <= 60
    return [
        go.Scatter(
            x=[steps[i] for i in drawn],
            y=[short(values[i]) for i in drawn],
            name=name,
            mode="lines+markers" if (held_out and few) or len(steps) == 1 else "lines",
            line={"color": colour, "width": 2.4 if held_out else 1.3},
            marker={"size": 7 if held_out else 5},
            opacity=1.0 if held_out else 0.75,
            hovertemplate="%{y:.4g}",
        )
    ]


def band(
    history: History, kind: Kind, keys: str | tuple[str, str], name: str, colour: str | None = None
) -> list[go.Scatter]:
    """A filled band between two metrics, or between the ends of one interval metric; nothing if it has no values."""
    found: list[tuple[float, Interval]] = []
    for step, row in rows_of(history, kind):
        ends = interval(row.get(keys) if isinstance(keys, str) else [row.get(key) for key in keys])
        if ends is not None:
            found.append((step, ends))
    if not found:
        return []
    drawn = [found[i] for i in extremes([low for _, (low, _) in found], [high for _, (_, high) in found])]
    steps = [step for step, _ in drawn]
    lows, highs = [short(low) for _, (low, _) in drawn], [short(high) for _, (_, high) in drawn]
    return [
        go.Scatter(
            x=steps + steps[::-1],
            y=highs + lows[::-1],
            name=name,
            mode="lines",
            fill="toself",
            fillcolor=transparent(colour or (HELD_OUT if kind == "eval" else TRAINING), 0.2),
            line={"width": 0},
            hoverinfo="skip",
        )
    ]

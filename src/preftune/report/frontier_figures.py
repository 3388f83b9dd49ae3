"""The figures of the study of the frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from preftune.report.comparison import COLOURS
from preftune.report.drawing import TEXT, Cell, short
from preftune.report.study import Grid

if TYPE_CHECKING:
    from preftune.studies.frontier.study import Found
    from preftune.studies.frontier.tables import Point

FAMILIES = (
    (
        "offline",
        "Trained on the pairs",
        ("dpo", "ipo", "kto", "simpo", "orpo", "sft", "unlikelihood"),
    ),
    ("robust", "Kin of DPO that allow for wrong labels", ("dpo", "cdpo", "rdpo", "robust_dpo", "kl_dpo", "dr_dpo")),
    (
        "online",
        "Samples, and a reward",
        ("dpo", "best_of_n", "best_of_n_true", "online_dpo", "ppo_true", "ppo", "rloo"),
    ),
)
_HEIGHT = 280  # of a cell, in pixels


def figures(found: Found) -> list[Grid]:
    """What is drawn of an axis: reward against KL, and what else its question is about."""
    makers: dict[str, Callable[[Found], list[Grid]]] = {
        "methods": _of_methods,
        "sizes": lambda found: [*_by_condition(found), *_gap(found)],
        "sources": lambda found: [*_by_condition(found), *_again(found)],
    }
    return makers.get(found.axis.key, _by_condition)(found)


def _of_methods(found: Found) -> list[Grid]:
    drawn = []
    for key, title, methods in FAMILIES:
        shown = [point for point in found.points if point.method.key in methods]
        if shown:
            drawn.append(
                _grid(
                    f"frontier-{key}",
                    title,
                    "Mean true reward against KL from the reference, on test prompts: a point for each strength, with "
                    "the 95% interval over seeds, and the best that any policy can do above them.",
                    [("", [_optimum(found, shown), *_curves(shown, methods)])],
                    "mean true reward",
                )
            )
    return [*drawn, *_overoptimised(found)]


def _by_condition(found: Found) -> list[Grid]:
    """Reward against KL, in a column for each condition; three to a figure."""
    names = list(dict.fromkeys(point.condition for point in found.points))
    if not names:
        return []
    parts = [names[i : i + 3] for i in range(0, len(names), 3)]
    return [
        _grid(
            "frontier" if len(parts) == 1 else f"frontier-{number}",
            "Reward against KL" if len(parts) == 1 else f"Reward against KL ({number} of {len(parts)})",
            "Points are strengths, with 95% intervals over seeds; above them the best that any policy can do.",
            [
                (
                    name,
                    [_optimum(found, found.points), *_curves(_under(found.points, name), found.axis.methods)],
                )
                for name in part
            ],
            "mean true reward",
        )
        for number, part in enumerate(parts, 1)
    ]


def _overoptimised(found: Found) -> list[Grid]:
    """What the reward model says, and what is true, of methods that follow it."""
    shown = [point for point in found.points if "proxy" in point.figures]
    methods = list(dict.fromkeys(point.method.key for point in shown))
    if not shown:
        return []
    proxy = _curves(shown, methods, "proxy")
    gains = _curves(shown, methods, "reward", found.curve[0][1])
    figure = _grid(
        "over-optimisation",
        "What the reward model says, and what is true",
        "Gain over the reference against KL, of methods that follow a learned reward: left as the reward model has it "
        "(log-odds of a label: three to a unit of true reward), right in truth. Where the left goes on rising and the "
        "right falls, the reward model is being exploited.",
        [("reward model", proxy), ("truth", gains)],
        "gain over the reference",
    )
    return [figure]


def _gap(found: Found) -> list[Grid]:
    """Accuracy on training and held-out pairs over the number of pairs, of each method."""
    columns = []
    for key in found.axis.methods:
        shown = [p for p in found.points if p.method.key == key and found.chosen.get(key) == p.strength]
        sizes = {each.name: each.preferences.pairs for each in found.axis.conditions(found.form)}
        shown = [point for point in shown if "train_accuracy" in point.figures]
        if not shown:
            continue
        traces = []
        for (name, figure), colour in zip(
            (("training pairs", "train_accuracy"), ("held-out pairs", "held_out_accuracy")), COLOURS, strict=False
        ):
            known = [point for point in shown if figure in point.figures]
            traces.append(_line(name, colour, known, [sizes[p.condition] for p in known], figure))
        columns.append((shown[0].method.title, traces))
    if not columns:
        return []
    return [
        _grid(
            "gap",
            "Training and held-out pairs",
            "How often the policy moved towards what was chosen, more than towards what was rejected, over the number "
            "of pairs that it learned from (with as many updates for all).",
            columns,
            "accuracy",
            x_title="pairs",
        )
    ]


def _again(found: Found) -> list[Grid]:
    """KL and regret over passes through few certain pairs."""
    conditions = [each for each in found.axis.conditions(found.form) if each.methods is not None]
    passes = {each.name: each.updates * 64 / each.preferences.pairs for each in conditions}
    shown = [point for point in found.points if point.condition in passes]
    if not shown:
        return []
    strengths = sorted({(point.method.key, point.strength) for point in shown})
    columns = []
    for figure, title in (("kl", "KL, nats"), ("reward", "mean true reward")):
        traces = []
        for (key, strength), colour in zip(strengths, COLOURS, strict=False):
            known = [p for p in shown if (p.method.key, p.strength) == (key, strength) and figure in p.figures]
            if known:
                name = f"{known[0].method.title}, {known[0].method.strength} {strength:g}"
                traces.append(_line(name, colour, known, [passes[p.condition] for p in known], figure))
        columns.append((title, traces))
    return [
        _grid(
            "passes",
            "Few pairs that never contradict each other, again and again",
            "Passes over the same deterministic pairs: DPO's loss has no minimum there, IPO's has.",
            columns,
            "",
            x_title="passes",
        )
    ]


def _curves(
    shown: Sequence[Point], methods: Sequence[str], figure: str = "reward", less: float = 0.0
) -> list[go.Scatter]:
    """A line for each method through its strengths, in order of KL."""
    traces = []
    for key, colour in zip([key for key in methods if key != "reference"], _colours(methods), strict=True):
        points = [p for p in shown if p.method.key == key and figure in p.figures and "kl" in p.figures]
        points.sort(key=lambda point: point.value("kl"))
        if points:
            traces.append(_line(points[0].method.title, colour, points, [p.value("kl") for p in points], figure, less))
    return traces


def _colours(methods: Sequence[str]) -> list[str]:
    names = [key for key in methods if key != "reference"]
    return [COLOURS[i % len(COLOURS)] for i in range(len(names))]


def _line(
    name: str, colour: str, points: Sequence[Point], x: Sequence[float], figure: str, less: float = 0.0
) -> go.Scatter:
    halves = [point.figures[figure].half for point in points]
    return go.Scatter(
        x=[short(value) for value in x],
        y=[short(point.value(figure) - less) for point in points],
        error_y={"array": [0.0 if math.isinf(half) else short(half) for half in halves], "thickness": 1, "width": 3},
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 1.4},
        marker={"color": colour, "size": 6},
        hovertemplate="%{y:.3f} at %{x:.3f}",
    )


def _optimum(found: Found, shown: Sequence[Point]) -> go.Scatter:
    """The frontier, as far as the points go."""
    end = 1.15 * max((point.value("kl") for point in shown if "kl" in point.figures), default=1.0)
    curve = [(kl, reward) for kl, reward in found.curve if kl <= end]
    return go.Scatter(
        x=[short(kl) for kl, _ in curve],
        y=[short(reward) for _, reward in curve],
        name="optimum",
        mode="lines",
        line={"color": TEXT, "width": 2},
        hovertemplate="%{y:.3f} at %{x:.3f}",
    )


def _under(points: Sequence[Point], condition: str) -> list[Point]:
    return [point for point in points if point.condition == condition]


def _grid(
    key: str,
    title: str,
    caption: str,
    columns: Sequence[tuple[str, list[go.Scatter]]],
    y_title: str,
    x_title: str = "KL from the reference, nats per response",
) -> Grid:
    """A row of cells."""
    cells = tuple(Cell(y_title if i == 0 else "", traces) for i, (_, traces) in enumerate(columns))
    names = {trace.name for _, traces in columns for trace in traces}
    rows = math.ceil(sum(len(name) + 6 for name in names) / 90)
    return Grid(
        key,
        title,
        caption,
        cells,
        x_title=x_title,
        columns=tuple(name for name, _ in columns),
        row_height=_HEIGHT,
        legend_rows=rows,
    )

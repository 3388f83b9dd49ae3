"""The curves of a run, as plotly figures that read on light and on dark ground.

Nothing but numbers from the run enters a figure: plotly reads its texts as HTML, and data is not trusted with that.
One colour means one thing in every figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from preftune.report.values import Interval, interval, number

History = Sequence[dict[str, Any]]
Kind = Literal["train", "eval"]

# Each has a contrast of at least 3.5 on white and on near-black.
TRAINING, HELD_OUT, OWN = "#868682", "#3a7fd5", "#8a68d8"
CHOSEN, REJECTED = "#0f9b78", "#dd6430"
TEXT, GRID = "#808080", "rgba(128,128,128,0.22)"


@dataclass(frozen=True)
class Cell:
    """One pair of axes.

    Attributes:
        y_title: what the y axis shows, with its unit.
        traces: what is drawn.
        level: y of a dashed line to compare with; None for no line.
        y_format: d3 format of the ticks of the y axis.
        y_range: "tozero" if the y axis has to show zero.
    """

    y_title: str
    traces: list[go.Scatter]
    level: float | None = None
    y_format: str = ""
    y_range: Literal["normal", "tozero"] = "normal"


@dataclass(frozen=True)
class Panel:
    """A figure with its words: cells one above the other that share their x axis.

    Attributes:
        key: name of the panel, fit for an HTML id.
        title: what it shows.
        caption: how to read it, for someone who sees such a figure for the first time.
        cells: at least one; empty cells have been left out.
        x_title: what the x axis shows.
    """

    key: str
    title: str
    caption: str
    cells: tuple[Cell, ...]
    x_title: str = "training step"

    def figure(self) -> go.Figure:
        """The figure, without its title: the page has that."""
        figure = make_subplots(rows=len(self.cells), shared_xaxes=True, vertical_spacing=0.12)
        fill(figure, [(cell, row, 1) for row, cell in enumerate(self.cells, start=1)])
        figure.update_xaxes(title_text=self.x_title, row=len(self.cells), col=1)
        return figure


def panels(history: History) -> list[Panel]:
    """All panels for which the run has numbers, in reading order.

    Args:
        history: the lines of metrics.jsonl, as `read(run_dir).history` or `run.history` has them.
    """
    return [panel for make in PANELS if (panel := make(history)) is not None]


def overview(history: History) -> go.Figure:
    """The six main curves of a run in one figure of two rows and three columns; fewer where a run has fewer.

    Args:
        history: the lines of metrics.jsonl, as `read(run_dir).history` or `run.history` has them.
    """
    found = [panel for make in OVERVIEW if (panel := make(history)) is not None]
    columns = max(1, min(3, len(found)))
    rows = max(1, math.ceil(len(found) / columns))
    titles = [panel.title for panel in found]
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=titles, horizontal_spacing=0.08, vertical_spacing=0.15
    )
    fill(figure, [(panel.cells[0], i // columns + 1, i % columns + 1) for i, panel in enumerate(found)])
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="training step", title_standoff=6, row=rows)
    figure.update_layout(
        height=300 * rows + 120,
        margin={"t": 40, "b": 120},
        legend={"yref": "container", "y": 0.01, "yanchor": "bottom"},
        hovermode="closest",
    )
    if not found:
        figure.update_layout(title_text="No metrics were recorded.")
    return figure


def loss(history: History) -> Panel | None:
    """Loss over steps, in training and on held-out data."""
    return _panel(
        "loss",
        "Loss",
        "What training minimises; lower is better. If the held-out curve turns up while the training curve falls, the "
        "model is memorising.",
        Cell("loss", _training_and_held_out(history, "loss"), y_format="~g"),
    )


def preference_accuracy(history: History) -> Panel | None:
    """Share of pairs in which chosen is ranked above rejected, with its interval on held-out pairs."""
    traces = [
        *_band(history, "eval", "preference_accuracy_ci95", "95% interval"),
        *_training_and_held_out(history, "preference_accuracy"),
        *_line(history, "eval", "policy_accuracy", "own log-probs", OWN),
    ]
    return _panel(
        "accuracy",
        "Preference accuracy",
        "How often the chosen response is favoured over the rejected one: compared with the reference (as a rule, the "
        "model before training), and in violet by the model's own log-probabilities. The dashed line is chance.",
        Cell("share of pairs", traces, level=0.5, y_format=".0%"),
    )


def rewards(history: History) -> Panel | None:
    """Mean implicit reward of chosen and of rejected responses."""
    traces = [
        *_line(history, "train", "chosen_reward", "chosen, training", CHOSEN),
        *_line(history, "train", "rejected_reward", "rejected, training", REJECTED),
        *_line(history, "eval", "chosen_reward", "chosen, held-out", CHOSEN),
        *_line(history, "eval", "rejected_reward", "rejected, held-out", REJECTED),
    ]
    return _panel(
        "rewards",
        "Rewards",
        "The implicit reward says how much likelier training made a response; below zero, less likely. What counts is "
        "the gap between the two.",
        Cell("implicit reward", traces, level=0.0),
    )


def margin(history: History) -> Panel | None:
    """Mean margin with the band that holds the middle 80% of the pairs."""
    kind: Kind = "eval" if _points(history, "eval", "margin")[0] else "train"
    traces = [
        *_band(history, kind, ("margin_q10", "margin_q90"), "middle 80%"),
        *_training_and_held_out(history, "margin"),
    ]
    return _panel(
        "margin",
        "Reward margin",
        "Chosen reward less rejected reward, mean over pairs. The band holds the middle 80% of them; pairs below the "
        "dashed line are ranked wrongly.",
        Cell("margin", traces, level=0.0),
    )


def log_probability_change(history: History) -> Panel | None:
    """Change of the log-probability per token since step 0, held-out."""
    traces = [
        *_line(history, "eval", "chosen_logp_per_token_change", "chosen, held-out", CHOSEN),
        *_line(history, "eval", "rejected_logp_per_token_change", "rejected, held-out", REJECTED),
    ]
    return _panel(
        "logps",
        "Log-probability since the start",
        "How much likelier held-out responses became, per token. If both curves fall, the gap widened by making even "
        "chosen responses less likely.",
        Cell("change, nats per token", traces, level=0.0),
    )


def optimiser(history: History) -> Panel | None:
    """Gradient norm above learning rate."""
    norm = _line(history, "train", "gradient_norm", "gradient norm", TRAINING)
    rate = _line(history, "train", "learning_rate", "learning rate", HELD_OUT)
    return _panel(
        "optimiser",
        "Gradient norm and learning rate",
        "A gradient norm that explodes or drops to zero means that training is broken; single peaks are harmless.",
        Cell("gradient norm", norm, y_range="tozero"),
        Cell("learning rate", rate, y_format="~g", y_range="tozero"),
    )


def throughput(history: History) -> Panel | None:
    """Tokens per second above the share of padding."""
    speed = _line(history, "train", "tokens_per_second", "tokens per second", TRAINING)
    padding = _line(history, "train", "padding_share", "padding", REJECTED)
    return _panel(
        "throughput",
        "Throughput",
        "Tokens per second, and the share of computed positions that are padding and so wasted.",
        Cell("tokens per second", speed, y_range="tozero"),
        Cell("padding", padding, y_format=".0%", y_range="tozero"),
    )


def reward_histograms(history: History) -> Panel | None:
    """Distribution of the rewards of held-out responses, at the first evaluation above the last."""
    evaluations = [row for row in _rows(history, "eval") if any(_densities(row, key) for key, _, _ in _HISTOGRAMS)]
    if not evaluations:
        return None
    picked = [evaluations[0]] if len(evaluations) == 1 else [evaluations[0], evaluations[-1]]
    cells = [Cell(f"density, step {row['step']:g}", _histogram(row)) for row in picked]
    return Panel(
        "histograms",
        "Distribution of rewards",
        "Rewards of held-out responses, first evaluation above last. At the start all of them are zero where the model "
        "is its own reference; training should move chosen to the right of rejected.",
        tuple(cells),
        x_title="implicit reward",
    )


PANELS: tuple[Callable[[History], Panel | None], ...] = (
    loss,
    preference_accuracy,
    rewards,
    margin,
    reward_histograms,
    log_probability_change,
    optimiser,
    throughput,
)
OVERVIEW = (loss, preference_accuracy, rewards, margin, log_probability_change, optimiser)

_HISTOGRAMS = (
    ("chosen_reward_histogram", "chosen", CHOSEN),
    ("rejected_reward_histogram", "rejected", REJECTED),
)


def _panel(key: str, title: str, caption: str, *cells: Cell) -> Panel | None:
    """A panel of the cells that have traces; None if none has."""
    full = tuple(cell for cell in cells if cell.traces)
    return Panel(key, title, caption, full) if full else None


def _rows(history: History, kind: Kind) -> list[dict[str, Any]]:
    """The lines of one kind by step, with `step` a finite number; of lines with one step the last one counts, as a
    resumed run may have written a step again."""
    by_step = {
        step: row for row in history if row.get("kind") == kind and (step := number(row.get("step"))) is not None
    }
    return [{**by_step[step], "step": step} for step in sorted(by_step)]


def _points(history: History, kind: Kind, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, wherever it has a value."""
    pairs = [(row["step"], value) for row in _rows(history, kind) if (value := number(row.get(key))) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _training_and_held_out(history: History, key: str) -> list[go.Scatter]:
    return [
        *_line(history, "train", key, "training", TRAINING),
        *_line(history, "eval", key, "held-out", HELD_OUT),
    ]


def _line(history: History, kind: Kind, key: str, name: str, colour: str) -> list[go.Scatter]:
    """One metric as a thin line (training) or a thick one with markers (held-out); nothing if it has no values."""
    steps, values = _points(history, kind, key)
    if not steps:
        return []
    held_out = kind == "eval"
    return [
        go.Scatter(
            x=steps,
            y=[short(value) for value in values],
            name=name,
            mode="lines+markers" if held_out or len(steps) == 1 else "lines",
            line={"color": colour, "width": 2.4 if held_out else 1.3},
            marker={"size": 7 if held_out else 5},
            opacity=1.0 if held_out else 0.75,
            hovertemplate="%{y:.4g}",
        )
    ]


def _band(history: History, kind: Kind, keys: str | tuple[str, str], name: str) -> list[go.Scatter]:
    """A filled band between two metrics, or between the ends of one interval metric; nothing if it has no values."""
    found: list[tuple[float, Interval]] = []
    for row in _rows(history, kind):
        ends = interval(row.get(keys) if isinstance(keys, str) else [row.get(key) for key in keys])
        if ends is not None:
            found.append((row["step"], ends))
    if not found:
        return []
    steps = [step for step, _ in found]
    lows, highs = [short(low) for _, (low, _) in found], [short(high) for _, (_, high) in found]
    return [
        go.Scatter(
            x=steps + steps[::-1],
            y=highs + lows[::-1],
            name=name,
            mode="lines",
            fill="toself",
            fillcolor=transparent(HELD_OUT if kind == "eval" else TRAINING, 0.2),
            line={"width": 0},
            hoverinfo="skip",
        )
    ]


def _densities(row: dict[str, Any], key: str) -> tuple[list[float], list[float]] | None:
    """Edges and densities of a histogram; None if it is missing, malformed or empty."""
    histogram = row.get(key)
    if not isinstance(histogram, dict):
        return None
    edges, counts = histogram.get("edges"), histogram.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1:
        return None
    xs = [x for edge in edges if (x := number(edge)) is not None]
    ns = [n for count in counts if (n := number(count)) is not None]
    total = sum(ns)
    widths = [right - left for left, right in pairwise(xs)]
    if len(xs) != len(edges) or len(ns) != len(counts) or total <= 0 or min(widths) <= 0:
        return None
    return xs, [n / total / width for n, width in zip(ns, widths, strict=True)]


def _histogram(row: dict[str, Any]) -> list[go.Scatter]:
    traces = []
    for key, name, colour in _HISTOGRAMS:
        found = _densities(row, key)
        if found is None:
            continue
        edges, densities = found
        traces.append(
            go.Scatter(
                x=[short(edge) for edge in (edges[0], *edges)],
                y=[0.0, *(short(density) for density in densities), 0.0],
                name=name,
                mode="lines",
                line={"color": colour, "width": 1.6, "shape": "hv"},
                fill="tozeroy",
                fillcolor=transparent(colour, 0.25),
                hovertemplate="%{y:.3g}",
            )
        )
    return traces


def fill(figure: go.Figure, places: Sequence[tuple[Cell, int, int]]) -> None:
    """Put cells into the grid, each name once into the legend, and dress the figure."""
    seen: set[str] = set()
    for cell, row, column in places:
        for trace in cell.traces:
            trace.update(legendgroup=trace.name, showlegend=trace.name not in seen)
            seen.add(trace.name)
            figure.add_trace(trace, row=row, col=column)
        if cell.level is not None:
            figure.add_hline(cell.level, line={"color": TEXT, "width": 1, "dash": "4px,4px"}, row=row, col=column)
        figure.update_yaxes(
            title_text=cell.y_title, tickformat=cell.y_format, rangemode=cell.y_range, row=row, col=column
        )
    axes = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True}
    figure.update_xaxes(**axes, showgrid=False, showline=True)
    figure.update_yaxes(**axes, title_font_size=12, title_standoff=8, nticks=6)
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": TEXT},
        margin={"l": 56, "r": 12, "t": 12, "b": 40},
        hovermode="x unified",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        showlegend=len(seen) > 1,
    )


def transparent(colour: str, alpha: float) -> str:
    """A colour (#rrggbb) that lets what is behind it through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def short(value: float) -> float:
    """Six significant digits: what a figure can show, at half the size of the page."""
    return float(f"{value:.6g}")

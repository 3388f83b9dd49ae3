"""The curves of a run, as plotly figures that read on light and on dark ground.

Curves of more than 400 points are thinned to the extremes of each stretch of steps: see `thinning`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from preftune.report.curves import History, Kind, band, line, points, rows_of, training_and_held_out
from preftune.report.drawing import (
    CHOSEN,
    HELD_OUT,
    OWN,
    REJECTED,
    TRAINING,
    Cell,
    Panel,
    fill,
    short,
    transparent,
)
from preftune.report.values import number

IMPLICIT = "implicit reward"
OF_SCORES = {  # captions of a reward model, where they differ
    "accuracy": "How often the reward model scores chosen above rejected. The dashed line is chance.",
    "rewards": "The scores that the reward model gives. What counts is the gap between the two, not their level.",
    "margin": "Score of chosen less score of rejected, mean over pairs. The band holds the middle 80% of them; pairs "
    "below the dashed line are ranked wrongly.",
    "histograms": "Scores of held-out responses, first evaluation above last: training should move chosen to the right "
    "of rejected.",
}


def panels(history: History, scores: bool = False) -> list[Panel]:
    """All panels for which the run has numbers, in reading order.

    Args:
        history: the lines of metrics.jsonl, as `read(run_dir).history` or `run.history` has them.
        scores: True for a reward model, whose rewards are the scores that it gives, and no log-ratios.
    """
    found = [panel for make in PANELS if (panel := make(history)) is not None]
    return [_of_scores(panel) for panel in found] if scores else found


def overview(history: History, scores: bool = False) -> go.Figure:
    """The six main curves of a run in one figure of two rows and three columns; fewer where a run has fewer.

    Args:
        history: the lines of metrics.jsonl, as `read(run_dir).history` or `run.history` has them.
        scores: True for a reward model.
    """
    found = [panel for make in OVERVIEW if (panel := make(history)) is not None]
    found = [_of_scores(panel) for panel in found] if scores else found
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
        Cell("loss", training_and_held_out(history, "loss"), y_format="~g"),
    )


def preference_accuracy(history: History) -> Panel | None:
    """Share of pairs in which chosen is ranked above rejected, with its interval on held-out pairs."""
    traces = [
        *band(history, "eval", "preference_accuracy_ci95", "95% interval"),
        *training_and_held_out(history, "preference_accuracy"),
        *line(history, "eval", "policy_accuracy", "own log-probs", OWN),
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
        *line(history, "train", "chosen_reward", "chosen, training", CHOSEN),
        *line(history, "train", "rejected_reward", "rejected, training", REJECTED),
        *line(history, "eval", "chosen_reward", "chosen, held-out", CHOSEN),
        *line(history, "eval", "rejected_reward", "rejected, held-out", REJECTED),
    ]
    return _panel(
        "rewards",
        "Rewards",
        "The implicit reward says how much likelier training made a response; below zero, less likely. What counts is "
        "the gap between the two.",
        Cell(IMPLICIT, traces, level=0.0),
    )


def margin(history: History) -> Panel | None:
    """Mean margin with the band that holds the middle 80% of the pairs."""
    kind: Kind = "eval" if points(history, "eval", "margin")[0] else "train"
    traces = [
        *band(history, kind, ("margin_q10", "margin_q90"), "middle 80%"),
        *training_and_held_out(history, "margin"),
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
        *line(history, "eval", "chosen_logp_per_token_change", "chosen, held-out", CHOSEN),
        *line(history, "eval", "rejected_logp_per_token_change", "rejected, held-out", REJECTED),
    ]
    return _panel(
        "logps",
        "Log-probability since the start",
        "How much likelier held-out responses became, per token; below zero, less likely. Where rejected falls further "
        "than a chosen that falls too, the gap widens although even chosen responses become less likely; where chosen "
        "falls further, per token it is chosen that loses.",
        Cell("change, nats per token", traces, level=0.0),
    )


def answers(history: History) -> Panel | None:
    """Length, ends and repetition of sampled answers, over the distance from the reference."""
    length = line(history, "eval", "sample_length", "length", HELD_OUT)
    shares = [
        *line(history, "eval", "sample_end_rate", "end by themselves", CHOSEN),
        *line(history, "eval", "sample_repetition", "repetition", REJECTED),
    ]
    distance = line(history, "eval", "sample_kl", "KL per response, rough", OWN)
    return _panel(
        "answers",
        "Sampled answers",
        "Answers to held-out prompts: their length, the share that ends by itself, how much they repeat, and a rough "
        "estimate of how far they lie from the reference (few answers, no interval). Answers that "
        "grow or repeat themselves are a way to win without being better.",
        Cell("tokens", length, y_range="tozero"),
        Cell("share", shares, y_format=".0%", y_range="tozero"),
        Cell("KL, nats", distance, y_range="tozero"),
    )


def optimiser(history: History) -> Panel | None:
    """Gradient norm above learning rate."""
    norm = line(history, "train", "gradient_norm", "gradient norm", TRAINING)
    rate = line(history, "train", "learning_rate", "learning rate", HELD_OUT)
    return _panel(
        "optimiser",
        "Gradient norm and learning rate",
        "A gradient norm that explodes, or drops to zero and stays there, is a sign that training is broken; single "
        "peaks are mostly harmless.",
        Cell("gradient norm", norm, y_range="tozero"),
        Cell("learning rate", rate, y_format="~g", y_range="tozero"),
    )


def throughput(history: History) -> Panel | None:
    """Tokens per second above the share of padding."""
    speed = line(history, "train", "tokens_per_second", "tokens per second", TRAINING)
    padding = line(history, "train", "padding_share", "padding", REJECTED)
    return _panel(
        "throughput",
        "Throughput",
        "Tokens per second, and the share of computed positions that are padding and so wasted.",
        Cell("tokens per second", speed, y_range="tozero"),
        Cell("padding", padding, y_format=".0%", y_range="tozero"),
    )


def reward_histograms(history: History) -> Panel | None:
    """Distribution of the rewards of held-out responses, at the first evaluation above the last."""
    evaluations = [
        (step, row) for step, row in rows_of(history, "eval") if any(_densities(row, key) for key, _, _ in _HISTOGRAMS)
    ]
    if not evaluations:
        return None
    picked = [evaluations[0]] if len(evaluations) == 1 else [evaluations[0], evaluations[-1]]
    cells = [Cell(f"density, step {step:g}", _histogram(row)) for step, row in picked]
    return Panel(
        "histograms",
        "Distribution of rewards",
        "Rewards of held-out responses, first evaluation above last. At the start all of them are zero where the model "
        "is its own reference; training should move chosen to the right of rejected.",
        tuple(cells),
        x_title=IMPLICIT,
    )


PANELS: tuple[Callable[[History], Panel | None], ...] = (
    loss,
    preference_accuracy,
    rewards,
    margin,
    reward_histograms,
    log_probability_change,
    answers,
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


def _of_scores(panel: Panel) -> Panel:
    """The same of a reward model."""
    cells = tuple(replace(cell, y_title="score") if cell.y_title == IMPLICIT else cell for cell in panel.cells)
    x_title = "score" if panel.x_title == IMPLICIT else panel.x_title
    return replace(panel, caption=OF_SCORES.get(panel.key, panel.caption), cells=cells, x_title=x_title)


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

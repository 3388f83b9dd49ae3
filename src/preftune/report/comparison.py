"""Several runs on one page: curves overlaid, a table with intervals, accuracy against KL, what their configs differ in.

Runs go by letters. Their names are strangers' texts, which plotly would read as HTML: a name enters a figure only if
it is made of harmless characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.report.curves import Kind, band, line
from preftune.report.drawing import CHOSEN, HELD_OUT, OWN, REJECTED, TRAINING, Cell, Panel, short
from preftune.report.html import Section, as_bytes, page, section, thinned
from preftune.report.reading import RunData, read
from preftune.report.same_data import apart
from preftune.report.tables import METRICS, changes
from preftune.report.trained import is_reward_model
from preftune.report.values import Interval, Unit, around, interval, listed, mapping, number, show, show_interval

COLOURS = (HELD_OUT, REJECTED, CHOSEN, OWN, "#c2489b", "#a5822a", "#2b9cb0", TRAINING)
HARMLESS = re.compile(r"[\w .,+=-]{1,40}", re.ASCII)
APART = ("output.path",)  # keys in which runs differ as a matter of course


@dataclass(frozen=True)
class Estimate:
    """A figure of a run, with its interval where it has one."""

    value: float | None
    bounds: Interval | None = None
    unit: Unit = ""

    @property
    def shown(self) -> str:
        """As text."""
        return show(self.value, self.unit)

    @property
    def shown_bounds(self) -> str:
        """Its interval as text."""
        return show_interval(self.bounds, self.unit)


@dataclass(frozen=True)
class Figure:
    """A row of the table.

    Attributes:
        key: its name.
        label: for people.
        note: what it is of, or what it says nothing about.
        find: where it stands in a run.
    """

    key: str
    label: str
    note: str
    find: Callable[[RunData], Estimate]


@dataclass(frozen=True)
class Compared:
    """A run among others.

    Attributes:
        letter: that it goes by: "A" for the first.
        run: its files.
        colour: of its curves.
        figures: by the keys of FIGURES.
    """

    letter: str
    run: RunData
    colour: str
    figures: Mapping[str, Estimate]

    @property
    def label(self) -> str:
        """What it is called in figures."""
        return f"{self.letter} {self.run.name}" if HARMLESS.fullmatch(self.run.name) else self.letter


def write(run_dirs: Sequence[str | Path], path: Path) -> Path:
    """Write the page that compares runs, over one that is there.

    Args:
        run_dirs: folders that `preftune train` wrote, in the order in which they are shown.
        path: of the page.

    Returns:
        The same path.

    Raises:
        PreftuneError: if a folder is no run, one of its files cannot be parsed, or the page cannot be written.
    """
    text = render([read(each) for each in run_dirs])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, as_bytes(text))
    except OSError as error:
        raise PreftuneError(
            f"cannot write {path} ({error.strerror or error}): name a file that can be written with --out"
        ) from error
    return path


def render(runs: Sequence[RunData]) -> str:
    """The page as text."""
    compared = compare(runs)
    curves, frontier = overlaid(compared), trade_off(compared)
    sections: list[Section] = [
        section("compared", "", said=ahead(compared), runs=compared, figures=_rows(compared), apart=apart(runs)),
        section("trade-off", "Accuracy against KL", panels=frontier, without_kl=without_kl(compared)),
        section("curves", "Curves", panels=curves, thinned=thinned(*runs)),
        section("differences", "Configs", runs=compared, rows=differing(runs)),
    ]
    names = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    return page(f"Comparison of {names}", "preftune comparison", sections, [*frontier, *curves])


def figures(runs: Sequence[RunData]) -> list[Panel]:
    """The figures of the page."""
    compared = compare(runs)
    return [*trade_off(compared), *overlaid(compared)]


def compare(runs: Sequence[RunData]) -> list[Compared]:
    """Runs with their letters, colours and figures."""
    return [
        Compared(_letter(i), run, COLOURS[i % len(COLOURS)], {each.key: each.find(run) for each in FIGURES})
        for i, run in enumerate(runs)
    ]


def ahead(compared: Sequence[Compared]) -> str:
    """Which run is ahead, and of which others that can be said: same held-out data, intervals that do not overlap."""
    if reasons := apart([one.run for one in compared]):
        return (
            f"No run is called ahead: what they held out differs ({reasons}), so their figures are of different pairs. "
            "Train them with one data.held_out_path to compare them."
        )
    for key, what in (("true_reward", "the true reward"), ("preference_accuracy", "held-out preference accuracy")):
        measured = [one for one in compared if one.figures[key].bounds is not None]
        if len(measured) < 2:
            continue
        best = max(measured, key=lambda one: one.figures[key].value or 0.0)
        own = best.figures[key]
        low = own.bounds[0] if own.bounds else 0.0
        others = [one for one in measured if one is not best]
        behind = [one.letter for one in others if (bounds := one.figures[key].bounds) and bounds[1] < low]
        level = [one.letter for one in others if one.letter not in behind]
        text = f"{best.letter} is ahead in {what}: {own.shown} (95% interval {own.shown_bounds})."
        text += f" Its interval lies above that of {listed(behind)}." if behind else ""
        return text + (f" It overlaps with that of {listed(level)}, so this may be noise." if level else "")
    return "No figure of these runs has intervals that could be compared."


def overlaid(compared: Sequence[Compared]) -> list[Panel]:
    """Held-out curves of all runs, each metric in one panel; of those that hold nothing out, training curves.

    Losses and margins are left out where the runs have different objectives, or one with different settings.
    """
    found, alike = [], _alike(compared)
    for key, title, y_title, caption, level, y_format in CURVES:
        if key in ("loss", "margin") and not alike:
            continue
        traces: list[go.Scatter] = []
        for one in compared:
            kind: Kind = "eval" if line(one.run.history, "eval", key, "", one.colour) else "train"
            drawn = line(one.run.history, kind, key, one.label, one.colour)
            traces += [trace.update(opacity=1.0, line_width=2) for trace in drawn]
            shade = band(one.run.history, kind, f"{key}_ci95", one.label, one.colour)
            traces += [trace.update(opacity=0.5) for trace in shade]  # one entry of the legend serves both
        if traces:
            found.append(Panel(f"over-{key}", title, caption, (Cell(y_title, traces, level=level, y_format=y_format),)))
    return found


def trade_off(compared: Sequence[Compared]) -> list[Panel]:
    """What each run gained, against what it cost in KL, wherever both were measured."""
    found = []
    for key, title, y_title, level, y_format in GAINS:
        traces = []
        for one in compared:
            gain, kl = one.figures[key], one.figures["kl"]
            if gain.value is not None and kl.value is not None:
                traces.append(_point(one, kl, gain))
        if traces:
            caption = (
                "Each dot is a run, with 95% intervals where they were recorded. Further up is better; further to the "
                "right, more was given up of the old model."
            ) + (
                " These runs held out different data, so their dots cannot be compared."
                if apart([one.run for one in compared])
                else " Of two runs at one height, the one on the left is better."
            )
            cell = Cell(y_title, traces, level=level, y_format=y_format)
            x_title = "KL from the reference, nats per response"
            found.append(Panel(f"kl-{key}", title, caption, (cell,), x_title=x_title, x_range="tozero"))
    return found


def without_kl(compared: Sequence[Compared]) -> list[Compared]:
    """Runs whose KL can be measured and was not: reward models have none."""
    return [one for one in compared if one.figures["kl"].value is None and not is_reward_model(one.run)]


def differing(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """Keys of the configs that are not alike in all runs, with the values of each run."""
    flat = [_flat(run.config) for run in runs]
    keys = sorted({key for values in flat for key in values})
    table = [(key, [values.get(key, "\u2013") for values in flat]) for key in keys if key not in APART]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def _alike(compared: Sequence[Compared]) -> bool:
    """True if all have one objective with one setting, so that their rewards are in one unit."""
    return len({json.dumps(one.run.config.get("objective"), default=str) for one in compared}) == 1


def _rows(compared: Sequence[Compared]) -> list[Figure]:
    """Rows of the table: what was measured in any run, but for what says nothing between different objectives."""
    kept = [row for row in FIGURES if row.key != "ece" or _alike(compared)]
    return [row for row in kept if any(one.figures[row.key].value is not None for one in compared)]


def _point(one: Compared, x: Estimate, y: Estimate) -> go.Scatter:
    def error(estimate: Estimate) -> dict[str, Any]:
        value, bounds = estimate.value or 0.0, estimate.bounds
        if bounds is None:
            return {"visible": False}
        ends = {"array": [short(max(0.0, bounds[1] - value))], "arrayminus": [short(max(0.0, value - bounds[0]))]}
        return {"type": "data", "symmetric": False, "thickness": 1.4, "width": 4, **ends}

    return go.Scatter(
        x=[short(x.value or 0.0)],
        y=[short(y.value or 0.0)],
        error_x=error(x),
        error_y=error(y),
        name=one.label,
        mode="markers+text",
        text=[one.letter],
        textposition="top right",
        marker={"size": 11, "color": one.colour},
        hovertemplate="KL %{x:.3g}, %{y:.4g}",
    )


def _kl(run: RunData) -> Estimate:
    after = mapping(run.summary.get("after"))
    measured = mapping(mapping(run.own_evaluation.get("generation")).get("kl"))
    value, error = number(measured.get("per_response")), number(measured.get("per_response_se"))
    if value is None:
        value, error = number(after.get("kl")), number(after.get("kl_se"))
    bounds = None if value is None or not error else around(value, error)
    return Estimate(value, bounds, "nats per response")


def _metric(key: str) -> Callable[[RunData], Estimate]:
    def find(run: RunData) -> Estimate:
        change = changes(run).get(key)
        return Estimate(change.after, change.after_interval, METRICS[key].unit) if change else Estimate(None)

    return find


def _evaluated(block: str, key: str, unit: Unit) -> Callable[[RunData], Estimate]:
    def find(run: RunData) -> Estimate:
        values: Any = run.own_evaluation
        for name in block.split("."):
            values = mapping(values).get(name)
        return Estimate(number(mapping(values).get(key)), interval(mapping(values).get(f"{key}_ci95")), unit)

    return find


FIGURES = (
    Figure(
        "preference_accuracy",
        "Preference accuracy",
        "held-out, to the reference if it has one",
        _metric("preference_accuracy"),
    ),
    Figure("policy_accuracy", "Own preference accuracy", "held-out, no reference", _metric("policy_accuracy")),
    Figure("true_reward", "True reward", "of sampled answers", _metric("true_reward")),
    Figure(
        "win_rate", "Win rate", "by a judge, against its own reference", _evaluated("win_rate", "win_rate", "share")
    ),
    Figure("length_controlled", "Win rate at one length", "", _evaluated("win_rate", "length_controlled", "share")),
    Figure("kl", "KL divergence", "nats per response, from the reference", _kl),
    Figure("ece", "Calibration error", "margins read as log-odds", _evaluated("calibration", "ece", "share")),
    Figure(
        "ece_with_temperature",
        "Calibration error, fitted",
        "margins over a fitted temperature, comparable between objectives",
        _evaluated("calibration", "ece_with_temperature", "share"),
    ),
    Figure("mean_length", "Length of answers", "tokens", _evaluated("generation.policy", "mean_length", "tokens")),
    Figure("loss", "Held-out loss", "not comparable between objectives", _metric("loss")),
    Figure("margin", "Reward margin", "not comparable between values of beta", _metric("margin")),
    Figure("steps", "Steps", "", lambda run: Estimate(number(run.summary.get("steps")), None, "count")),
    Figure("seconds", "Time", "", lambda run: Estimate(number(run.summary.get("seconds")), None, "seconds")),
)
GAINS = (
    ("preference_accuracy", "Accuracy against KL", "held-out preference accuracy", None, ".0%"),
    ("true_reward", "True reward against KL", "true reward", None, ""),
    ("win_rate", "Win rate against KL", "win rate", 0.5, ".0%"),
)
CURVES: tuple[tuple[str, str, str, str, float | None, str], ...] = (
    (
        "preference_accuracy",
        "Preference accuracy",
        "share of pairs",
        "Held-out pairs; the band is the 95% interval.",
        0.5,
        ".0%",
    ),
    ("loss", "Loss", "loss", "Held-out loss; lower is better.", None, "~g"),
    ("margin", "Reward margin", "margin", "Chosen reward less rejected reward, mean over held-out pairs.", 0.0, ""),
    ("delta", "Delta", "nats", "Log-ratio on chosen less that on rejected: comparable whatever beta is.", 0.0, ""),
    (
        "chosen_logp_per_token_change",
        "Log-probability of chosen since the start",
        "change, nats per token",
        "Below zero, even chosen responses became less likely.",
        0.0,
        "",
    ),
    ("gradient_norm", "Gradient norm", "gradient norm", "Of training steps.", None, ""),
)


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """A tree of settings as dotted keys, each value as JSON."""
    if isinstance(tree, dict) and tree:
        return {key: text for name, value in tree.items() for key, text in _flat(value, f"{prefix}{name}.").items()}
    text = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False, default=str)
    return {prefix.removesuffix("."): text}


def _letter(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return ("" if index < 26 else _letter(index // 26 - 1)) + chr(ord("A") + index % 26)

"""What a sweep came to: tables in a terminal, and one page with the frontier of gain against KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import plotly.graph_objects as go
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preftune.report.comparison import COLOURS, HARMLESS
from preftune.report.drawing import TEXT, Cell, Panel, short, transparent
from preftune.report.html import page, section
from preftune.report.values import Interval, Unit, number, show_duration, show_interval
from preftune.report.values import show as shown

if TYPE_CHECKING:
    from preftune.sweeping.frontier import Point
    from preftune.sweeping.grid import Grid
    from preftune.sweeping.measuring import Measure
    from preftune.sweeping.sweep import Sweep

UNITS: Mapping[str, Unit] = {"win_rate": "share", "accuracy": "share", "reward": ""}
X_TITLE = "KL to the reference, nats per response"


@dataclass(frozen=True)
class Row:
    """A run in the page's table.

    Attributes:
        number: that it goes by in the figure.
        name: of the run.
        link: to its report, relative to the page.
        colour: of its dot.
        settings: what it was trained with, in the order of the swept keys.
        cells: figures with their intervals, in the order of `header`.
        marks: on the frontier, recommended.
        failed: why it has no figures.
    """

    number: int
    name: str
    link: str
    colour: str
    settings: Sequence[str]
    cells: Sequence[tuple[str, str]]
    marks: Sequence[str]
    failed: str


def what_of(measure: Measure) -> str:
    """What is to be high, in words."""
    if measure.kind == "win_rate":
        return f"win rate against the reference, by {measure.judge}"
    if measure.kind == "reward":
        return "true reward" if measure.judge == "sandbox" else f"mean score by {measure.judge}"
    return "held-out preference accuracy"


def show_plan(found: Grid, measure: Measure, notes: Sequence[str]) -> None:
    """Print, to where progress goes, which runs there will be, and what there is to know of them."""
    console = Console(stderr=True)
    count = len(found.cells)
    _say(console, f"{count} runs over {' and '.join(found.swept)}, measured by {what_of(measure)}")
    for cell in found.cells:
        values = ", ".join(f"{key}={value}" for key, value in cell.settings.items())
        _say(console, f"  {cell.name}: {values}")
    for note in notes:
        _say(console, f"note: {note}")


def show_point(done: int, count: int, point: Point) -> None:
    """Print one line about a run that is done."""
    console = Console(stderr=True)
    if point.failed:
        _say(console, f"{done}/{count} {point.name} failed: {point.failed}")
        return
    seconds = number(point.figures.get("seconds"))
    took = "" if seconds is None else f", {show_duration(seconds)}"
    _say(console, f"{done}/{count} {point.name}: {point.value:.3f} at a KL of {point.kl:.3g}{took}")


def show(result: Sweep, console: Console | None = None) -> None:
    """Print all runs in order of KL, the advice, and where everything lies."""
    console = console or Console()
    unit = UNITS[result.measure.kind]
    same = result.measure.kind == "accuracy"
    table = Table()
    table.add_column("run", overflow="fold")
    for name in ("KL", _short(result.measure), *(() if same else ("accuracy",)), "length", ""):
        table.add_column(name)
    for point in _ordered(result.points):
        if point.failed:
            table.add_row(escape(point.name), "failed")
            continue
        accuracy = () if same else (shown(number(point.figures.get("accuracy")), "share"),)
        table.add_row(
            escape(point.name),
            _with(point.kl, point.kl_ci95, "{:.3g}"),
            _with(point.value, point.ci95, "{:.1%}" if unit else "{:.3f}"),
            *accuracy,
            shown(number(point.figures.get("mean_length"))),
            ", ".join(_marks(point, result)),
        )
    console.print(table)
    for point in result.points:
        if point.failed:
            _say(console, f"{point.name} failed: {point.failed}")
    _say(console, f"take {result.advice.why}" if result.advice.run is not None else result.advice.why)
    if result.recommended is not None:
        _say(console, f"run:    {result.recommended}")
    _say(console, f"report: {result.folder / 'sweep.html'}")


def render(result: Sweep) -> str:
    """The page as text."""
    colours = _colours(result)
    rows = [_row(i, point, result, colours) for i, point in enumerate(result.points, 1)]
    panel = _figure(result, colours)
    failed = [point for point in result.points if point.failed]
    sections = [
        section(
            "sweep",
            "",
            headline=_headline(result),
            why=result.advice.why,
            caveat=_caveat(result),
            notes=result.notes,
            failed=failed,
        ),
        section("sweep-frontier", "Frontier", panel=panel),
        section("sweep-runs", "Runs", rows=rows, swept=result.swept, header=_header(result.measure)),
        section("sweep-again", "Again", command=result.command, folder=str(result.folder)),
    ]
    return page(f"Sweep over {' and '.join(result.swept)}", "preftune sweep", sections, [panel])


def _headline(result: Sweep) -> str:
    if result.advice.run is None:
        return "No run can be recommended."
    budget = "" if result.kl_budget is None else f" within {result.kl_budget:g} nats"
    return f"Take {result.advice.run}{budget}."


def _caveat(result: Sweep) -> str:
    count = sum(not point.failed for point in result.points)
    return (
        f"The choice was made among {count} runs on these very prompts, so the figure of the run that was chosen is "
        "flattered a little by chance: measure it on fresh data (preftune evaluate --data) before quoting it."
    )


def _figure(result: Sweep, colours: Mapping[str, str]) -> Panel:
    """KL against gain: a dot for each run, by its number, and the line of those that no other beats."""
    traces: list[go.Scatter] = []
    good = [(i, point) for i, point in enumerate(result.points, 1) if not point.failed]
    ends = [point for name in result.frontier for point in result.points if point.name == name]
    start = next(point for _, point in good)
    traces.append(
        go.Scatter(
            x=[0.0, *(short(point.kl or 0.0) for point in ends)],
            y=[short(start.reference), *(short(point.value or 0.0) for point in ends)],
            name="frontier",
            mode="lines",
            line={"color": transparent(TEXT, 0.6), "width": 1.4, "dash": "dot"},
            hoverinfo="skip",
        )
    )
    for colour, members in _groups(good, colours):
        points = [point for _, point in members]
        traces.append(
            go.Scatter(
                x=[short(point.kl or 0.0) for point in points],
                y=[short(point.value or 0.0) for point in points],
                error_x=_errors([(point.kl or 0.0, point.kl_ci95) for point in points]),
                error_y=_errors([(point.value or 0.0, point.ci95) for point in points]),
                text=[str(i) for i, _ in members],
                name=_legend(members, result),
                mode="markers+text",
                textposition="top right",
                marker={"size": 11, "color": colour},
                hovertemplate="run %{text}: KL %{x:.3g}, %{y:.4g}<extra></extra>",
            )
        )
    unit = UNITS[result.measure.kind]
    budget = "" if result.kl_budget is None else f" The budget is {result.kl_budget:g} nats."
    caption = (
        "Each dot is a run, by its number in the table below, with 95% intervals by prompt; one colour for each "
        f"objective. Higher is better, further left is nearer to the reference, where the dotted line begins.{budget}"
    )
    axis = {"win_rate": "win rate", "reward": "reward", "accuracy": "preference accuracy"}[result.measure.kind]
    cell = Cell(axis, traces, level=short(start.reference), y_format=".0%" if unit == "share" else "")
    return Panel("sweep-frontier", "Gain against KL", caption, (cell,), x_title=X_TITLE, x_range="tozero")


def _row(index: int, point: Point, result: Sweep, colours: Mapping[str, str]) -> Row:
    unit = UNITS[result.measure.kind]
    figures = point.figures
    bounds = figures.get("accuracy_ci95")
    cells = [
        (shown(point.kl), show_interval(point.kl_ci95)),
        (shown(point.value, unit), show_interval(point.ci95, unit)),
        (shown(number(figures.get("accuracy")), "share"), show_interval(_pair(bounds), "share")),
        (shown(number(figures.get("mean_length"))), ""),
        (shown(number(figures.get("seconds")), "seconds"), ""),
    ]
    return Row(
        index,
        point.name,
        quote(f"{point.folder}/report.html"),
        colours[point.name],
        [point.settings.get(key, "\u2013") for key in result.swept],
        cells,
        _marks(point, result),
        point.failed,
    )


def _header(measure: Measure) -> list[str]:
    return ["KL, nats", _short(measure), "preference accuracy", "length, tokens", "time"]


def _short(measure: Measure) -> str:
    words = {"win_rate": "win rate", "accuracy": "preference accuracy", "reward": "reward"}
    return words[measure.kind]


def _marks(point: Point, result: Sweep) -> list[str]:
    marks = ["frontier"] if point.name in result.frontier else []
    return [*marks, *(["take this"] if point.name == result.advice.run else [])]


def _ordered(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: (point.kl is None, point.kl or 0.0))


def _colours(result: Sweep) -> dict[str, str]:
    """A colour for each objective, if that is swept; else one for all."""
    key = _by(result)
    values = list(dict.fromkeys(point.settings.get(key, "") for point in result.points))
    return {point.name: COLOURS[values.index(point.settings.get(key, "")) % len(COLOURS)] for point in result.points}


def _groups(good: Sequence[tuple[int, Point]], colours: Mapping[str, str]) -> list[tuple[str, list[tuple[int, Point]]]]:
    found: dict[str, list[tuple[int, Point]]] = {}
    for i, point in good:
        found.setdefault(colours[point.name], []).append((i, point))
    return list(found.items())


def _legend(members: Sequence[tuple[int, Point]], result: Sweep) -> str:
    """What the runs of one colour have in common, if that is harmless to a figure; else their numbers."""
    key = _by(result)
    name = members[0][1].settings.get(key, "") if key else ""
    return name if HARMLESS.fullmatch(name) else f"runs {_range([i for i, _ in members])}"


def _by(result: Sweep) -> str:
    """The swept key that colours go by: the objective, where that is swept; else none."""
    return next((key for key in result.swept if key in ("objective", "objective.name")), "")


def _range(numbers: Sequence[int]) -> str:
    whole = list(range(numbers[0], numbers[-1] + 1)) == list(numbers)
    return f"{numbers[0]} to {numbers[-1]}" if whole and len(numbers) > 2 else ", ".join(map(str, numbers))


def _errors(values: Sequence[tuple[float, Interval | None]]) -> dict[str, Any]:
    """Plotly's error bars; none for a value without an interval."""
    highs = [short(max(0.0, bounds[1] - value)) if bounds else 0.0 for value, bounds in values]
    lows = [short(max(0.0, value - bounds[0])) if bounds else 0.0 for value, bounds in values]
    return {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "array": highs, "arrayminus": lows}


def _pair(value: Any) -> Interval | None:
    return (float(value[0]), float(value[1])) if isinstance(value, list | tuple) and len(value) == 2 else None


def _with(value: float | None, bounds: Interval | None, form: str) -> str:
    return form.format(value) + ("" if bounds is None else f" ({form.format(bounds[0])} to {form.format(bounds[1])})")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

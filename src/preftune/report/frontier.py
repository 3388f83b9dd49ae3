"""The pages of the study of the frontier: one for each axis and world, with the data of its figures beside it."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as TerminalTable

from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.report import pictures
from preftune.report.frontier_figures import figures
from preftune.report.study import Grid, Page, Table
from preftune.studies.frontier.methods import METHODS
from preftune.studies.frontier.statistics import Mean, mean
from preftune.studies.frontier.tables import (
    chosen_points,
    compared_at,
    regrets_at,
    write_comparisons,
    write_matched,
    write_points,
)

if TYPE_CHECKING:
    from preftune.studies.frontier.study import Found
    from preftune.studies.frontier.tables import Point

WORLDS = {
    "listed": "the listed world (2,801 responses to a prompt; everything exact)",
    "sandbox": "the built-in world of film reviews (policies sampled; the optimum by importance sampling)",
}
SAME = (0.25, 0.5, 1.0)  # nats at which methods are compared; the middle one has the tests
HALF = 0.5  # of the gain that there is
HELD = 0.05  # adjusted p-values below it are called a difference


def write(found: Found, folder: Path, png: bool = False) -> None:
    """Write index.html, points.csv, comparisons.csv, and for each figure its data as KEY.csv.

    Args:
        found: what came out of one axis.
        folder: made if it is not there.
        png: write each figure as a picture, too, which needs a browser.

    Raises:
        PreftuneError: if the folder cannot be written to, or no browser is found.
    """
    drawn = figures(found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_points(folder / "points.csv", found.points, _parts(found))
        write_comparisons(folder / "comparisons.csv", found.compared)
        write_matched(folder / "matched.csv", found.axis, found.points, SAME)
        for figure in drawn:
            write_data(folder / f"{figure.key}.csv", figure)
        page(found, drawn).write(folder / "index.html")
        for name, content in (pictures.draw(drawn) if png else {}).items():
            write_whole(folder / name, content)
    except OSError as error:
        raise PreftuneError(f"cannot write to {folder} ({error.strerror}): name another folder with --out") from None


def write_data(path: Path, figure: Grid) -> None:
    """What a figure shows, as csv: a row for each place of each of its lines."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["panel", "y", "line", figure.x_title, "value", "half_of_interval"])
        for i, cell in enumerate(figure.cells):
            panel = figure.columns[i % len(figure.columns)]
            for trace in cell.traces:
                halves = trace.error_y.array if trace.error_y.array is not None else ()
                for x, y, half in zip_longest(trace.x, trace.y, halves):
                    rows.writerow([panel, cell.y_title, trace.name, x, y, "" if half is None else half])


def page(found: Found, drawn: Sequence[Grid]) -> Page:
    """What came out of one axis, as a page.

    Args:
        found: the axis.
        drawn: its figures.
    """
    commits = ", ".join(commit or "unknown" for commit in found.commits)
    told = (
        "learning rates chosen on validation prompts with a seed of its own" if found.form.tunes else "one rate for all"
    )
    paragraphs = [
        f"In {WORLDS[found.world]}. {found.form.pairs:,} pairs and {found.form.updates} updates of "
        f"64 pairs, where the question does not vary them; {found.seeds} seeds that all methods share; {told}; "
        "test prompts scored once. Intervals are Student's t over seeds, at 95%.",
        "Regret is the share of the possible gain at a policy's own KL that it missed: "
        f"(R*(KL) - R) / (R*(KL) - R_ref). {_standing(found)} {_far(found)}",
        f"Code: {commits}.",
    ]
    if not found.form.tunes:
        paragraphs.insert(0, "This is the quick form: it shows that the study runs, and is too small for conclusions.")
    if found.failures:
        paragraphs.append(f"{len(found.failures)} cells failed; they are listed below.")
    tables = [_regrets(found), _matched(found), _costs(found)]
    if found.compared:
        tables.append(_comparisons(found))
    if found.failures:
        tables.append(_failures(found))
    return Page(
        title=f"{found.axis.title}: {found.world}",
        source="the frontier between reward and KL",
        headline=f"{found.axis.question} {_headline(found)}",
        paragraphs=paragraphs,
        figures=drawn,
        tables=tables,
        command=found.command,
    )


def show(found: Found, folder: Path, console: Console | None = None) -> None:
    """Print the table of regrets, and where the page lies."""
    console = console or Console()
    table = TerminalTable("method", "preferences", "setting", "KL", "reward", "regret", title=f"{found.axis.title}")
    for point in chosen_points(found.points, found.chosen):
        given = point.figures
        cells = (
            _interval(given.get("kl"), ".2f"),
            _interval(given.get("reward"), ".2f"),
            _percent(given.get("regret")),
        )
        table.add_row(point.method.title, point.condition, _setting(point), *cells)
    console.print(table)
    if found.failures:
        console.print(f"{len(found.failures)} cells failed: {found.failures[0].failed}", markup=False, soft_wrap=True)
    console.print(f"figures: {folder / 'index.html'}", markup=False, highlight=False, soft_wrap=True)


def _headline(found: Found) -> str:
    """Who had the least regret under the plain condition, and how many differ from the baseline."""
    plain = found.axis.conditions(found.form)[0].name
    known = [
        point
        for point in chosen_points(found.points, found.chosen)
        if point.condition == plain and "regret" in point.figures
    ]
    if not known:
        return "Nothing has been measured yet."
    best = min(known, key=lambda point: point.value("regret"))
    said = f"The least regret: {best.method.title}, {_percent(best.figures['regret'])}."
    apart = sum(each.adjusted < HELD for _, each in found.compared)
    if found.compared:
        base = found.compared[0][1].names[1]
        said += f" Of {len(found.compared)} comparisons with {base}, {apart} show a difference after Holm's adjustment."
    return said


def _standing(found: Found) -> str:
    """Which of its strengths a method stands in the tables with."""
    if not found.form.tunes:
        return "Each method stands in the tables at one strength and learning rate, which nobody chose."
    return (
        "Each method stands in the tables at the strength that had the least regret on validation prompts, among those "
        "that went far enough for a third of all gain to be possible; if none did, at the one that went farthest."
    )


def _far(found: Found) -> str:
    """The least regret where half of all gain could be had."""
    known = [point for point in found.points if point.value("attainable") >= HALF and "regret" in point.figures]
    if not known:
        return "Nothing went far enough for half of all gain to be possible."
    best = min(known, key=lambda point: point.value("regret"))
    return (
        "Of all that went far enough for half of all gain to be possible, the least regret on test prompts (the "
        "luckiest of many) is that of "
        f"{best.method.title} ({best.condition}, {_setting(best)}): {_percent(best.figures['regret'])}."
    )


def _regrets(found: Found) -> Table:
    parts = _parts(found)
    rows = []
    for point in chosen_points(found.points, found.chosen):
        figures_of = point.figures
        rows.append(
            [
                f"{point.method.title}",
                point.condition,
                _setting(point),
                _interval(figures_of.get("kl"), ".2f"),
                _interval(figures_of.get("reward"), ".3f"),
                *(_number(point.parts[name].value, "+.3f") if name in point.parts else "" for name in parts),
                _percent(figures_of.get("regret")),
                _interval(figures_of.get("win"), ".3f"),
                str(figures_of["reward"].n if "reward" in figures_of else 0),
            ]
        )
    return Table(
        "Regret at the chosen strength",
        "Reward and its components are means over test prompts; win is how often the policy's response is preferred to "
        "the reference's, by those whose preferences it learned from, before labels are flipped.",
        ("method", "preferences", "setting", "KL, nats", "reward", *parts, "regret", "win", "seeds"),
        rows,
    )


def _matched(found: Found) -> Table:
    """Regret where all methods have gone equally far."""
    at = {kl: regrets_at(found.points, kl) for kl in SAME}
    compared = compared_at(found.axis, found.points, SAME[1])
    titles = {point.method.key: point.method.title for point in found.points}
    rows = []
    for condition, key in dict.fromkeys(place for regrets in at.values() for place in regrets):
        values = [mean(list(at[kl].get((condition, key), {}).values())) for kl in SAME]
        against = compared.get((condition, key))
        rows.append(
            [
                titles[key],
                condition,
                *("" if not value.n else _percent(value) for value in values),
                _signed(against.difference) if against else "",
                f"{against.adjusted:.4f}" if against else "",
            ]
        )
    base = METHODS[found.axis.baseline].title
    return Table(
        "Regret at the same KL",
        "Regret depends on the distance gone, so this is the fairest comparison: each seed's regrets at a "
        "method's strengths, joined by lines over the logarithm of KL and read at one KL. p is that of a paired t-test "
        f"against {base} at {SAME[1]:g} nats, after Holm's adjustment for all rows.",
        ("method", "preferences", *(f"at {kl:g} nats" for kl in SAME), f"less {base}", "p, adjusted"),
        rows,
    )


def _costs(found: Found) -> Table:
    rows, spent = [], ("updates", "tokens", "seconds")
    for point in chosen_points(found.points, found.chosen):
        if not point.method.trains or "reward" not in point.figures:
            continue
        gained = point.value("reward") - _reference(found)
        updates, tokens, seconds = (point.value(name) for name in ("updates", "sampled_tokens", "training_seconds"))
        rows.append(
            [
                point.method.title,
                point.condition,
                f"{gained:+.3f}",
                f"{updates:,.0f}",
                f"{1000 * gained / updates:+.2f}",
                f"{tokens:,.0f}",
                f"{1000 * gained / tokens:+.3f}" if tokens else "",
                f"{seconds:.1f}",
                f"{1000 * gained / seconds:+.1f}",
            ]
        )
    return Table(
        "What it took",
        "Gain of true reward over the reference, what was spent on it (tokens are those sampled), and the gain for a "
        "thousand updates, tokens and seconds. "
        "Seconds are the processor's, of training alone on one thread; those of a reward model are not among them.",
        ("method", "preferences", "gain", *(each for name in spent for each in (name, f"per {name[:-1]}"))),
        rows,
    )


def _comparisons(found: Found) -> Table:
    rows = [
        [
            each.names[0],
            condition,
            _signed(each.difference),
            f"{each.p:.4f}",
            f"{each.adjusted:.4f}",
            "different" if each.adjusted < HELD else "",
        ]
        for condition, each in found.compared
    ]
    return Table(
        f"Regret less that of {found.compared[0][1].names[1]}",
        "Paired by seed; p of a two-sided t-test, and the same after Holm's adjustment for all rows of this table.",
        ("method", "preferences", "difference", "p", "p, adjusted", ""),
        rows,
    )


def _failures(found: Found) -> Table:
    rows = [[each.cell.key, each.failed or ""] for each in found.failures]
    return Table("Cells that failed", "They are left out of all means.", ("cell", "why"), rows)


def _parts(found: Found) -> list[str]:
    return list(dict.fromkeys(name for point in found.points for name in point.parts))


def _reference(found: Found) -> float:
    return found.curve[0][1]


def _setting(point: Point) -> str:
    if point.method.kind == "reference":
        return ""
    rate = "" if point.rate is None else f", rate {point.rate:g}"
    return f"{point.method.strength} {point.strength:g}{rate}"


def _interval(value: Mean | None, form: str) -> str:
    if value is None:
        return ""
    if math.isinf(value.half):
        return format(value.value, form)
    return f"{value.value:{form}} ± {value.half:{form}}"


def _percent(value: Mean | None) -> str:
    if value is None:
        return ""
    half = "" if math.isinf(value.half) else f" ± {100 * value.half:.1f}"
    return f"{100 * value.value:.1f}{half}%"


def _signed(value: Mean) -> str:
    return f"{100 * value.value:+.1f} ± {100 * value.half:.1f} points"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)

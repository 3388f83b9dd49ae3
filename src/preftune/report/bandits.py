"""The figures, the page and the table of the bandit study."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table as TerminalTable

from preftune.report.drawing import CHOSEN, HELD_OUT, OWN, REJECTED, TRAINING, Cell, short, transparent
from preftune.report.study import Grid, Page, Table

if TYPE_CHECKING:
    from preftune.studies.ipo_bandits import Curves, Study

ACTIONS = (CHOSEN, HELD_OUT, REJECTED)  # one colour each, in every figure of the study
TAUS = (TRAINING, OWN, HELD_OUT, REJECTED)
COLUMNS = ("DPO (beta = tau)", "IPO")


def page(study: Study, command: str) -> Page:
    """The study as a page.

    Args:
        study: as `preftune.studies.ipo_bandits.study` returns it.
        command: that runs it again.
    """
    missed = [limit for limit in study.limits if not limit.held]
    verdict = f"All {len(study.limits)} limits hold." if not missed else f"{len(missed)} limits do not hold."
    return Page(
        title="DPO and IPO on bandits",
        source="Azar et al. 2023, arXiv 2310.12036, sections 5.3.1 and 5.4",
        headline=f"{verdict} Where preferences never contradict each other, DPO leaves the reference for good, and IPO "
        "stops where tau says.",
        paragraphs=(
            f"Policies over two or three actions, {study.form.steps:,} steps of Adam on mini-batches of nine pairs, "
            "ten seeds each; lines are means, bands their 95% intervals, dotted lines IPO's optimum in closed form. "
            "The losses are the ones that preftune trains language models with.",
            "The paper's third data set cannot give the paper's second figure as printed: its text lists a over b and "
            "b over a alone, in which c does not occur, and the figure shows DPO sending c to 0. Both readings are "
            "below. The paper does not print its values of tau, nor where logits start; here they start at the "
            "reference.",
        ),
        figures=(_log_ratios(study), *(_probabilities(curves) for curves in study.curves)),
        tables=(_policies(study), _limits(study)),
        command=command,
    )


def show(study: Study, console: Console | None = None) -> None:
    """Print the policies at the end, the limits that do not hold, and where the page lies."""
    console = console or Console()
    found = _policies(study)
    table = TerminalTable(*found.header)
    for row, following in zip_longest(found.rows, found.rows[1:], fillvalue=("",)):
        table.add_row(*row, end_section=row[0] != following[0])
    console.print(table)
    for limit in study.limits:
        if not limit.held:
            console.print(
                f"does not hold: {limit.data}, {limit.objective}, tau {limit.tau:g}: {limit.says} {limit.expected:g}, "
                f"measured {limit.measured:.4g}",
                markup=False,
                soft_wrap=True,
            )
    held = sum(limit.held for limit in study.limits)
    console.print(
        f"{held} of {len(study.limits)} limits hold; {study.form.steps:,} steps in {study.seconds:.1f} s",
        highlight=False,
    )
    console.print(
        "d3-as-printed cannot give the paper's Figure 2 (c is in no pair, so nothing moves it); d3-one-loss does.",
        highlight=False,
    )
    console.print(f"figures: {study.page}", markup=False, highlight=False, soft_wrap=True)


def _probabilities(curves: Curves) -> Grid:
    """Probability of each action over steps: a row for each tau, DPO beside IPO."""
    cells = []
    for u, tau in enumerate(curves.taus):
        for o in range(len(COLUMNS)):
            traces = []
            for a, (name, colour) in enumerate(zip(curves.data.names, ACTIONS, strict=False)):
                middle, half = curves.mean_ROUA[:, o, u, a], curves.half_width_ROUA[:, o, u, a]
                traces += _band(curves.step_R, (middle - half).tolist(), (middle + half).tolist(), name, colour)
                traces.append(_line(curves.step_R, middle.tolist(), name, colour))
                if o == 1:
                    level = float(curves.data.ipo_optimum(tau)[a])
                    ends = (curves.step_R[0], curves.step_R[-1])
                    traces.append(_line(ends, [level, level], f"{name}, closed form", colour, dash="dot"))
            y_title = f"probability, tau = {tau:g}" if o == 0 else ""
            cells.append(Cell(y_title, traces, y_format=".1f", y_range="tozero"))
    return Grid(
        curves.data.key,
        curves.data.title,
        curves.data.note,
        tuple(cells),
        x_title="step of Adam",
        columns=COLUMNS,
    )


def _log_ratios(study: Study) -> Grid:
    """Log-ratio of the best to the worst action of the total order over steps, for each tau."""
    curves = next(each for each in study.curves if each.data.key == "total-order")
    cells = []
    for o in range(len(COLUMNS)):
        traces = [
            _line(curves.step_R, curves.gap_ROU[:, o, u].tolist(), f"tau = {tau:g}", colour)
            for u, (tau, colour) in enumerate(zip(curves.taus, TAUS, strict=True))
        ]
        cells.append(Cell("log pi(a) / pi(c), nats" if o == 0 else "", traces, y_range="tozero"))
    return Grid(
        "log-ratio",
        "What the corner hides: the log-ratio under a total order",
        "A probability near 1 looks still, its log-ratio does not: DPO's widens as long as training runs, at a pace "
        "that beta sets, while IPO's stays at 2 / (3 tau).",
        tuple(cells),
        x_title="step of Adam",
        columns=COLUMNS,
        row_height=280,
    )


def _policies(study: Study) -> Table:
    rows = []
    for curves in study.curves:
        for u, tau in enumerate(curves.taus):
            dpo, ipo = (curves.mean_ROUA[-1, o, u].tolist() for o in (0, 1))
            optimum = curves.data.ipo_optimum(tau).tolist()
            rows.append([curves.data.key, f"{tau:g}", *(_shares(each) for each in (dpo, ipo, optimum))])
    return Table(
        "Policies at the end",
        "Probabilities of the actions a, b and c, means over ten seeds.",
        ("preferences", "tau", "DPO", "IPO", "IPO, closed form"),
        rows,
    )


def _limits(study: Study) -> Table:
    rows = [
        [
            limit.data,
            f"{limit.objective}, tau {limit.tau:g}",
            f"{limit.says} {limit.expected:.4g}",
            f"{limit.measured:.4g}",
            "holds" if limit.held else "does not hold",
        ]
        for limit in study.limits
    ]
    return Table(
        "Limits",
        "What theory says of these policies, and what came out.",
        ("preferences", "objective", "limit", "measured", ""),
        rows,
    )


def _line(steps: tuple[int, ...], values: list[float], name: str, colour: str, dash: str = "solid") -> go.Scatter:
    return go.Scatter(
        x=steps,
        y=[short(value) for value in values],
        name=name,
        mode="lines",
        line={"color": colour, "width": 1.2 if dash == "dot" else 1.8, "dash": dash},
        hovertemplate="%{y:.4g}",
    )


def _band(steps: tuple[int, ...], low: list[float], high: list[float], name: str, colour: str) -> list[go.Scatter]:
    return [
        go.Scatter(
            x=[*steps, *steps[::-1]],
            y=[short(value) for value in (*high, *low[::-1])],
            name=f"{name}, 95%",
            mode="lines",
            fill="toself",
            fillcolor=transparent(colour, 0.2),
            line={"width": 0},
            hoverinfo="skip",
        )
    ]


def _shares(values: list[float]) -> str:
    return " ".join(f"{value:.3f}".replace("0.", ".", 1) if value < 0.9995 else "1.000" for value in values)

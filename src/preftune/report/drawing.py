"""How figures are drawn: panels of cells that read on light and on dark ground.

One colour means one thing in every figure. Nothing but numbers from the run enters a figure: plotly reads its texts as
HTML, and data is not trusted with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

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
        x_format: d3 format of its ticks.
    """

    key: str
    title: str
    caption: str
    cells: tuple[Cell, ...]
    x_title: str = "training step"
    x_format: str = ""

    def figure(self) -> go.Figure:
        """The figure, without its title: the page has that."""
        figure = make_subplots(rows=len(self.cells), shared_xaxes=True, vertical_spacing=0.12)
        fill(figure, [(cell, row, 1) for row, cell in enumerate(self.cells, start=1)])
        figure.update_xaxes(title_text=self.x_title, tickformat=self.x_format, row=len(self.cells), col=1)
        return figure


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

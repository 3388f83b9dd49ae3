"""How figures are drawn: panels of cells that read on light and on dark ground.

One colour means one thing in every figure. Nothing but numbers from the run enters a figure: plotly reads its texts as
HTML, and data is not trusted with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

# Each has a contrast of at least 3.5 on white and on near-black.
TRAINING, HELD_OUT, OWN = "#868682", "#3a7fd5", "#8a68d8"
CHOSEN, REJECTED = "#0f9b78", "#dd6430"
TEXT, GRID = "#808080", "rgba(128,128,128,0.22)"

LEVEL = {"color": TEXT, "width": 1, "dash": "4px,4px"}
GAP = 0.12  # between cells one above the other, as a share of the height
_TITLE = {"font": {"size": 12}, "standoff": 8}
_AXIS = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True, "title": _TITLE}
X_AXIS: dict[str, Any] = {**_AXIS, "showgrid": False, "showline": True}
Y_AXIS: dict[str, Any] = {**_AXIS, "nticks": 6}


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
        x_range: "tozero" if it has to show zero.
    """

    key: str
    title: str
    caption: str
    cells: tuple[Cell, ...]
    x_title: str = "training step"
    x_format: str = ""
    x_range: Literal["normal", "tozero"] = "normal"

    @property
    def height(self) -> int:
        """Of a picture of it, in points."""
        return 560 if len(self.cells) > 1 else 400

    def plain(self) -> dict[str, Any]:
        """The figure as the plain values that plotly.js reads, without its title: the page has that.

        Building plotly's own objects, which check every value, takes ten times as long.
        """
        count, shown = len(self.cells), set[str]()
        layout: dict[str, Any] = dressed(0)
        room = (1 - GAP * (count - 1)) / count
        data, levels = [], []
        for place, cell in enumerate(self.cells):
            axis, top = str(place + 1) if place else "", 1 - place * (room + GAP)
            for trace in cell.traces:
                values = trace.to_plotly_json()
                legend = {"legendgroup": values["name"], "showlegend": values["name"] not in shown}
                shown.add(values["name"])
                data.append({**values, **legend, "xaxis": "x", "yaxis": f"y{axis}"})
            if cell.level is not None:
                ends = {"x0": 0, "x1": 1, "y0": cell.level, "y1": cell.level}
                levels.append({"type": "line", "xref": "paper", "yref": f"y{axis}", "line": LEVEL, **ends})
            layout[f"yaxis{axis}"] = {
                **Y_AXIS,
                "title": {**Y_AXIS["title"], "text": cell.y_title},
                "tickformat": cell.y_format,
                "rangemode": cell.y_range,
                "domain": [max(0.0, top - room), top],
            }
        layout["xaxis"] = {
            **X_AXIS,
            "title": {**X_AXIS["title"], "text": self.x_title},
            "tickformat": self.x_format,
            "rangemode": self.x_range,
            "anchor": f"y{count if count > 1 else ''}",
        }
        return {"data": data, "layout": {**layout, "shapes": levels, "showlegend": len(shown) > 1}}

    def figure(self) -> go.Figure:
        """The same as plotly's object."""
        return go.Figure(self.plain())


def fill(figure: go.Figure, places: Sequence[tuple[Cell, int, int]]) -> None:
    """Put cells into the grid, each name once into the legend, and dress the figure."""
    seen: set[str] = set()
    for cell, row, column in places:
        for trace in cell.traces:
            trace.update(legendgroup=trace.name, showlegend=trace.name not in seen)
            seen.add(trace.name)
            figure.add_trace(trace, row=row, col=column)
        if cell.level is not None:
            figure.add_hline(cell.level, line=LEVEL, row=row, col=column)
        figure.update_yaxes(
            title_text=cell.y_title, tickformat=cell.y_format, rangemode=cell.y_range, row=row, col=column
        )
    figure.update_xaxes(X_AXIS)
    figure.update_yaxes(Y_AXIS)
    figure.update_layout(dressed(len(seen)), template="none")


def dressed(names: int) -> dict[str, Any]:
    """The layout that all figures share.

    Args:
        names: how many the legend would have; it is left out for a single one.
    """
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": TEXT},
        "margin": {"l": 56, "r": 12, "t": 12, "b": 40},
        "hovermode": "x unified",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "showlegend": names > 1,
    }


def transparent(colour: str, alpha: float) -> str:
    """A colour (#rrggbb) that lets what is behind it through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def short(value: float) -> float:
    """Six significant digits: what a figure can show, at half the size of the page."""
    return float(f"{value:.6g}")

"""The page of a study: one HTML file that needs nothing else, in the dress of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from preftune.report.drawing import Panel, fill
from preftune.report.html import environment, for_script, plotly, sha256, text_of


@dataclass(frozen=True)
class Grid(Panel):
    """A panel whose cells stand in columns, filled row by row; rows share their y axis, columns their x axis.

    Attributes:
        columns: title of each column.
        row_height: of a row of cells, in pixels.
        legend_rows: how many rows its names take.
    """

    columns: tuple[str, ...] = ("",)
    row_height: int = 190
    legend_rows: int = 1

    @property
    def height(self) -> int:
        """Of the figure, in pixels."""
        return 40 + self._top + self.row_height * self.rows

    @property
    def _top(self) -> int:
        """Room for legend and titles, in pixels."""
        return 50 + 20 * self.legend_rows

    @property
    def rows(self) -> int:
        """Number of rows of cells."""
        return len(self.cells) // len(self.columns)

    def plain(self) -> dict[str, Any]:
        """The figure as the plain values that plotly.js reads."""
        values: dict[str, Any] = self.figure().to_plotly_json()
        return values

    def figure(self) -> go.Figure:
        """The figure, without its title: the page has that."""
        count = len(self.columns)
        figure = make_subplots(
            rows=self.rows,
            cols=count,
            shared_xaxes=True,
            shared_yaxes="rows",
            vertical_spacing=0.12 / self.rows,
            horizontal_spacing=0.04,
            column_titles=self.columns,
        )
        fill(figure, [(cell, i // count + 1, i % count + 1) for i, cell in enumerate(self.cells)])
        figure.update_xaxes(title_text=self.x_title, row=self.rows)
        figure.update_layout(margin={"t": self._top}, legend={"y": 1, "yref": "container", "yanchor": "top"})
        return figure


@dataclass(frozen=True)
class Table:
    """A table with its words.

    Attributes:
        title: what it shows.
        lead: how to read it.
        header: names of the columns.
        rows: texts, as many in each row as the header has; the first names the row.
    """

    title: str
    lead: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """What a study says. Its texts are the study's own, never a stranger's.

    Attributes:
        title: of the page.
        source: whose experiment it is.
        headline: what came out, in one sentence.
        paragraphs: what more there is to say.
        figures: in reading order.
        tables: in reading order.
        command: how to run it again.
    """

    title: str
    source: str
    headline: str
    paragraphs: Sequence[str]
    figures: Sequence[Grid]
    tables: Sequence[Table]
    command: str

    def write(self, path: Path) -> None:
        """Write the page, over one that is there."""
        plotly_js, page_js = plotly(), text_of("page.js")
        content = (
            environment()
            .get_template("study.html.jinja")
            .render(
                page=self,
                figures=for_script(list(self.figures)),
                css=Markup(text_of("page.css")),
                plotly_js=Markup(plotly_js),
                page_js=Markup(page_js),
                script_hashes=" ".join(f"'sha256-{sha256(script)}'" for script in (plotly_js, page_js)),
            )
        )
        path.write_text(content, encoding="utf-8", newline="\n")

"""Small line charts as SVG text: the same bytes on every machine, legible on light and on dark ground.

Coordinates are rounded to a tenth of a pixel, so that the last bits of a float do not show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from preftune.report.drawing import TEXT

Place = Callable[[float], float]

WIDTH, HEIGHT = 360, 230  # of one chart, in pixels
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 44, 40
GRID = f'stroke="{TEXT}" stroke-opacity="0.22"'


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: for the legend.
        colour: #rrggbb.
        y: its values, as many as the chart has places on the x axis; those that are not finite are left out.
        dashed: so that it can be told from one that it covers.
    """

    name: str
    colour: str
    y: NDArray[np.float64]
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A pair of axes with curves.

    Attributes:
        title: what it shows.
        x_title: what the x axis shows, with its unit.
        x: places on the x axis, rising.
        lines: the curves.
    """

    title: str
    x_title: str
    x: NDArray[np.float64]
    lines: tuple[Line, ...]


def drawing(charts: Sequence[Chart], label: str) -> str:
    """Charts side by side, as the text of an SVG file.

    Args:
        charts: from left to right.
        label: what is drawn, for those who do not see it.
    """
    width = WIDTH * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(label, {chr(34): "&quot;"})}" font-family="system-ui, sans-serif" '
        f'font-size="11" fill="{TEXT}">'
    ]
    for index, chart in enumerate(charts):
        parts += [f'<g transform="translate({index * WIDTH} 0)">', *_chart(chart), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in [low, high]: a step of 1, 2 or 5 times a power of ten, and at most so many."""
    power = math.floor(math.log10((high - low) / most))
    step = next(
        step
        for exponent in (power, power + 1, power + 2)
        for step in (10.0**exponent, 2 * 10.0**exponent, 5 * 10.0**exponent)
        if math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) < most
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _chart(chart: Chart) -> list[str]:
    low, high = _span(chart)
    x_low, x_high = float(chart.x[0]), float(chart.x[-1])

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="14" font-size="12" font-weight="600">{escape(chart.title)}</text>']
    for tick in ticks(low, high):
        y = _place(down(tick))
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" {GRID}/>')
        parts.append(f'<text x="{LEFT - 6}" y="{_place(down(tick) + 4)}" text-anchor="end">{_number(tick)}</text>')
    for tick in ticks(x_low, x_high, most=9):
        x = _place(across(tick))
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_number(tick)}</text>')
        if tick == 0:
            parts.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}" {GRID} stroke-dasharray="4 4"/>')
    middle = _place((LEFT + WIDTH - RIGHT) / 2)
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x_title)}</text>')
    at = LEFT
    for line in chart.lines:
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        stroke = f'fill="none" stroke="{line.colour}" stroke-width="2"{dashes}'
        parts += [f'<path d="{path}" {stroke}/>' for path in _paths(chart.x, line.y, across, down)]
        if line.name:
            parts.append(f'<path d="M{at} 30h16" {stroke}/><text x="{at + 21}" y="34">{escape(line.name)}</text>')
            at += 34 + 6 * len(line.name)
    return parts


def _span(chart: Chart) -> tuple[float, float]:
    """Lowest and highest value to show, with a little air."""
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in chart.lines])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    air = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - air, high + air


def _paths(x: NDArray[np.float64], y: NDArray[np.float64], across: Place, down: Place) -> list[str]:
    """The path of each run of finite values."""
    finite = np.isfinite(y)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(int)))
    return [
        "M" + "L".join(f"{_place(across(x[i]))} {_place(down(y[i]))}" for i in range(start, end))
        for start, end in pairwise(edges)
        if finite[start]
    ]


def _place(value: float) -> str:
    """A coordinate; the shift keeps exact ties, which straight lines have, off the border of rounding."""
    return f"{value + 1e-6:.1f}".removesuffix(".0")


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "\u2212")

"""Gains and losses as SVG text: bars from zero, and a heat map. Legible on light and on dark ground."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from preftune.report.drawing import CHOSEN, REJECTED, TEXT

ROW, LETTER, TITLE = 24, 6.4, 36  # height of a row, width of a letter, room for the title, in pixels
CELL, BAR = 84, 420  # width of a cell, and of all bars
INK = "#161616"  # on cells, which are light on any ground


def bars(title: str, rows: Sequence[tuple[str, float]], unit: str) -> str:
    """Bars from zero to either side, one for each row.

    Args:
        title: what is shown, and whose figures they are.
        rows: names and gains.
        unit: of the gains.

    Returns:
        The text of an SVG file.
    """
    left = _left([name for name, _ in rows])
    low, high = min(0.0, *(value for _, value in rows)), max(0.0, *(value for _, value in rows))
    # room for the numbers at the ends of bars on either side
    scale = (BAR - 2 * 52) / ((high - low) or 1.0)
    zero = left + 52 - low * scale
    parts = _opening(title, left + BAR, TITLE + ROW * len(rows) + 22)
    for number, (name, value) in enumerate(rows):
        y, length = TITLE + ROW * number, abs(value) * scale
        start = zero if value >= 0 else zero - length
        colour = CHOSEN if value >= 0 else REJECTED
        at, anchor = (zero + length + 5, "start") if value >= 0 else (zero - length - 5, "end")
        parts += [
            f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{start:.1f}" y="{y + 4}" width="{length:.1f}" height="{ROW - 8}" fill="{colour}"/>',
            f'<text x="{at:.1f}" y="{y + 16}" text-anchor="{anchor}">{_signed(value)}</text>',
        ]
    bottom = TITLE + ROW * len(rows)
    parts.append(f'<path d="M{zero:.1f} {TITLE}V{bottom}" stroke="{TEXT}"/>')
    parts.append(f'<text x="{zero:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(unit)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def heat_map(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """A cell for each row and column, green for a gain and orange for a loss, the stronger the larger.

    Args:
        title: what is shown, and whose figures they are.
        columns: their names.
        rows: names, and gains in the order of the columns.

    Returns:
        The text of an SVG file.
    """
    left = _left([name for name, _ in rows])
    most = max(abs(value) for _, values in rows for value in values) or 1.0
    parts = _opening(title, left + CELL * len(columns) + 8, TITLE + ROW * (len(rows) + 1) + 8)
    for place, column in enumerate(columns):
        middle = left + CELL * place + CELL / 2
        parts.append(f'<text x="{middle:g}" y="{TITLE + 16}" text-anchor="middle">{escape(column)}</text>')
    for number, (name, values) in enumerate(rows, 1):
        y = TITLE + ROW * number
        parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        for place, value in enumerate(values):
            x, colour = left + CELL * place, _tint(CHOSEN if value >= 0 else REJECTED, 0.06 + 0.84 * abs(value) / most)
            parts += [
                f'<rect x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{ROW - 2}" fill="{colour}"/>',
                f'<text x="{x + CELL / 2:g}" y="{y + 16}" text-anchor="middle" fill="{INK}">{_signed(value)}</text>',
            ]
    return "\n".join([*parts, "</svg>", ""])


def _opening(title: str, width: float, height: float) -> list[str]:
    label = escape(title, {'"': "&quot;"})
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{label}" font-family="system-ui, sans-serif" font-size="11" '
        f'fill="{TEXT}">',
        f'<text x="8" y="18" font-size="12" font-weight="600">{escape(title)}</text>',
    ]


def _left(names: Sequence[str]) -> int:
    return round(16 + LETTER * max(len(name) for name in names))


def _tint(colour: str, strength: float) -> str:
    """A colour (#rrggbb) mixed with white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + strength * (part - 255)):02x}" for part in parts)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")

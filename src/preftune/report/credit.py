"""credit.jsonl as heat maps: the credit of each token, chosen beside rejected, and the reward that adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from preftune.report.drawing import CHOSEN, REJECTED, Cell, Panel, short
from preftune.report.samples import plain_text
from preftune.report.thinning import extremes
from preftune.report.values import mapping, number, show_change

LEVELS = 8  # shades of each colour
SHOWN, PAIRS = 1000, 24  # tokens of one response, and pairs; the rest stays in the file
DECISIVE = 3  # tokens of each response that are named
SIDES = (("chosen", CHOSEN), ("rejected", REJECTED))


@dataclass(frozen=True)
class Token:
    """A token with its shade.

    Attributes:
        text: a stranger's.
        shade: class of its colour: "p8" for the most credit on the page, "n8" for the most blame, "masked" if it does
            not count.
    """

    text: str
    shade: str


@dataclass(frozen=True)
class Side:
    """One response of a pair.

    Attributes:
        name: "chosen" or "rejected".
        tokens: in order.
        figures: credit, log-probability and the reference's of each token, as numbers with commas; empty where missing.
        reward: sum of its credit.
        decisive: the tokens with the largest credit or blame, with it.
        left_out: tokens beyond those shown.
    """

    name: str
    tokens: Sequence[Token]
    figures: Sequence[str]
    reward: str
    decisive: Sequence[tuple[str, str, str]]
    left_out: int


@dataclass(frozen=True)
class Pair:
    """A held-out pair.

    Attributes:
        row: of the data.
        prompt: a stranger's text.
        sides: chosen and rejected.
        words: what decides it.
        panel: cumulative reward along both responses.
    """

    row: str
    prompt: str
    sides: Sequence[Side]
    words: str
    panel: Panel | None


def pairs(credit: Sequence[dict[str, Any]]) -> list[Pair]:
    """All pairs of the file that have credit; shades are of one scale over all of them."""
    values = sorted(
        abs(value) for row in credit for name, _ in SIDES for value in _credit(mapping(row.get(name))) if value
    )
    largest = values[int(0.98 * (len(values) - 1))] if values else 1.0  # one token out of scale must not pale the rest
    found = []
    for index, row in enumerate(credit[:PAIRS]):
        sides = [side for name, _ in SIDES if (side := _side(name, mapping(row.get(name)), largest)) is not None]
        if not sides:
            continue
        number_of_row = number(row.get("row"))
        found.append(
            Pair(
                f"{number_of_row:.0f}" if number_of_row is not None else str(index + 1),
                plain_text(row.get("prompt")),
                sides,
                _verdict(row),
                _panel(row, f"credit-{index}"),
            )
        )
    return found


def _side(name: str, values: dict[str, Any], largest: float) -> Side | None:
    tokens, credit = values.get("tokens"), _credit(values)
    if not isinstance(tokens, list) or not tokens:
        return None
    credit = (credit + [None] * len(tokens))[: len(tokens)]
    shown = [Token(plain_text(token), _shade(own, largest)) for token, own in zip(tokens[:SHOWN], credit, strict=False)]
    given = (credit, *(_numbers(values.get(key), len(tokens)) for key in ("logps", "reference_logps")))
    figures = [",".join("" if value is None else f"{value:.3g}" for value in column[:SHOWN]) for column in given]
    strongest = sorted(((abs(own), i) for i, own in enumerate(credit) if own), reverse=True)[:DECISIVE]
    decisive = [
        (plain_text(tokens[i]).strip() or "␣", show_change(credit[i]), _shade(credit[i], largest)) for _, i in strongest
    ]
    reward = show_change(sum(value or 0.0 for value in credit))
    return Side(name, shown, figures, reward, decisive, max(0, len(tokens) - SHOWN))


def _verdict(row: dict[str, Any]) -> str:
    sums = {name: sum(value or 0.0 for value in _credit(mapping(row.get(name)))) for name, _ in SIDES}
    if any(not _credit(mapping(row.get(name))) for name, _ in SIDES):
        return ""
    margin = sums["chosen"] - sums["rejected"]
    way = "ranked rightly" if margin > 0 else "ranked wrongly" if margin < 0 else "a tie"
    return f"margin {show_change(margin)}, {way}"


def _panel(row: dict[str, Any], key: str) -> Panel | None:
    traces = []
    for name, colour in SIDES:
        credit = _credit(mapping(row.get(name)))
        if not credit:
            continue
        sums = [0.0, *accumulate(value or 0.0 for value in credit)]
        drawn = extremes(sums)
        traces.append(
            go.Scatter(
                x=drawn,
                y=[short(sums[i]) for i in drawn],
                name=name,
                mode="lines",
                line={"color": colour, "width": 2, "shape": "hv"},
                hovertemplate="%{y:.3g}",
            )
        )
    if not traces:
        return None
    return Panel(
        key,
        "Reward along the response",
        "Credit added up from the first token on: a jump marks a token that decides.",
        (Cell("reward so far", traces, level=0.0),),
        x_title="tokens",
    )


def _credit(values: dict[str, Any]) -> list[float | None]:
    given = values.get("credit")
    return [number(value) for value in given] if isinstance(given, list) else []


def _numbers(given: Any, count: int) -> list[float | None]:
    found = [number(value) for value in given[:count]] if isinstance(given, list) else []
    return found + [None] * (count - len(found))


def _shade(credit: float | None, largest: float) -> str:
    if credit is None:
        return "masked"
    level = min(LEVELS, round(LEVELS * abs(credit) / largest))
    return f"{'p' if credit > 0 else 'n'}{level}" if level else "zero"

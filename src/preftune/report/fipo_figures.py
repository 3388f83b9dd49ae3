"""The figures of FIPO in small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from preftune.report.drawing import CHOSEN, HELD_OUT, OWN, REJECTED, TRAINING, Cell, short
from preftune.report.study import Grid
from preftune.sandbox.tasks import SEEN, UNSEEN
from preftune.studies.fipo.baselines import BASELINES
from preftune.studies.fipo.form import DECODINGS, STRATEGIES, TEACHERS, Decoding
from preftune.studies.fipo.rewrites import KINDS
from preftune.studies.fipo.tables import accuracy, some

if TYPE_CHECKING:
    from preftune.studies.fipo.study import Found

OF_DECODINGS = dict(zip(DECODINGS, (CHOSEN, REJECTED), strict=True))
OF_KINDS = dict(zip(KINDS, (CHOSEN, OWN, REJECTED, TRAINING, HELD_OUT), strict=True))
WORDINGS = {"naive": REJECTED, "plan 1": TRAINING, "plan 2": CHOSEN, "plan 3": OWN}
# Names that fit below a mark.
SHORT = {**{key: key for key in BASELINES}, "chosen": "SFT, chosen", "shuffled": "DPO, shuffled"}
_HEIGHT = 190  # of a row of cells, in pixels


def figures(found: Found) -> list[Grid]:
    """Accuracy by strategy, what each writes, and what the generators can do at all."""
    return [_accuracy(found), _kinds(found), _grounds(found)]


def _accuracy(found: Found) -> Grid:
    keys, cells = [*BASELINES, *found.form.strategies], []
    for teacher in found.form.teachers:
        for generators, name in (([UNSEEN], "unseen"), (list(SEEN), "seen")):
            naive = accuracy(some(found.lines, "naive", "greedy"), generators).value
            traces = [_by_strategy(found, keys, teacher, decoding, generators) for decoding in DECODINGS]
            title = f"{TEACHERS[teacher].name}, {name}"
            cells.append(Cell(title, traces, level=naive, y_format=".0%", y_range="tozero"))
    return Grid(
        "accuracy",
        "Test questions answered right",
        "For each teacher: each optimiser's prompts, answered by the generator that it never saw, and by those whose "
        "answers made the preferences; dashed: naive prompts. Bars are 95% t-intervals over seeds.",
        tuple(cells),
        x_title="",
        row_height=_HEIGHT,
    )


def _by_strategy(
    found: Found, keys: Sequence[str], teacher: str, decoding: Decoding, generators: Sequence[str]
) -> go.Scatter:
    shown = [key for key in keys if some(found.lines, key, decoding, "test", teacher)[0].decoding == decoding]
    means = [accuracy(some(found.lines, key, decoding, "test", teacher), generators) for key in shown]
    halves = [short(one.half) if one.n > 1 else 0 for one in means]
    return _marks([_name(key) for key in shown], [one.value for one in means], decoding, OF_DECODINGS[decoding], halves)


def _kinds(found: Found) -> Grid:
    keys, cells = found.form.strategies, []
    for teacher in found.form.teachers:
        for decoding in DECODINGS:
            traces = []
            for kind, colour in OF_KINDS.items():
                shares = [
                    float(np.mean([line.share(kind) for line in some(found.lines, key, decoding, "test", teacher)]))
                    for key in keys
                ]
                traces.append(_marks([_name(key) for key in keys], shares, kind, colour))
            title = f"{TEACHERS[teacher].name}, {decoding}"
            cells.append(Cell(title, traces, y_format=".0%", y_range="tozero"))
    return Grid(
        "kinds",
        "What optimisers write",
        "Shares of their rewrites: plans that both of the generators understand whose answers made the preferences, "
        "plans that one of them does, idle words, naive prompts as they were, and slips.",
        tuple(cells),
        x_title="",
        row_height=_HEIGHT,
    )


def _grounds(found: Found) -> Grid:
    cells = []
    for number, wordings in enumerate(found.grounds.values()):
        traces = [
            _marks(list(wordings[wording]), list(wordings[wording].values()), wording, colour)
            for wording, colour in WORDINGS.items()
        ]
        cells.append(Cell("right" if not number else "", traces, level=0.1, y_format=".0%", y_range="tozero"))
    return Grid(
        "grounds",
        "What each generator can do, by family and wording",
        "The same questions, asked naively and under each plan; dashed: one digit in ten. The control was trained on "
        "answers without steps.",
        tuple(cells),
        x_title="",
        columns=tuple(found.grounds),
        row_height=_HEIGHT,
    )


def _name(key: str) -> str:
    return SHORT.get(key) or STRATEGIES[key].name


def _marks(x: Sequence[str], y: Sequence[float], name: str, colour: str, halves: Sequence[float] = ()) -> go.Scatter:
    return go.Scatter(
        x=list(x),
        y=[short(value) for value in y],
        name=name,
        mode="markers",
        marker={"color": colour, "size": 9},
        error_y={"type": "data", "array": list(halves), "thickness": 1.5, "width": 4} if halves else None,
        hovertemplate="%{y:.1%}",
    )

"""Landscapes of losses: what learners draw to see how objectives differ, and what beta and tau do.

Each function gives a figure and the numbers in it. All values come from calling the objectives (`report.slices`), on
pairs in which chosen gains what rejected loses where nothing else is said. Arrays carry their shape: V values of the
field that is swept, D places of delta, T steps, B values on an axis.

Example:
    >>> figure, data = over_delta(Sweep("dpo", "beta", (0.1, 1.0)), delta=(-1.0, 0.0, 1.0))
    >>> data["loss_VD"].round(4).tolist()
    [[0.7444, 0.6931, 0.6444], [1.3133, 0.6931, 0.3133]]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from preftune.objectives import registry
from preftune.objectives.base import Objective
from preftune.objectives.modifiers import Modified
from preftune.report.drawing import CHOSEN, HELD_OUT, OWN, REJECTED, TRAINING, Cell, fill, short
from preftune.report.slices import Array, along_delta, at

Data = Mapping[str, Array]
Drawn = tuple[go.Figure, Data]

COLOURS = (HELD_OUT, REJECTED, CHOSEN, OWN, TRAINING)
DASHES = ("solid", "dash", "dot")  # by which lines beyond the last colour are told apart


@dataclass(frozen=True)
class Sweep:
    """An objective at several values of one field.

    Attributes:
        objective: by name, as in a config (`package.module:Class` for one of your own), or one with other fields set.
        field: the one that is swept.
        values: its values, as many as there are to be lines.
    """

    objective: str | Objective
    field: str
    values: Sequence[float]

    @property
    def name(self) -> str:
        """Of the objective."""
        return registry.terms(self.objective)[0].name

    @property
    def labels(self) -> list[str]:
        """Of the lines."""
        return [f"{self.field} = {value:g}" for value in self.values]

    def objectives(self) -> list[Objective]:
        """One for each value.

        Raises:
            PreftuneError: if there is no such objective.
            TypeError: if it has no such field.
            ValueError: if it refuses a value.
        """
        (term,) = registry.terms(self.objective)
        return [_with(term.objective, self.field, value) for value in self.values]


DPO_BETAS = Sweep("dpo", "beta", (0.05, 0.1, 0.5, 1.0))
IPO_TAUS = Sweep("ipo", "tau", (0.05, 0.1, 0.5, 1.0))
BETAS = tuple(np.geomspace(0.01, 1, 61).tolist())
TAUS = BETAS
DELTAS = tuple(np.linspace(-10, 10, 161).tolist())
RATIOS = tuple(np.linspace(-10, 10, 61).tolist())

_TICKS = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
_LOG = {"type": "log", "tickmode": "array", "tickvals": _TICKS, "ticktext": [f"{tick:g}" for tick in _TICKS]}


def over_delta(sweep: Sweep = DPO_BETAS, delta: ArrayLike = DELTAS) -> Drawn:
    """Loss, gradient, and (on a logarithmic axis) size of the gradient over delta, a line for each value.

    Args:
        sweep: objective and values.
        delta: places, in nats, rising; shape D.

    Returns:
        The figure, and `value_V`, `delta_D`, `loss_VD`, `gradient_VD`, `gradient_size_VD`.
    """
    places, values = _array(delta), [along_delta(each, delta) for each in sweep.objectives()]
    data = {
        "value_V": _array(sweep.values),
        "delta_D": places,
        "loss_VD": np.stack([each.loss for each in values]),
        "gradient_VD": np.stack([each.gradient for each in values]),
    }
    data["gradient_size_VD"] = np.abs(data["gradient_VD"])
    cells = [
        _cell(f"{sweep.name} loss", places, data["loss_VD"], sweep.labels),
        _cell("gradient", places, data["gradient_VD"], sweep.labels, level=0.0),
        _cell("size of the gradient", places, data["gradient_size_VD"], sweep.labels),
    ]
    figure = _grid(cells, 1, "delta, nats")
    sizes = data["gradient_size_VD"][data["gradient_size_VD"] > 0]
    if sizes.size:  # a gradient that turns has no smallest size on this axis
        lowest = max(sizes.min(), 1e-6 * sizes.max())
        figure.update_yaxes(type="log", range=np.log10([lowest / 1.5, sizes.max() * 1.5]), nticks=6, row=3)
    return figure, data


def side_by_side(left: Sweep = DPO_BETAS, right: Sweep = IPO_TAUS, delta: ArrayLike = DELTAS) -> Drawn:
    """Two objectives beside each other, loss above gradient, each on axes of its own: their scales do not compare.

    Args:
        left: objective and values of the left column.
        right: the same of the right one.
        delta: places, in nats, rising; shape D.

    Returns:
        The figure, and `delta_D`; `value_V`, `loss_VD`, `gradient_VD` of each, after `left_` and `right_`.
    """
    found = [over_delta(sweep, delta)[1] for sweep in (left, right)]
    cells = []
    for key, title in (("loss_VD", "loss"), ("gradient_VD", "gradient")):
        for sweep, each in zip((left, right), found, strict=True):
            level, labels = 0.0 if title == "gradient" else None, [f"{sweep.name}, {label}" for label in sweep.labels]
            cells.append(_cell(f"{sweep.name} {title}", _array(delta), each[key], labels, level=level))
    data = {
        f"{side}_{key}": each[key]
        for side, each in zip(("left", "right"), found, strict=True)
        for key in ("value_V", "loss_VD", "gradient_VD")
    }
    return _grid(cells, 2, "delta, nats"), {"delta_D": _array(delta), **data}


def sensitivity(
    objective: str | Objective = "dpo",
    field: str = "beta",
    values: Sequence[float] = BETAS,
    delta: ArrayLike = (-5.0, 0.0, 1.0, 5.0, 20.0),
) -> Drawn:
    """Loss and gradient over a field, on a logarithmic axis, at fixed places: what it does to pairs near and far.

    Args:
        objective: by name, or one with other fields set.
        field: the one on the axis.
        values: its values, above 0 and rising; shape V.
        delta: fixed places, in nats, a line for each; shape D.

    Returns:
        The figure, and `value_V`, `delta_D`, `loss_DV`, `gradient_DV`.
    """
    sweep, places = Sweep(objective, field, values), _array(delta)
    found = [along_delta(each, places) for each in sweep.objectives()]
    data = {
        "value_V": _array(values),
        "delta_D": places,
        "loss_DV": np.stack([each.loss for each in found], axis=1),
        "gradient_DV": np.stack([each.gradient for each in found], axis=1),
    }
    labels = [f"delta = {place:g}" for place in places]
    cells = [
        _cell(f"{sweep.name} loss", data["value_V"], data["loss_DV"], labels),
        _cell("gradient", data["value_V"], data["gradient_DV"], labels, level=0.0),
    ]
    return _logarithmic(_grid(cells, 1, field)), data


def descent(
    sweep: Sweep = DPO_BETAS, rate: float = 0.1, steps: int = 400, start: tuple[float, float] = (0.0, 0.0)
) -> Drawn:
    """Delta and loss under gradient descent on the two log-ratios of a pair.

    Args:
        sweep: objective and values.
        rate: learning rate of both log-ratios.
        steps: of gradient descent.
        start: log-ratios of chosen and of rejected, in nats.

    Returns:
        The figure, and `value_V`, `step_T` (0 to `steps`), `delta_VT`, `loss_VT`.
    """
    paths = [_path(each, rate, steps, start) for each in sweep.objectives()]
    data = {
        "value_V": _array(sweep.values),
        "step_T": np.arange(steps + 1, dtype=np.float64),
        "delta_VT": np.stack([delta for delta, _ in paths]),
        "loss_VT": np.stack([loss for _, loss in paths]),
    }
    cells = [
        _cell("delta, nats", data["step_T"], data["delta_VT"], sweep.labels),
        _cell(f"{sweep.name} loss", data["step_T"], data["loss_VT"], sweep.labels),
    ]
    return _grid(cells, 1, "step of gradient descent"), data


def target(objective: str | Objective = "ipo", field: str = "tau", values: Sequence[float] = TAUS) -> Drawn:
    """Where the loss is least along delta, over a field, on logarithmic axes; for IPO this is 1 / (2 tau).

    Args:
        objective: by name, or one with other fields set.
        field: the one on the axis.
        values: its values, above 0 and rising; shape V.

    Returns:
        The figure, and `value_V`, `target_V`: the delta above 0 at which the gradient turns from falling to rising; NaN
        where it does not.
    """
    sweep = Sweep(objective, field, values)
    data = {"value_V": _array(values), "target_V": _array([_minimum(each) for each in sweep.objectives()])}
    cell = _cell("delta at the minimum, nats", data["value_V"], data["target_V"][None], [sweep.name])
    figure = _logarithmic(_grid([cell], 1, field))
    figure.update_yaxes(**_LOG)
    return figure, data


def probability(sweep: Sweep = DPO_BETAS, delta: ArrayLike = DELTAS) -> Drawn:
    """Probability that the policy's rewards give to the label, sigmoid of the margin, over delta.

    Args:
        sweep: objective and values.
        delta: places, in nats, rising; shape D.

    Returns:
        The figure, and `value_V`, `delta_D`, `probability_VD`.
    """
    margin_VD = np.stack([along_delta(each, delta).margin for each in sweep.objectives()])
    data = {
        "value_V": _array(sweep.values),
        "delta_D": _array(delta),
        "probability_VD": 0.5 * (1 + np.tanh(margin_VD / 2)),  # the sigmoid, without overflow
    }
    cell = _cell("probability of the label", data["delta_D"], data["probability_VD"], sweep.labels, level=0.5)
    return _grid([cell], 1, "delta, nats"), data


def variants(
    objectives: Sequence[str | Objective] = ("dpo", "robust_dpo", "kl_dpo"),
    field: str = "beta",
    values: Sequence[float] = BETAS,
    delta: float = 10.0,
) -> Drawn:
    """Several objectives over a field that they share: loss and gradient at a fixed delta, and where each has its least
    loss.

    Args:
        objectives: by name, or with other fields set; shape V.
        field: the one on the axis, such as beta.
        values: its values, above 0 and rising; shape B.
        delta: the fixed place, in nats.

    Returns:
        The figure, and `value_B`, `loss_VB`, `gradient_VB`, `target_VB` (NaN where there is no finite minimum).
    """
    sweeps = [Sweep(each, field, values) for each in objectives]
    found = [[along_delta(each, [delta]) for each in sweep.objectives()] for sweep in sweeps]
    data = {
        "value_B": _array(values),
        "loss_VB": _array([[each.loss[0] for each in row] for row in found]),
        "gradient_VB": _array([[each.gradient[0] for each in row] for row in found]),
        "target_VB": _array([[_minimum(each) for each in sweep.objectives()] for sweep in sweeps]),
    }
    labels = [sweep.name for sweep in sweeps]
    cells = [
        _cell(f"loss at delta {delta:g}", data["value_B"], data["loss_VB"], labels),
        _cell(f"gradient at delta {delta:g}", data["value_B"], data["gradient_VB"], labels, level=0.0),
        _cell("delta at the minimum, nats", data["value_B"], data["target_VB"], labels),
    ]
    figure = _logarithmic(_grid(cells, 1, field))
    figure.update_yaxes(**_LOG, row=3)
    return figure, data


def heat_map(
    objective: str | Objective = "kl_dpo",
    chosen: ArrayLike = RATIOS,
    rejected: ArrayLike = RATIOS,
) -> Drawn:
    """Loss over the two log-ratios, for objectives whose loss is no function of their difference.

    Args:
        objective: by name, or one with fields set.
        chosen: log-ratios of chosen, in nats, rising; shape C.
        rejected: log-ratios of rejected, in nats, rising; shape J.

    Returns:
        The figure, and `chosen_C`, `rejected_J`, `loss_JC`, `chosen_gradient_JC`, `rejected_gradient_JC`.
    """
    (term,) = registry.terms(objective)
    across, up = _array(chosen), _array(rejected)
    values = at(term.objective, across[None, :], up[:, None])
    data = {
        "chosen_C": across,
        "rejected_J": up,
        "loss_JC": values.loss,
        "chosen_gradient_JC": values.chosen_gradient,
        "rejected_gradient_JC": values.rejected_gradient,
    }
    map_ = go.Contour(
        x=across,
        y=up,
        z=[[short(value) for value in row] for row in values.loss],
        name=f"{term.name} loss",
        colorscale="Cividis",
        contours={"coloring": "heatmap", "showlines": True},
        line={"width": 0.5, "color": "rgba(255,255,255,0.5)"},
        ncontours=20,
        colorbar={"title": {"text": "loss"}, "outlinewidth": 0, "thickness": 14},
        hovertemplate="chosen %{x:.3g}, rejected %{y:.3g}: %{z:.4g}",
    )
    figure = make_subplots()
    fill(figure, [(Cell("log-ratio of rejected, nats", [map_]), 1, 1)])
    for draw in (figure.add_hline, figure.add_vline):
        draw(0, line={"color": "white", "width": 1, "dash": "4px,4px"})
    figure.update_xaxes(title_text="log-ratio of chosen, nats")
    figure.update_layout(height=460, hovermode="closest", margin={"t": 30})
    return figure, data


def _with(objective: Objective, field: str, value: float) -> Objective:
    if isinstance(objective, Modified):
        return replace(objective, inner=_with(objective.inner, field, value))
    return replace(objective, **{field: value})  # type: ignore[type-var]


def _path(objective: Objective, rate: float, steps: int, start: tuple[float, float]) -> tuple[Array, Array]:
    """Delta and loss before the first step and after each."""
    chosen, rejected = start
    deltas, losses = [], []
    for _ in range(steps + 1):
        here = at(objective, [chosen], [rejected])
        deltas.append(chosen - rejected)
        losses.append(here.loss[0])
        chosen -= rate * here.chosen_gradient[0]
        rejected -= rate * here.rejected_gradient[0]
    return _array(deltas), _array(losses)


def _minimum(objective: Objective, furthest: float = 1e5) -> float:
    """The least delta above 0 at which the gradient along delta turns from below 0 to above; NaN if there is none.

    A grid of powers finds where it turns, and finer grids between two places narrow that down.
    """
    places = np.concatenate([[0.0], np.geomspace(1e-4, furthest, 200)])
    for _ in range(9):
        gradient = along_delta(objective, places).gradient
        turns = np.flatnonzero((gradient[:-1] < 0) & (gradient[1:] >= 0))
        if not len(turns):
            return math.nan
        turn = turns[0]
        if gradient[turn + 1] == 0 and gradient[turn] > -1e-100:
            return math.nan  # it only fades, to less than a float can hold
        places = np.linspace(places[turn], places[turn + 1], 65)
    return float(places.mean())


def _array(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _cell(title: str, x: Array, rows: Array, labels: Sequence[str], level: float | None = None) -> Cell:
    """A line for each row; values that are not finite are left out."""
    traces = []
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        dash = DASHES[index // len(COLOURS) % len(DASHES)]
        traces.append(
            go.Scatter(
                x=x,
                y=[short(value) if math.isfinite(value) else None for value in row.tolist()],
                name=label,
                mode="lines",
                line={"color": COLOURS[index % len(COLOURS)], "width": 1.8, "dash": dash, "simplify": False},
                hovertemplate="%{y:.4g}",
            )
        )
    return Cell(title, traces, level=level, y_format="~g")


def _grid(cells: Sequence[Cell], columns: int, x_title: str) -> go.Figure:
    """Cells row by row, each with a y axis of its own; rows share their x axis, columns their legend."""
    rows = len(cells) // columns
    figure = make_subplots(
        rows=rows, cols=columns, shared_xaxes=True, vertical_spacing=0.2 / (rows + 1), horizontal_spacing=0.12
    )
    fill(figure, [(cell, i // columns + 1, i % columns + 1) for i, cell in enumerate(cells)])
    figure.update_xaxes(title_text=x_title, row=rows)
    figure.update_layout(height=120 + 200 * rows, margin={"t": 40})
    return figure


def _logarithmic(figure: go.Figure) -> go.Figure:
    figure.update_xaxes(**_LOG)
    return figure

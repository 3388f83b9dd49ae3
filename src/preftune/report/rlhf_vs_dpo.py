"""The page of the two roads side by side: what each takes, and where it leads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table as TerminalTable

from preftune.report.drawing import CHOSEN, HELD_OUT, OWN, REJECTED, TRAINING, Cell, short, transparent
from preftune.report.study import Grid, Page, Table
from preftune.sandbox.world import PARTS
from preftune.studies.frontier.statistics import mean

if TYPE_CHECKING:
    from preftune.studies.rlhf_vs_dpo import Compared, Look

COLOURS = {"DPO": CHOSEN, "RLHF": REJECTED}
OF_PARTS = (HELD_OUT, OWN, CHOSEN)
OF_STAGES = {"DPO": CHOSEN, "reward model": TRAINING, "PPO": REJECTED}
MB = 2**20


def write(found: Compared, out: Path, command: str) -> Path:
    """Write index.html."""
    page(found, command).write(out / "index.html")
    return out / "index.html"


def page(found: Compared, command: str) -> Page:
    """The study as a page."""
    seeds, form = len(found.form.seeds), found.form
    times = {road: mean([sum(s.training for s in found.stages if s.road == road and s.seed == n) for n in form.seeds])
             for road in COLOURS}  # fmt: skip
    ratio = times["RLHF"].value / times["DPO"].value
    rewards = {road: mean([look.reward for look in found.ends(road)]).value for road in COLOURS}
    return Page(
        title="RLHF and DPO, side by side",
        source="the built-in world; the comparison of Rafailov et al. 2023, arXiv 2305.18290",
        headline=f"From the same {form.pairs:,} pairs, reward model and PPO took {ratio:.1f} times DPO's training "
        f"time; true reward went to {rewards['RLHF']:.2f} with them and to {rewards['DPO']:.2f} with DPO.",
        paragraphs=(
            f"Means over {seeds} seed{'s' if seeds > 1 else ''}, each with pairs of its own, which both roads learn "
            "from; bands are 95% t-intervals. Each stage is a process of its own, started from its config file and "
            "watched from outside, on one thread. True reward and KL are measured on checkpoints afterwards, on "
            f"{form.samples} answers to each of 128 held-out prompts.",
            "At one strength each. How the two compare along the whole frontier between reward and KL, and against "
            "its exact optimum, is what preftune study frontier measures.",
        ),
        figures=(_over_time(found), _frontier(found), _parts(found), _memory(found)),
        tables=(_stages(found), _ends(found), _settings(found)),
        command=command,
    )


def show(found: Compared, path: Path, console: Console | None = None) -> None:
    """Print the tables, and where the page lies."""
    console = console or Console()
    for table in (_stages(found), _ends(found)):
        shown = TerminalTable(*table.header, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(f"figures: {path}", markup=False, highlight=False, soft_wrap=True)


def _over_time(found: Compared) -> Grid:
    values: Sequence[tuple[str, Callable[[Look], float]]] = (
        ("true reward", lambda look: look.reward),
        ("KL from the start, nats", lambda look: look.kl),
        ("grammatical answers", lambda look: look.grammatical),
    )
    cells = []
    for title, value in values:
        traces = []
        for road, colour in COLOURS.items():
            x = [mean([look.seconds for look in looks]).value for looks in _by_step(found, road)]
            traces += _curve(x, [[value(look) for look in looks] for looks in _by_step(found, road)], road, colour)
        cells.append(Cell(title, traces, y_range="tozero"))
    return Grid(
        "time",
        "Where each road is after so many seconds of training",
        "RLHF's curve begins where its reward model is done. Time in which policies were measured does not count; time "
        "in which they sample does.",
        tuple(cells),
        x_title="seconds of training, all stages",
        x_range="tozero",
    )


def _frontier(found: Compared) -> Grid:
    traces = []
    for road, colour in COLOURS.items():
        for number, seed in enumerate(found.form.seeds):  # each its own way: they move by other nats in as many steps
            looks = [look for look in found.looks if (look.road, look.seed) == (road, seed)]
            line = _line([look.kl for look in looks], [look.reward for look in looks], road, colour)
            traces.append(line.update(legendgroup=road, showlegend=number == 0, opacity=0.7))
    return Grid(
        "frontier",
        "True reward against KL, on the way",
        "Further up and further left is better: more reward for each nat that the policy has moved. A line for each "
        "seed.",
        (Cell("true reward", traces, y_range="tozero"),),
        x_title="KL from the start, nats per answer",
        x_range="tozero",
        row_height=320,
    )


def _parts(found: Compared) -> Grid:
    cells = []
    for number, road in enumerate(COLOURS):
        traces, steps = [], _by_step(found, road)
        x = [looks[0].step for looks in steps]
        for name, colour in zip(PARTS, OF_PARTS, strict=True):
            traces += _curve(x, [[look.parts[name] for look in looks] for looks in steps], name, colour)
        cells.append(Cell("mean reward" if number == 0 else "", traces))
    return Grid(
        "parts",
        "The components of the reward",
        "Of the three parts of a film that an answer judges. They sum to the true reward.",
        tuple(cells),
        x_title="optimiser step of the last stage",
        columns=tuple(COLOURS),
        row_height=260,
    )


def _memory(found: Compared) -> Grid:
    traces = [
        _line(one.seconds, [size / MB for size in one.bytes], one.stage, OF_STAGES[one.stage]) for one in found.memory
    ]
    weights = max(one.parameters for one in found.memory)
    return Grid(
        "memory",
        "Memory of each stage's process over time",
        f"On a larger model, {weights / 1e6:.1f} million parameters ({weights * 4 / MB:.0f} MB in fp32) and "
        f"{found.form.steps} optimiser steps: on the built-in one, torch itself would be all there is to see. DPO "
        "holds two models, PPO four.",
        (Cell("memory, MB", traces, y_range="tozero"),),
        x_title="seconds",
        x_range="tozero",
        row_height=300,
    )


def _stages(found: Compared) -> Table:
    from preftune.studies.rlhf_vs_dpo import MODELS

    rows = []
    for name, models in MODELS.items():
        stages = [stage for stage in found.stages if stage.name == name]
        (memory,) = [one for one in found.memory if one.stage == name]
        rows.append(
            [
                f"{stages[0].road}: {name}",
                ", ".join(models),
                _spread([stage.training for stage in stages], ".1f"),
                _spread([stage.wall for stage in stages], ".1f"),
                f"{stages[0].steps:,}",
                _spread([stage.accuracy for stage in stages if stage.accuracy is not None], ".3f"),
                f"{np.mean([stage.generated for stage in stages]):,.0f}",
                f"{max(memory.bytes) / MB:,.0f}",
                str(found.lines(name)),
                str(len(found.settings(name))),
            ]
        )
    return Table(
        "What each stage takes",
        "Seconds with their 95% t-intervals over seeds, on one thread; wall has the start of the process and the "
        "report in it. Peak memory is that of the larger model. Settings are the keys that its config names, places "
        "left out. Accuracy is that on held-out pairs, of a policy's implicit reward or of the reward model.",
        (
            "stage",
            "models in memory",
            "training, s",
            "wall, s",
            "steps",
            "accuracy",
            "tokens sampled",
            "peak MB",
            "lines",
            "settings",
        ),
        rows,
    )


def _ends(found: Compared) -> Table:
    rows = []
    for road in COLOURS:
        ends = found.ends(road)
        rows.append(
            [
                road,
                _spread([look.reward for look in ends], ".3f"),
                f"{np.std([look.reward for look in ends], ddof=1):.3f}" if len(ends) > 1 else "",
                *(_spread([look.parts[name] for look in ends], ".3f") for name in PARTS),
                _spread([look.kl for look in ends], ".2f"),
                _spread([look.grammatical for look in ends], ".3f"),
            ]
        )
    return Table(
        "Where each road leads",
        "On held-out prompts, at the end; 95% t-intervals over seeds, and the spread (SD) of the reward over seeds.",
        ("road", "true reward", "SD over seeds", *PARTS, "KL, nats", "grammatical"),
        rows,
    )


def _settings(found: Compared) -> Table:
    rows = [[name, key, str(value)] for name in found.configs for key, value in found.settings(name).items()]
    return Table("What had to be set", "Every key that the configs name.", ("stage", "key", "value"), rows)


def _by_step(found: Compared, road: str) -> list[list[Look]]:
    """Looks of all seeds at each step, the steps in order."""
    steps = sorted({look.step for look in found.looks if look.road == road})
    return [[look for look in found.looks if look.road == road and look.step == step] for step in steps]


def _curve(x: Sequence[float], values: Sequence[Sequence[float]], name: str, colour: str) -> list[go.Scatter]:
    """Means over seeds, with their band where there are several."""
    means = [mean(each) for each in values]
    traces = [_line(x, [one.value for one in means], name, colour)]
    if all(one.n > 1 for one in means):
        low, high = [one.low for one in means], [one.high for one in means]
        band = go.Scatter(
            x=[short(at) for at in (*x, *list(x)[::-1])],
            y=[short(value) for value in (*high, *low[::-1])],
            name=f"{name}, 95%",
            mode="lines",
            fill="toself",
            fillcolor=transparent(colour, 0.18),
            line={"width": 0},
            hoverinfo="skip",
        )
        traces.insert(0, band)
    return traces


def _line(x: Sequence[float], y: Sequence[float], name: str, colour: str) -> go.Scatter:
    return go.Scatter(
        x=[short(at) for at in x],
        y=[short(value) for value in y],
        name=name,
        mode="lines",
        line={"color": colour, "width": 1.8},
        hovertemplate="%{y:.4g}",
    )


def _spread(values: Sequence[float], form: str) -> str:
    """A mean, and its interval if there are several values."""
    if not values:
        return ""
    found = mean(values)
    return f"{found.value:{form}}" + (f" ({found.low:{form}} to {found.high:{form}})" if found.n > 1 else "")

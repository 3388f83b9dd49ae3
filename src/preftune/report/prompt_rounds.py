"""Rounds of a prompt optimiser: lines in a terminal, and a page with a table and two curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from preftune.errors import PreftuneError
from preftune.evaluation.models import ROUNDS_CONFIG
from preftune.files import write_whole
from preftune.report.drawing import CHOSEN, HELD_OUT, TRAINING, Cell, Panel, short
from preftune.report.html import as_bytes, page, section
from preftune.report.reading import read
from preftune.report.terminal import show_run
from preftune.report.trained import is_reward_model
from preftune.report.values import number, show_duration
from preftune.report.values import show as shown

if TYPE_CHECKING:
    from preftune.prompting.training import Trained

Line = Mapping[str, Any]
HEADER = (
    "rows",
    "held-out preference accuracy",
    "discriminator, held out",
    "discriminator, trained on",
    "rewrites accepted",
    "left out unasked",
    "training",
)


@dataclass(frozen=True)
class Row:
    """A round in the table.

    Attributes:
        number: of the round.
        link: to its report, relative to the page.
        cells: values, each with what is said below it.
    """

    number: int
    link: str
    cells: Sequence[tuple[str, str]]


def holds_rounds(folder: Path) -> bool:
    """True for a folder of rounds, which has a page of its own."""
    return (folder / ROUNDS_CONFIG).is_file()


def write(folder: Path) -> Path:
    """Write report.html into a folder of rounds.

    Raises:
        PreftuneError: if they have not finished, or a file cannot be read.
    """
    path = folder / "report.html"
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        text = render(folder.resolve().name, summary)
    except FileNotFoundError:
        raise PreftuneError(
            f"the rounds in {folder} have not finished: go on with them (preftune prompts train --resume {folder})"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PreftuneError(f"{folder / 'summary.json'} cannot be read ({error}): restore it") from None
    write_whole(path, as_bytes(text))
    return path


def render(name: str, summary: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        name: of the folder.
        summary: what summary.json holds.
    """
    lines = summary["lines"]
    panels = _panels(lines)
    rows = [_row(line) for line in lines]
    curves = [section("prompt-rounds-curves", "From round to round", panels=panels)] if panels else []
    sections = [
        section("prompt-rounds", "", headline=_headline(summary), said=_said(lines)),
        *curves,
        section("prompt-rounds-table", "Rounds", rows=rows, header=HEADER),
    ]
    return page(name, f"preftune prompts train · {summary['strategy']}", sections, panels)


def show(trained: Trained, console: Console | None = None) -> None:
    """Print what came of an optimiser's training, and where it lies."""
    console = console or Console()
    if not trained.rounds:
        show_run(trained.run, console)
    else:
        table = Table("round", "accepted", "discriminator right, held out", "accuracy", "loss")
        for line in trained.rounds:
            found = line["discriminator"].get("held_out", {})
            shares = (line.get("acceptance"), found.get("accuracy"), line.get("preference_accuracy"))
            values = [shown(number(share), "share") for share in shares]
            table.add_row(str(line["round"]), *values, shown(number(line.get("loss"))))
        console.print(table)
        console.print(f"report: {trained.path / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    path = trained.path
    said = f"optimiser: {path} (preftune prompts optimize ... --model {path})"
    if is_reward_model(read(trained.run.path)):
        said = f"a judge of rewrites: reward:{path}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def _headline(summary: Mapping[str, Any]) -> str:
    lines = [line for line in summary["lines"] if line.get("proposed")]
    count = summary["rounds"]
    if not lines:
        return f"{count} {'round' if count == 1 else 'rounds'}; no rewrite was asked for."
    accepted, proposed = (sum(line[name] for line in lines) for name in ("accepted", "proposed"))
    return f"{count} rounds: {accepted:,} of {proposed:,} proposed rewrites took the place of a prompt."


def _said(lines: Sequence[Line]) -> list[str]:
    """What to know of the discriminator, without which the acceptance says nothing."""
    found = lines[-1]["discriminator"]
    said = [f"The discriminator is {_name(found['name'])}."]
    held, trained = (found.get(side, {}) for side in ("held_out", "training"))
    if held.get("rows"):
        said[0] += (
            f" In the end it told the better rewrite from the worse one in {shown(held['accuracy'], 'share')} of "
            f"{held['rows']:,} held-out pairs, asked in both orders; a coin would in 25%."
            if held["flips"] or found["name"] == "self"
            else f" In the end it told the better rewrite from the worse one in {shown(held['accuracy'], 'share')} of "
            f"{held['rows']:,} held-out pairs."
        )
    if trained.get("rows"):
        said[0] += f" On {trained['rows']:,} pairs that were trained on: {shown(trained['accuracy'], 'share')}."
    silent = held.get("silent") or 0.0
    if silent > 0.05:
        said.append(
            f"It gave no verdict on {shown(silent, 'share')} of the held-out pairs: what it says is not one of the "
            "template's two names."
        )
    said.append("The last round proposes nothing, as no other would learn from it.")
    return said


def _name(name: str) -> str:
    return {"self": "the optimiser itself", "task": "what a generator answers"}.get(name, name)


def _panels(lines: Sequence[Line]) -> list[Panel]:
    """Acceptance, and how far the discriminator can be trusted, over rounds; none for a single round."""
    if len(lines) < 2:
        return []
    right = [
        *_curve(lines, "held out", HELD_OUT, lambda line: line["discriminator"].get("held_out", {}).get("accuracy")),
        *_curve(lines, "trained on", TRAINING, lambda line: line["discriminator"].get("training", {}).get("accuracy")),
    ]
    accepted = _curve(lines, "accepted", CHOSEN, lambda line: line.get("acceptance"))
    cells = [
        Cell("rewrites accepted", accepted, y_format=".0%", y_range="tozero"),
        Cell("discriminator right", right, y_format=".0%", y_range="tozero"),
    ]
    caption = (
        "Above: share of proposed rewrites that won against the prompt as it stood, in both orders, and took its "
        "place. Below: share of pairs whose better rewrite the discriminator prefers in both orders. What is "
        "accepted by a discriminator that is right no more often than a coin is accepted by chance."
    )
    full = tuple(cell for cell in cells if cell.traces)
    title = "Acceptance, and who accepts"
    return [Panel("prompt-rounds", title, caption, full, x_title="")] if full else []


def _curve(lines: Sequence[Line], name: str, colour: str, value: Callable[[Line], Any]) -> list[go.Scatter]:
    points = [(line["round"], found) for line in lines if (found := number(value(line))) is not None]
    if not points:
        return []
    return [
        go.Scatter(
            x=[f"round {at}" for at, _ in points],  # a category: there is nothing between two rounds
            y=[short(found) for _, found in points],
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 1.6},
            marker={"size": 7},
            hovertemplate="%{y:.1%}",
        )
    ]


def _row(line: Line) -> Row:
    found, at = line["discriminator"], line["round"]
    cells = [
        (f"{line['rows']:,}", ""),
        (shown(number(line.get("preference_accuracy")), "share"), ""),
        *(_right(found.get(side, {})) for side in ("held_out", "training")),
    ]
    if "proposed" in line:
        left_out = line["left_out"]
        why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
        count = f"{line['accepted']:,} of {line['proposed']:,}, {line['flips']:,} flips"
        cells += [
            (shown(line["acceptance"], "share"), count),
            (f"{sum(left_out.values()):,}", why),
        ]
    else:
        cells += [("\u2013", ""), ("\u2013", "")]
    seconds = number(line.get("train_seconds"))
    cells.append(("\u2013" if seconds is None else show_duration(seconds), f"{line['steps']:,} steps"))
    return Row(at, f"round-{at}/report.html", cells)


def _right(found: Mapping[str, Any]) -> tuple[str, str]:
    if not found.get("rows"):
        return "\u2013", ""
    return shown(found["accuracy"], "share"), f"of {found['rows']:,}, {shown(found['flips'], 'share')} flips"

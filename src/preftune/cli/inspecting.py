"""Commands that look into a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from preftune.cli.app import app

PANEL = "Evidence"


@app.command(rich_help_panel=PANEL)
def inspect(
    run: Annotated[str, typer.Argument(metavar="RUN", help="run folder; or a model, with --data and --against")],
    row: Annotated[list[int] | None, typer.Option(help="this row of the data; may be given several times")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="how many, if no row is named")] = 3,
    worst: Annotated[bool, typer.Option("--worst", help="those of the lowest margin, instead of the first")] = False,
    by: Annotated[
        Literal["line", "sentence", "turn"], typer.Option(help="steps that credit is summed over")
    ] = "sentence",
    data: Annotated[str | None, typer.Option("--data", "-d", help="data instead of what the run held out")] = None,
    against: Annotated[str | None, typer.Option(help="run or model to compare with, instead of the reference")] = None,
    write: Annotated[bool, typer.Option("--write", help="keep these pairs for the run's report")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON lines instead")] = False,
) -> None:
    """Show which tokens earned an answer its reward: beta times the log-ratio of policy and reference, token by token.

    Examples:
        preftune inspect runs/demo
        preftune inspect runs/demo --worst -n 5 --write
        preftune inspect runs/gsm8k --row 17 --by line
    """
    from preftune.inspection import inspect as look

    found = look(Path(run), rows=row or (), count=n, worst=worst, data=data, against=against, write=write)
    if as_json:
        for one in found:
            sides = {name: credit.as_json() for name, credit in one.responses}
            typer.echo(json.dumps({"row": one.row, "prompt": one.prompt, **sides}))
        return
    from preftune.report.inspection import show

    show(found, by)

"""Commands that show what a run came to: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import app

PANEL = "Evidence"


@app.command(rich_help_panel=PANEL)
def report(run: Annotated[Path, typer.Argument(help="run folder")]) -> None:
    """Write a run's report.html anew."""
    from preftune.report.html import write

    typer.echo(write(run))

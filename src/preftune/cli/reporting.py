"""Commands that show what a run came to: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import app

PANEL = "Evidence"
HIGHEST_PORT = 65535


@app.command(rich_help_panel=PANEL)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders; several are compared on one page")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="page of a comparison (comparison.html), or folder of --png (RUN/figures)"),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="serve the live report while the run goes on")] = False,
    port: Annotated[int, typer.Option(min=0, max=HIGHEST_PORT, help="of --watch; 0: any that is free")] = 0,
    png: Annotated[bool, typer.Option("--png", help="write the figures as PNG and SVG")] = False,
) -> None:
    """Write a run's report.html anew, or compare runs.

    Examples:
        preftune report runs/demo
        preftune report runs/dpo runs/ipo --out comparison.html
        preftune report --watch runs/demo
        preftune report --png runs/demo --out figures
    """
    from preftune.errors import PreftuneError

    if watch and (len(runs) > 1 or png or out is not None):
        raise PreftuneError("--watch serves one run, and goes with neither --png nor --out: leave them out")
    if port and not watch:
        raise PreftuneError("--port has no effect without --watch: add it, or leave the port out")
    if watch:
        from preftune.report.watching import serve

        serve(runs[0], port, opened=lambda address: typer.echo(f"{address} (Ctrl-C ends it)"))
    elif png:
        from preftune.report import pictures

        for path in pictures.write(runs, out or (runs[0] / "figures" if len(runs) == 1 else Path("figures"))):
            typer.echo(path)
    elif len(runs) > 1:
        from preftune.report import comparison

        typer.echo(comparison.write(runs, out or Path("comparison.html")))
    elif out is not None:
        raise PreftuneError("--out names the page of a comparison: a run's report goes into its folder, as report.html")
    else:
        from preftune.report.html import write
        from preftune.report.prompt_rounds import holds_rounds
        from preftune.report.prompt_rounds import write as write_rounds

        typer.echo(write_rounds(runs[0]) if holds_rounds(runs[0]) else write(runs[0]))

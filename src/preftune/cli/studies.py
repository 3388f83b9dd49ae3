"""Commands that run an experiment of the papers again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import LARGEST_SEED, app

study = typer.Typer(help="Run an experiment of the papers again.", no_args_is_help=True)
app.add_typer(study, name="study", rich_help_panel="Evidence")


@study.command("ipo-bandits")
def ipo_bandits(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for results, curves and figures")] = Path(
        "runs/ipo-bandits"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="2,000 steps instead of 18,000: a few seconds")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of the mini-batches")] = 0,
) -> None:
    """DPO and IPO on the bandits of the IPO paper: the corner, and the optimum in closed form.

    Exit code 1 if a limit that theory gives does not hold.
    """
    from preftune.report.bandits import show
    from preftune.studies.ipo_bandits import study as run_study

    found = run_study(out, quick=quick, seed=seed)
    show(found)
    if not all(limit.held for limit in found.limits):
        raise typer.Exit(1)

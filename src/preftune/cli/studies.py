"""Commands that run an experiment of the papers again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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


@study.command("rlhf-vs-dpo")
def rlhf_vs_dpo(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for runs, figures and their data")] = Path(
        "runs/rlhf-vs-dpo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="one seed and small sizes: about a minute")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say nothing meanwhile")] = False,
) -> None:
    """A reward model and PPO, or DPO: the two pipelines side by side, from the same preferences.

    Stages with their time, memory and settings, and true reward and KL on the way. Seeds that are done are kept.
    """
    from preftune.api_keys import this_command
    from preftune.report.rlhf_vs_dpo import show, write
    from preftune.studies.rlhf_vs_dpo import study as run_study

    found = run_study(out, quick=quick, show=not quiet)
    show(found, write(found, out, this_command()))


@study.command("credit")
def credit(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for models and results")] = Path("runs/credit"),
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="folder with GSM8K's train.jsonl: a second ground")
    ] = None,
    kind: Annotated[
        Literal["misread", "result"], typer.Option(help="which number of a line of GSM8K is made wrong")
    ] = "misread",
    quick: Annotated[bool, typer.Option("--quick", help="one seed and small sizes: under a minute")] = False,
) -> None:
    """Does credit find the step that is wrong? Trained on whole answers, judged line by line.

    Exit code 1 if credit is not ahead of chance and of the reference's own log-probs.
    """
    from preftune.report.inspection import show_study
    from preftune.studies.credit import study as run_study

    found = run_study(out, data, kind, quick=quick)
    show_study(found)
    if not all(ground.held for ground in found):
        raise typer.Exit(1)

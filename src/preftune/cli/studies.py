"""Commands that run an experiment of the papers again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from preftune.cli.app import LARGEST_SEED, app

Axis = Literal["methods", "sources", "noise", "sizes", "shift"]
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


@study.command("reach")
def reach(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for results")] = Path("runs/reach"),
    quick: Annotated[
        bool, typer.Option("--quick", help="one seed and a few seconds: too little to come close")
    ] = False,
) -> None:
    """Do PPO, online DPO and DPO come to the exact optimum where enough is sampled?

    Exit code 1 if one of them lacks more than a twentieth of the best gain at its KL (not with --quick).
    """
    from preftune.report.reach import show
    from preftune.studies.reach import study as run_study

    found = run_study(out, quick=quick)
    show(found)
    if not quick and not all(one.held for one in found):
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


@study.command("frontier")
def frontier(
    axis: Annotated[
        Axis | None, typer.Argument(help="one question of the study; none: all of them, the cheapest first")
    ] = None,
    world: Annotated[
        Literal["listed", "sandbox", "both"], typer.Option(help="listed: everything exact; sandbox: sampled")
    ] = "listed",
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the study, where it also goes on")] = Path(
        "runs/frontier"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="small sizes, 3 seeds, no choice of learning rates: minutes")
    ] = False,
    jobs: Annotated[
        int, typer.Option(min=0, help="processes at a time, each on one thread; 0: only write the pages anew")
    ] = 2,
    png: Annotated[bool, typer.Option("--png", help="also write the figures as PNG and SVG (needs a browser)")] = False,
    seeds: Annotated[int | None, typer.Option(min=2, help="seeds of each cell; none: 5, or 3 with --quick")] = None,
) -> None:
    """Reward against KL: how near each method comes to the exact optimum, over seeds, strengths and kinds of labels.

    Stopped in any way, the same command goes on. A page for each question, with its data, lies in the folder.
    """
    from preftune.report.frontier import show, write
    from preftune.studies.frontier.axes import AXES
    from preftune.studies.frontier.study import Found
    from preftune.studies.frontier.study import study as run_study

    def done(found: Found) -> None:
        write(found, out / found.key, png)
        show(found, out / found.key)

    worlds = ("listed", "sandbox") if world == "both" else (world,)
    axes = list(AXES.values()) if axis is None else [AXES[axis]]
    run_study(axes, worlds, out, quick=quick, jobs=jobs, seeds=seeds, show=True, done=done)


@study.command("fipo")
def fipo(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the study, where it also goes on")] = Path(
        "runs/fipo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="one teacher, one seed, three strategies: two minutes")
    ] = False,
    jobs: Annotated[
        int, typer.Option(min=0, help="processes at a time, each on one thread; 0: only write the page anew")
    ] = 2,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say nothing meanwhile")] = False,
) -> None:
    """FIPO in small: train prompt optimisers in six ways, choose on generators they saw, confirm on one they did not.

    Stopped in any way, the same command goes on. Exit code 1 if what was chosen does not beat naive prompts (not with
    --quick).
    """
    from preftune.api_keys import this_command
    from preftune.report.fipo import show, write
    from preftune.studies.fipo.study import study as run_study

    found = run_study(out, quick=quick, jobs=jobs, show=not quiet)
    show(found, write(found, out, this_command()))
    if not quick and not all(one.held for one in found.outcome):
        raise typer.Exit(1)

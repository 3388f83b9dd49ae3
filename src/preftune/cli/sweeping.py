"""The command that trains many runs and weighs them: sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import LARGEST_SEED, Data, Model, Quiet, app

Values = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG.yaml] KEY=VALUE,VALUE,...",
        help="a config file, and keys with the values that they are to take",
    ),
]


@app.command(rich_help_panel="Training")
def sweep(
    words: Values = None,
    model: Model = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder; default runs/sweep-<time>")] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="win rate against the reference, by a judge: see preftune evaluate")
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="JUDGE", help="mean score of the answers, by a judge that scores")
    ] = None,
    rubric: Annotated[Path | None, typer.Option("--rubric", help="for a judge behind an endpoint")] = None,
    max_calls: Annotated[
        int, typer.Option("--max-calls", min=1, help="most calls to an endpoint, for each run")
    ] = 10_000,
    kl_budget: Annotated[
        float | None, typer.Option("--kl-budget", metavar="NATS", help="most KL per response of a run to recommend")
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="held-out prompts that each run answers")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="answers to each prompt")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="runs that train at a time")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of the answers")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="say which runs there would be, and stop")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    quiet: Quiet = False,
) -> None:
    """Train one run for each combination of values, and recommend one: what it gains for how much KL.

    The reference's log-probs are computed once for all runs. The same command with the same --out goes on where it was
    stopped, and keeps what is there.

    Examples:
        preftune sweep my.yaml objective.name=dpo,ipo objective.beta=0.05,0.3 objective.tau=0.1,0.5 --kl-budget 10
        preftune sweep --model sandbox --data sandbox objective.beta=0.1,0.3,1 --out runs/betas
        preftune sweep my.yaml optim.learning_rate=1e-6,1e-5 --judge reward:runs/reward --jobs 2
    """
    from preftune.cli.app import split_words
    from preftune.report.sweep import show, show_plan, show_point
    from preftune.sweeping.checking import check_sweep
    from preftune.sweeping.grid import axes_of, grid
    from preftune.sweeping.sweep import carry_out, default_folder, measure_of

    file, values = split_words(words or [])
    fixed = {"model.path": model, "data.path": data}
    given = [f"{key}={json.dumps(value)}" for key, value in fixed.items() if value is not None]
    found = grid(axes_of([*given, *values]), file)
    how = measure_of(
        found.cells,
        judge,
        reward,
        rubric=None if rubric is None else str(rubric),
        max_calls=max_calls,
        prompts=prompts,
        samples_per_prompt=samples,
        seed=seed,
    )
    folder = out or default_folder()
    notes = check_sweep(found, how, folder, kl_budget, jobs, file)
    silent = quiet or as_json
    if plan or not silent:
        show_plan(found, how, notes)
    if plan:
        return
    tell = None if silent else show_point
    try:
        result = carry_out(found, how, folder, notes, kl_budget=kl_budget, jobs=jobs, tell=tell)
    except (KeyboardInterrupt, SystemExit):
        typer.echo(f"note: what is done is kept; to go on: the same command with --out {folder}", err=True)
        raise
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        show(result)
    if any(point.failed for point in result.points):
        raise typer.Exit(1)

"""Commands about data and objectives, before anything is trained: validate, preview, objectives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import Words, app, split_words

PANEL = "Data and objectives"


@app.command(rich_help_panel=PANEL)
def validate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="file, folder, hub id or 'sandbox'")],
    words: Words = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="check with this model's tokenizer, too")] = None,
    held_out: Annotated[str | None, typer.Option("--held-out", help="held-out data that lies apart")] = None,
    against: Annotated[str | None, typer.Option("--against", help="an evaluation set that must stay unseen")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
    write: Annotated[
        Path | None, typer.Option("--write", help="file for the good rows (jsonl); the others go to NAME.dropped.jsonl")
    ] = None,
) -> None:
    """Say what is wrong with data, before a step is spent on it: no GPU, any size.

    Exit code 0: clean; 1: warnings; 2: errors.

    Examples:
        preftune validate pairs.jsonl
        preftune validate pairs.jsonl --model ./my-model data.rendering.max_length=512
        preftune validate pairs.jsonl --against benchmark.jsonl --write clean.jsonl
    """
    from preftune.validate import validate as check

    file, rest = split_words(words or [])
    found = check(data, model, held_out=held_out, against=against, write=write, config=file, overrides=rest)
    if as_json:
        from preftune.data.doctor.validation import as_json as plain

        typer.echo(json.dumps(plain(found), indent=2))
    else:
        from preftune.report.doctor import show

        show(found)
    raise typer.Exit(found.exit_code)


@app.command(rich_help_panel=PANEL)
def preview(
    data: Annotated[str, typer.Argument(metavar="DATA", help="file, folder, hub id or 'sandbox'")],
    model: Annotated[str, typer.Option("--model", "-m", help="folder, hub id or 'sandbox'")],
    words: Words = None,
    n: Annotated[int, typer.Option("-n", min=1, help="records to show")] = 3,
) -> None:
    """Show the first rows as coloured tokens: prompt, what is trained on, what is masked, end tokens.

    Examples:
        preftune preview pairs.jsonl --model ./my-model
    """
    from preftune.preview import preview as show

    file, rest = split_words(words or [])
    show(data, model, n, file, rest)


@app.command(rich_help_panel=PANEL)
def objectives(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="one of them, or package.module:Class")] = None,
) -> None:
    """List the objectives by family, or explain one: equation, when to use it, what its fields mean.

    Examples:
        preftune objectives
        preftune objectives ipo
    """
    from preftune.report.catalogue import show_all, show_one

    if name is None:
        show_all()
    else:
        show_one(name)

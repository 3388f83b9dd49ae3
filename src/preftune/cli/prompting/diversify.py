"""preftune prompts diversify."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import LARGEST_SEED
from preftune.cli.prompting import prompts


class Layout(StrEnum):
    """What is written."""

    rows = "rows"
    pairs = "pairs"
    published = "published"


class Limit(StrEnum):
    """The limit on words that a row asks for."""

    rounded = "rounded"
    use = "use"
    exact = "exact"


@prompts.command()
def diversify(
    pairs: Annotated[str, typer.Argument(metavar="PAIRS", help="file, folder or hub id of pairs of rewrites")],
    out: Annotated[Path, typer.Option("--out", "-o", help="file to write (.jsonl)")],
    template: Annotated[
        Path | None, typer.Option(help="YAML with the optimiser's texts; default: the built-in")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="rows as turns, for models with a chat template")] = False,
    each: Annotated[int, typer.Option(min=1, max=8, help="different case types of each pair")] = 1,
    multiple_choice: Annotated[
        float, typer.Option(min=0, max=1, help="how often a prompt is asked with two answers to choose from")
    ] = 0.5,
    right_naive: Annotated[
        float, typer.Option(min=0, max=1, help="how often the naive choice between them is the right one")
    ] = 0.2,
    words: Annotated[
        Limit, typer.Option(help="the limit that is asked for: rounded, as in use, or the better rewrite's exactly")
    ] = Limit.rounded,
    extra: Annotated[
        bool, typer.Option("--extra", help="also a row of each pair that answers, or tells the better rewrite")
    ] = False,
    held_out: Annotated[float, typer.Option("--held-out", min=0, max=1, help="share of the prompts held out")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of all that is drawn")] = 0,
    layout: Annotated[
        Layout, typer.Option(help="rows to train on; or the pairs as they are, in our layout or the published one")
    ] = Layout.rows,
    as_json: Annotated[bool, typer.Option("--json", help="print the statistics as JSON")] = False,
) -> None:
    """Make rows to train an optimiser on: with more or less known of the answer, as it is or as a multiple choice.

    What a pair becomes depends on itself and the seed alone. Statistics lie beside the file.

    Examples:
        preftune prompts diversify pairs.jsonl --out rows.jsonl --held-out 0.05
        preftune prompts diversify pairs.jsonl --out rows.jsonl --each 8 --extra
        preftune prompts diversify pairs.jsonl --out published.jsonl --layout published
    """
    if layout is not Layout.rows:
        from preftune.prompting.records import read_pairs, write_pairs

        found = list(read_pairs(pairs))
        write_pairs(out, found, "published" if layout is Layout.published else "preftune")
        typer.echo(f"wrote {out} ({len(found):,} pairs)", err=as_json)
        return
    from preftune.prompting.diversifying import diversify_file

    made = diversify_file(
        pairs,
        out,
        template=template,
        form="chat" if chat else "plain",
        seed=seed,
        each=each,
        multiple_choice=multiple_choice,
        right_naive=right_naive,
        words=words.value,
        extra=extra,
        held_out=held_out,
    )
    if as_json:
        typer.echo(json.dumps(made.as_json(), indent=2))
        return
    from preftune.report.prompt_data import show_cases

    show_cases(made.train)
    if made.left_out.total:
        typer.echo(made.left_out.summary())
    typer.echo("\n".join(f"wrote {file}" for file in made.files))

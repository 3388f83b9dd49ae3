"""preftune prompts collect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import LARGEST_SEED, Quiet
from preftune.cli.prompting import options, prompts


@prompts.command()
def collect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="rows with a column prompt, a text file with one in each line, or a benchmark: bbh=FOLDER",
        ),
    ],
    rewriter: Annotated[
        list[str],
        typer.Option(
            help="endpoint:URL#MODEL, run, folder, hub id or package.module:function; with a template of its own: "
            "NAME,template.yaml; naive: the prompt as it is"
        ),
    ],
    generator: Annotated[list[str], typer.Option(help="who answers the prompts; several vote")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write; what is there is replayed")],
    judge: Annotated[str | None, typer.Option(help="who says which answer is better, in both orders")] = None,
    checker: Annotated[
        str | None,
        typer.Option(help="or who says which are right: gsm8k, number, choice, package.module:function, ..."),
    ] = None,
    rubric: Annotated[Path | None, typer.Option(help="text with {prompt}, {first}, {second}, for the judge")] = None,
    samples: Annotated[int, typer.Option(min=1, help="rewrites of each prompt by each rewriter")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="of the rewrites")] = 1.0,
    rewrite_tokens: Annotated[int, typer.Option(min=1, help="tokens at which a rewrite is cut")] = 512,
    words: Annotated[int | None, typer.Option(min=1, help="most words of a rewrite")] = None,
    mark: Annotated[list[str] | None, typer.Option(help="text that no rewrite may change")] = None,
    facts: Annotated[bool, typer.Option(help="leave out rewrites that change facts")] = True,
    show_response: Annotated[
        bool, typer.Option("--show-response", help="show rewriters what the first generator answered")
    ] = False,
    show_truth: Annotated[bool, typer.Option("--show-truth", help="show rewriters the right answer")] = False,
    answers: Annotated[int, typer.Option(min=1, help="answers of each generator to each rewrite")] = 1,
    answer_temperature: Annotated[float, typer.Option(min=0, help="of the answers")] = 0.0,
    answer_tokens: Annotated[int, typer.Option(min=1, help="tokens at which an answer is cut")] = 512,
    pairs: Annotated[int, typer.Option(min=1, help="most pairs of one prompt")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="use the first prompts only")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of all that is drawn")] = 0,
    max_calls: options.MaxCalls = 10_000,
    max_tokens: options.MaxTokens = None,
    concurrency: options.Concurrency = 8,
    timeout: options.Timeout = 120.0,
    key: options.Key = "OPENAI_API_KEY",
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    quiet: Quiet = False,
) -> None:
    """Collect pairs of rewrites from naive prompts: candidates are written, answered, and compared by their answers.

    Everything that is answered is kept, and the same command goes on where it was stopped.

    Examples:
        preftune prompts collect p.jsonl --rewriter ./m --rewriter naive --generator endpoint:URL --checker gsm8k -o out
        preftune prompts collect p.txt --rewriter ./m --samples 4 --generator ./m --judge endpoint:URL -o out
        preftune prompts collect bbh=./bbh --rewriter ./m --rewriter naive --generator ./m --checker benchmark -o out
    """
    from preftune.prompting.collecting import CollectSettings
    from preftune.prompting.collecting import collect as run
    from preftune.prompting.generators import GeneratorSampling
    from preftune.report.prompt_data import collecting_progress, show_collected

    settings = CollectSettings(
        rewriters=tuple(rewriter),
        generators=tuple(generator),
        judge=judge,
        checker=checker,
        rubric=rubric,
        rewriting=GeneratorSampling(max_new_tokens=rewrite_tokens, temperature=temperature, samples=samples, seed=seed),
        answering=GeneratorSampling(
            max_new_tokens=answer_tokens, temperature=answer_temperature, samples=answers, seed=seed
        ),
        words=words,
        marks=tuple(mark or ()),
        facts=facts,
        show_response=show_response,
        show_truth=show_truth,
        pairs=pairs,
        seed=seed,
        max_calls=max_calls,
        max_tokens=max_tokens,
        concurrency=concurrency,
        timeout=timeout,
        key_variable=key,
    )
    with collecting_progress(quiet or as_json) as progress:
        found = run(source, out, settings, limit=limit, progress=progress)
    if as_json:
        typer.echo(json.dumps(found.as_json(settings.rewriters), indent=2))
    else:
        show_collected(found, settings.rewriters)
        typer.echo(f"wrote {out / 'pairs.jsonl'}")

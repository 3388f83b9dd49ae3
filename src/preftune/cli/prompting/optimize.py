"""preftune prompts optimize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import LARGEST_SEED, Quiet
from preftune.cli.prompting import options, prompts


@prompts.command()
def optimize(
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="a prompt; - or nothing: what comes on standard input")
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="who rewrites: run, folder, hub id, endpoint:URL#MODEL or module:function"),
    ] = "",
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="prompts: a text file with one a line, or rows (.jsonl, .csv, ...)"),
    ] = None,
    template: options.Template = None,
    candidates: options.Candidates = 4,
    temperature: options.Temperature = 0.8,
    top_p: options.TopP = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of what is drawn")] = 0,
    words: options.Words = None,
    protect: options.Protect = None,
    pattern: options.Pattern = None,
    input_after: options.InputAfter = None,
    new_numbers: options.NewNumbers = "counters",
    any_order: options.AnyOrder = False,
    judge: Annotated[str | None, typer.Option(help="who says which rewrite is best, as in preftune judge")] = None,
    rubric: Annotated[Path | None, typer.Option(help="text with {prompt}, {first}, {second}, for the judge")] = None,
    examples: Annotated[
        str | None, typer.Option(help="or questions with right answers, NAME:SCORER=FILE, put at {input} or below")
    ] = None,
    generator: Annotated[str | None, typer.Option(help="who answers, for the judge or the examples")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="use so many examples")] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="tokens at which an answer is cut")] = 512,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="folder for optimized.jsonl; what was written is replayed from it"),
    ] = None,
    max_calls: options.MaxCalls = 10_000,
    max_tokens: options.MaxTokens = None,
    concurrency: options.Concurrency = 8,
    timeout: options.Timeout = 120.0,
    key: options.Key = "OPENAI_API_KEY",
    diff: Annotated[bool, typer.Option("--diff", help="show what changed")] = False,
    tried: Annotated[bool, typer.Option("--tried", help="show all rewrites, and what became of them")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print an object for each prompt, one a line")] = False,
    quiet: Quiet = False,
) -> None:
    """Rewrite prompts so that models answer them better. Numbers, quotations, code, answer options, links and what you
    protect stay as they are; where no rewrite holds to that, the prompt comes back, and the reason on standard error.

    Examples:
        preftune prompts optimize "Name three rivers of France." --model runs/optimiser
        preftune prompts optimize --file prompts.jsonl --model runs/optimiser --out runs/better
        preftune prompts optimize "Sort the list. List: b a" --model runs/optimiser --input-after "List:" --diff
        preftune prompts optimize "Answer shortly: {input}" --model runs/optimiser --candidates 8 \\
            --examples mine:number=examples.jsonl --generator endpoint:http://127.0.0.1:8000/v1
    """
    from preftune.evaluation.judges import EndpointUse
    from preftune.prompting.optimize import OptimizeSettings
    from preftune.prompting.optimizing import optimize_given
    from preftune.prompting.using import Rerank
    from preftune.report.optimized import show
    from preftune.report.prompt_data import collecting_progress

    settings = OptimizeSettings(
        candidates=candidates,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        words=words,
        marks=options.marks(protect, pattern),
        new_numbers=options.new_numbers(new_numbers),
        order=not any_order,
        input_after=input_after,
    )
    rerank = Rerank(
        judge=judge, rubric=rubric, examples=examples, generator=generator, limit=limit, answer_tokens=answer_tokens
    )
    use = EndpointUse(
        max_calls=max_calls, max_tokens=max_tokens, concurrency=concurrency, timeout=timeout, key_variable=key
    )
    with collecting_progress(quiet or as_json) as progress:
        found = optimize_given(
            prompt, file, model, settings, template=template, rerank=rerank, out=out, use=use, progress=progress
        )
    if as_json:
        for each in found:
            typer.echo(json.dumps(each.as_json(), ensure_ascii=False))
        return
    show(found, diff=diff, tried=tried, quiet=quiet)

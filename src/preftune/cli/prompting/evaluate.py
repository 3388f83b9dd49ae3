"""preftune prompts evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import LARGEST_SEED, Quiet
from preftune.cli.prompting import options, prompts


@prompts.command()
def evaluate(
    benchmark: Annotated[
        list[str],
        typer.Option(
            "--benchmark",
            "-b",
            help="gsm8k, bbh, piqa, cosmosqa, mmlu, each maybe with =PATH; or one's own: NAME:SCORER=PATH",
        ),
    ],
    generator: Annotated[
        list[str],
        typer.Option(
            "--generator", "-g", help="who answers: run, folder, hub id, endpoint:URL#MODEL, package.module:function"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write; what is there is replayed")],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="optimiser: a run of prompts train, or any generator")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="a file with prompts and their rewrites, as prompts optimize writes it"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="draw so many questions of each benchmark")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="examples before a question; default: as the paper")] = None,
    words: Annotated[int | None, typer.Option(min=1, help="most words of a rewrite")] = None,
    mark: Annotated[list[str] | None, typer.Option(help="text that no rewrite may change")] = None,
    guard: Annotated[bool, typer.Option(help="use the naive prompt where a rewrite changes facts")] = True,
    candidates: Annotated[
        int, typer.Option(min=1, help="rewrites of a prompt, as for prompts optimize; the first that may be used is")
    ] = 4,
    greedy: Annotated[bool, typer.Option(help="answer with the most probable tokens")] = True,
    sampled: Annotated[int, typer.Option(min=0, help="answers drawn to each prompt besides")] = 0,
    temperature: Annotated[float, typer.Option(min=0, help="of those")] = 0.8,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1, help="of those")] = 0.95,
    answer_tokens: Annotated[int, typer.Option(min=1, help="tokens at which an answer is cut")] = 512,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of all that is drawn")] = 0,
    max_calls: options.MaxCalls = 10_000,
    max_tokens: options.MaxTokens = None,
    concurrency: options.Concurrency = 8,
    timeout: options.Timeout = 120.0,
    key: options.Key = "OPENAI_API_KEY",
    quiet: Quiet = False,
) -> None:
    """Compare naive and optimised prompts by what generators answer to them, on benchmarks that are scored exactly.

    A table like the paper's, with paired intervals; questions side by side; what the rewrites give away; and the cost.
    Everything that is answered is kept, and the same command goes on where it was stopped.

    Examples:
        preftune prompts evaluate -m runs/optimizer -g sandbox -b mine:number=questions.jsonl -o runs/e
        preftune prompts evaluate -m runs/optimizer -g endpoint:http://127.0.0.1:8000/v1 -b gsm8k -b bbh -o runs/e
        preftune prompts evaluate --prompts rewrites.jsonl -g ./model -b mmlu=./mmlu --limit 500 -o runs/e
    """
    from preftune.prompting.evaluate import EvaluateSettings
    from preftune.prompting.evaluate import evaluate as run
    from preftune.report.prompt_data import collecting_progress
    from preftune.report.prompt_evaluation import show, write

    settings = EvaluateSettings(
        benchmarks=tuple(benchmark),
        generators=tuple(generator),
        optimizers=tuple(model or ()),
        prompts=prompts,
        limit=limit,
        shots=shots,
        words=words,
        marks=tuple(mark or ()),
        guard=guard,
        candidates=candidates,
        greedy=greedy,
        sampled=sampled,
        temperature=temperature,
        top_p=top_p,
        answer_tokens=answer_tokens,
        seed=seed,
        max_calls=max_calls,
        max_tokens=max_tokens,
        concurrency=concurrency,
        timeout=timeout,
        key_variable=key,
    )
    with collecting_progress(quiet) as progress:
        found = run(out, settings, progress)
    write(found, out)
    show(found, out)

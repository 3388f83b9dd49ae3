"""preftune prompts serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import LARGEST_SEED
from preftune.cli.prompting import options, prompts


@prompts.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="who rewrites: run, folder, hub id, endpoint:URL#MODEL or module:function"
        ),
    ],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0: any that is free")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="what clients call it; default: MODEL")] = None,
    generator: Annotated[
        str | None, typer.Option(help="who answers the rewritten prompt; default: the rewrite is the answer")
    ] = None,
    template: options.Template = None,
    candidates: options.Candidates = 4,
    temperature: options.Temperature = 0.8,
    top_p: options.TopP = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of the rewrites that are drawn")] = 0,
    words: options.Words = None,
    protect: options.Protect = None,
    pattern: options.Pattern = None,
    input_after: options.InputAfter = None,
    new_numbers: options.NewNumbers = "counters",
    any_order: options.AnyOrder = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder that keeps what was written, and replays it")
    ] = None,
    max_calls: options.MaxCalls = 10_000,
    max_tokens: options.MaxTokens = None,
    concurrency: options.Concurrency = 8,
    timeout: options.Timeout = 120.0,
    key: options.Key = "OPENAI_API_KEY",
) -> None:
    """Serve an optimiser to any OpenAI client, until Ctrl-C: the last user's turn comes back rewritten, or as it was
    where no rewrite keeps its facts. With --generator, that answers the rewritten prompt.

    Examples:
        preftune prompts serve runs/optimiser --port 8100
        preftune prompts serve runs/optimiser --generator endpoint:http://127.0.0.1:8000/v1
    """
    from preftune.evaluation.judges import EndpointUse
    from preftune.prompting.optimize import OptimizeSettings
    from preftune.prompting.serving import serve as run

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
    use = EndpointUse(
        max_calls=max_calls, max_tokens=max_tokens, concurrency=concurrency, timeout=timeout, key_variable=key
    )
    run(
        model,
        settings,
        host=host,
        port=port,
        name=name,
        template=template,
        generator=generator,
        folder=out,
        use=use,
        say=typer.echo,
    )

"""Commands that compare answers, and that serve a model: judge, serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.app import LARGEST_SEED, Quiet, app

PANEL = "Evidence"


@app.command(rich_help_panel=PANEL)
def judge(
    name: Annotated[
        str,
        typer.Argument(
            metavar="JUDGE", help="sandbox, gsm8k, package.module:function, reward:RUN or endpoint:URL#MODEL"
        ),
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help="pairs, answers, or a run's generations.jsonl")],
    against: Annotated[
        str | None, typer.Option("--against", help="answers of another model to the same prompts")
    ] = None,
    truth: Annotated[
        str | None, typer.Option("--truth", metavar="JUDGE", help="a judge that knows, instead of the labels")
    ] = None,
    rubric: Annotated[
        Path | None, typer.Option("--rubric", help="text with {prompt}, {first}, {second}, for an endpoint")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder of verdicts, replayed; default runs/judge-<data>")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="use the first pairs only")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of the bootstrap")] = 0,
    max_calls: Annotated[int, typer.Option("--max-calls", min=1, help="most calls to an endpoint, ever")] = 10_000,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="most tokens read and written by an endpoint, ever")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="calls to an endpoint at a time")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds that an endpoint may take to answer")] = 120.0,
    key: Annotated[
        str, typer.Option("--key-variable", help="environment variable that holds the API key")
    ] = "OPENAI_API_KEY",
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    quiet: Quiet = False,
) -> None:
    """Score a judge on pairs whose better answer is known; or have it compare two models.

    Every verdict is kept, and the same command goes on where it was stopped.

    Examples:
        preftune judge endpoint:http://127.0.0.1:8000/v1 pairs.jsonl --limit 200
        preftune judge reward:runs/reward sandbox --truth sandbox
        preftune judge my_module:better new.jsonl --against old.jsonl
        preftune judge sandbox runs/demo/generations.jsonl
    """
    from preftune.evaluation.judges import EndpointUse
    from preftune.evaluation.judging import judge_data
    from preftune.report.judging import judging_progress, show

    use = EndpointUse(
        max_calls=max_calls, max_tokens=max_tokens, concurrency=concurrency, timeout=timeout, key_variable=key
    )
    with judging_progress(quiet or as_json) as progress:
        result = judge_data(
            name,
            data,
            against=against,
            truth=truth,
            rubric=rubric,
            out=out,
            limit=limit,
            seed=seed,
            use=use,
            progress=progress,
            say=lambda line: None if quiet else typer.echo(line, err=True),
        )
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        show(result)


@app.command(rich_help_panel=PANEL)
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="run, folder, hub id or 'sandbox'")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0: any that is free")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="what clients call the model; default: MODEL")] = None,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="let clients load LoRA adapters (POST /v1/load_lora_adapter, as vLLM)")
    ] = False,
) -> None:
    """Serve a model to any OpenAI client, until Ctrl-C: completions and chat, on this machine.

    Small and exact, for trying out and for tests; vLLM is much faster.

    Examples:
        preftune serve runs/demo
        preftune serve ./my-model --port 9000 --name mine
    """
    from preftune.serving.command import serve as run

    run(model, host=host, port=port, name=name, adapters=adapters, say=typer.echo)

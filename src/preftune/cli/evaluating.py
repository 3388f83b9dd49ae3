"""Commands that measure and use a trained model: evaluate, score, benchmark, export, chat."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preftune.cli.app import LARGEST_SEED, Quiet, app

if TYPE_CHECKING:
    from preftune.evaluation.best_of_n import BestOf
    from preftune.evaluation.endpoint_writer import Answering
    from preftune.evaluation.winning import Judging

PANEL = "Evidence"


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


Subject = Annotated[str, typer.Argument(metavar="RUN|MODEL", help="run folder; or a model: folder, hub id, 'sandbox'")]
Against = Annotated[
    str | None,
    typer.Option("--against", metavar="RUN|MODEL", help="what to compare with; default: the run's reference"),
]
Where = Annotated[
    Device | None, typer.Option("--device", help="where to compute; default: as the run did, if it can be")
]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of the samples")]


@app.command(rich_help_panel=PANEL)
def evaluate(
    subject: Subject,
    against: Against = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="data to evaluate on, all of it; default: what the run held out")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder to write to; default: the run folder, or ./evaluation")
    ] = None,
    prompts: Annotated[int, typer.Option(min=0, help="prompts to answer; 0: none")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="answers to each prompt")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="of the answers; KL is measured at 1")] = 1.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="longest answer, in tokens; default: as the run sampled")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="answers written at a time")] = 64,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL[#MODEL]", help="answers in the place of RUN|MODEL, as vLLM")
    ] = None,
    against_endpoint: Annotated[
        str | None, typer.Option("--against-endpoint", metavar="URL[#MODEL]", help="answers for the other side")
    ] = None,
    best_of: Annotated[
        int | None, typer.Option("--best-of", min=2, help="keep the best of so many answers of RUN|MODEL")
    ] = None,
    against_best_of: Annotated[
        int | None, typer.Option("--against-best-of", min=2, help="the same of the other side: a baseline")
    ] = None,
    best_by: Annotated[
        str | None, typer.Option("--best-by", metavar="JUDGE", help="who says which is best: reward:RUN, sandbox, ...")
    ] = None,
    by: Annotated[str, typer.Option("--by", help="field of the data's rows for figures by source")] = "source",
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="who compares the answers: sandbox, gsm8k, package.module:function, reward:RUN, endpoint:URL#MODEL",
        ),
    ] = None,
    truth: Annotated[
        str | None, typer.Option("--truth", metavar="JUDGE", help="score the judge by one that knows, not by labels")
    ] = None,
    checks: Annotated[int, typer.Option(min=0, help="held-out pairs that the judge itself is scored on")] = 64,
    rubric: Annotated[Path | None, typer.Option("--rubric", help="for a judge behind an endpoint")] = None,
    max_calls: Annotated[int, typer.Option("--max-calls", min=1, help="most calls to each endpoint, ever")] = 10_000,
    key: Annotated[
        str, typer.Option("--key-variable", help="environment variable that holds the API key")
    ] = "OPENAI_API_KEY",
    seed: Seed = 0,
    device: Where = None,
    quiet: Quiet = False,
) -> None:
    """Measure a run or a model on held-out data: accuracy, margin, calibration; its answers, their KL to the reference.

    With a judge, also how often its answers win, controlled for length, and what the judge itself is worth.

    Examples:
        preftune evaluate runs/demo
        preftune evaluate runs/demo --judge sandbox --samples 4
        preftune evaluate runs/demo --against ./another-model --samples 4
        preftune evaluate ./my-model --data pairs.jsonl --against ./its-start
        preftune evaluate runs/demo --endpoint http://127.0.0.1:8000/v1 --samples 4
        preftune evaluate runs/demo --against-best-of 8 --best-by reward:runs/reward --judge sandbox
    """
    from preftune.evaluation.evaluate import FIGURES
    from preftune.evaluation.evaluate import evaluate as run_evaluate
    from preftune.report.evaluation_table import show_evaluation
    from preftune.report.judging import judging_progress

    judging = _judging(judge, truth, checks, rubric, max_calls, key)
    with judging_progress(quiet or judging is None) as progress:
        done = run_evaluate(
            subject,
            against=against,
            data=data,
            out=out,
            prompts=prompts,
            samples_per_prompt=samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            source_field=by,
            seed=seed,
            device=None if device is None else device.value,
            quiet=quiet,
            judging=judging,
            best_of=_best_of(best_of, against_best_of, best_by),
            answering=_answering(endpoint, against_endpoint, max_calls, key),
            progress=progress,
        )
    _note(done.notes)
    show_evaluation(done.figures)
    typer.echo(f"wrote {done.folder / FIGURES}")


@app.command(rich_help_panel=PANEL)
def score(
    subject: Subject,
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="data to score, all of it; default: what the run held out")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="file to write: .jsonl or .parquet")] = Path("scores.jsonl"),
    against: Against = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="log-probs of single tokens, too")] = False,
    device: Where = None,
    quiet: Quiet = False,
) -> None:
    """Write log-probs, implicit rewards and margins of every pair: the numbers that training logged.

    Examples:
        preftune score runs/demo --out scores.jsonl --tokens
        preftune score ./my-model pairs.jsonl --against ./its-start --out scores.parquet
    """
    from preftune.evaluation.opening import open_for_evaluation
    from preftune.evaluation.score_file import check_out, write_scores
    from preftune.evaluation.scoring import score as run_score

    check_out(out)
    opened = open_for_evaluation(subject, data=data, against=against, device=None if device is None else device.value)
    _note(opened.messages)
    write_scores(out, opened, run_score(opened, tokens=tokens, show=not quiet))
    typer.echo(f"wrote {out}: {len(opened.examples)} examples of {opened.data}")


@app.command(rich_help_panel=PANEL)
def benchmark(
    subject: Subject,
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="names of tasks, with commas between them")],
    include: Annotated[Path | None, typer.Option("--include", help="folder with tasks of your own (YAML)")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="use the first questions of each task only")] = None,
    few_shot: Annotated[int | None, typer.Option(min=0, help="examples before each question")] = None,
    use_template: Annotated[bool, typer.Option("--chat", help="ask in the model's chat template")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="questions read at a time")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="file to write; default: benchmark.json in the run folder")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Run tasks of lm-evaluation-harness, which the extra `eval` installs, on a run's model.

    Examples:
        preftune benchmark runs/demo --tasks arc_easy,hellaswag --limit 200
        preftune benchmark runs/demo --tasks my_task --include ./tasks
    """
    from preftune.evaluation.benchmark import benchmark as run_benchmark
    from preftune.report.evaluation_table import show_benchmark

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    found, path = run_benchmark(
        subject,
        names,
        include=include,
        limit=limit,
        few_shot=few_shot,
        chat=use_template,
        batch_size=batch_size,
        seed=seed,
        out=out,
    )
    show_benchmark(found)
    typer.echo(f"wrote {path}")


@app.command(rich_help_panel=PANEL)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to make")],
    merge: Annotated[bool, typer.Option("--merge", help="put LoRA adapters into the weights of their base")] = False,
) -> None:
    """Write a run's model into a folder that transformers and vLLM load.

    Examples:
        preftune export runs/lora ./aligned --merge
    """
    from preftune.evaluation.export import export as run_export

    typer.echo(run_export(run, out, merge=merge))


@app.command(rich_help_panel=PANEL)
def chat(
    subject: Subject,
    temperature: Annotated[float, typer.Option(min=0, help="of the answers; 0: the likeliest token each time")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer, in tokens")] = 256,
    system: Annotated[str | None, typer.Option("--system", help="a system turn to begin with")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="continue each line, even if there is a chat template")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Talk to a run's model: /reset forgets, /quit ends. Lines from a pipe are answered with a line each.

    Examples:
        preftune chat runs/demo
        echo "A heist film set in Norway." | preftune chat runs/demo --temperature 0
    """
    import sys

    from preftune.evaluation.chat import HELP, Chat, converse

    talk = Chat(subject, temperature, max_new_tokens, seed, plain, system)
    terminal = sys.stdin.isatty()
    if terminal:
        form = "each line is continued on its own" if talk.template is None else "in the model's chat template"
        typer.echo(f"{subject}, {form}; {HELP}", err=True)

    def say(text: str) -> None:
        typer.echo(text, nl=False)
        sys.stdout.flush()

    def note(text: str) -> None:
        typer.echo(f"note: {text}", err=True)

    converse(talk, _typed() if terminal else sys.stdin, say, note, stream=terminal)


def _typed() -> Iterator[str]:
    """Lines that a person types, until the end of input."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            typer.echo()
            return


def _note(messages: list[str] | tuple[str, ...]) -> None:
    for message in messages:
        typer.echo(f"note: {message}", err=True)


def _answering(policy: str | None, against: str | None, max_calls: int, key: str) -> Answering | None:
    """Who answers in place of the models at hand, from the options."""
    from preftune.evaluation.endpoint_writer import Answering
    from preftune.evaluation.judges import EndpointUse

    if policy is None and against is None:
        return None
    return Answering(policy=policy, against=against, use=EndpointUse(max_calls=max_calls, key_variable=key))


def _best_of(policy: int | None, against: int | None, by: str | None) -> BestOf | None:
    """Of how many answers the best is kept, from the options."""
    from preftune.errors import PreftuneError
    from preftune.evaluation.best_of_n import BestOf

    if policy is None and against is None:
        if by is not None:
            raise PreftuneError("--best-by says who chooses, but not from how many: add --best-of or --against-best-of")
        return None
    if by is None:
        raise PreftuneError("the best of several answers needs someone who scores them: name a judge with --best-by")
    return BestOf(by=by, policy=policy or 1, against=against or 1)


def _judging(
    judge: str | None, truth: str | None, checks: int, rubric: Path | None, max_calls: int, key: str
) -> Judging | None:
    """Who judges, from the options."""
    from preftune.errors import PreftuneError
    from preftune.evaluation.judges import EndpointUse
    from preftune.evaluation.winning import Judging

    if judge is None:
        for name, value in (("--truth", truth), ("--rubric", rubric)):
            if value is not None:
                raise PreftuneError(f"{name} is for a judge, and none is named: add --judge, or leave it out")
        return None
    use = EndpointUse(max_calls=max_calls, key_variable=key)
    return Judging(judge=judge, truth=truth, checks=checks, rubric=rubric, use=use)

"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="preftune",
    help="Align any causal language model on preference data, and prove what it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

study = typer.Typer(help="Run an experiment of the papers again.", no_args_is_help=True)
app.add_typer(study, name="study")

LARGEST_SEED = 2**63 - 1
DATA = (".jsonl", ".csv", ".parquet", ".gz")  # endings that no config has
INTERRUPTED = 130  # exit code after Ctrl-C
DEMO_FOLDER = Path("runs/demo")

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.yaml] [KEY=VALUE]...", help="a config file, and overrides of its keys"),
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="folder, hub id, 'sandbox' or 'scratch:<model type>'")]
Data = Annotated[str | None, typer.Option("--data", "-d", help="file, folder, hub id or 'sandbox'")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="run folder; default runs/<objective>-<time>")]
Lora = Annotated[bool, typer.Option("--lora", help="train LoRA adapters instead of all weights")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar")]


@app.command()
def train(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    objective: Annotated[
        str | None, typer.Option("--objective", help="one that `preftune objectives` lists, or package.module:Class")
    ] = None,
    out: Out = None,
    lora: Lora = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="go on with a run that was stopped, in its folder")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Align a model on preferences: --model and --data are enough.

    A run that was stopped goes on with --resume RUN; KEY=VALUE may then change how it is carried out or kept.

    Examples:
        preftune train --model sandbox --data sandbox --objective ipo
        preftune train --model ./my-model --data pairs.jsonl optim.learning_rate=1e-6 batch.size=32
        preftune train config.yaml objective.beta=0.2
        preftune train --resume runs/dpo-20260101-120000
    """
    if resume is None:
        _train(words, model, data, objective, out, lora, quiet)
    else:
        given = {"--model": model, "--data": data, "--objective": objective, "--out": out, "--lora": lora or None}
        _resume(resume, words or [], [name for name, value in given.items() if value is not None], quiet)


@app.command()
def sft(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    out: Out = None,
    lora: Lora = False,
    quiet: Quiet = False,
) -> None:
    """Train on demonstrations (or on the chosen responses of pairs)."""
    _train(words, model, data, "sft", out, lora, quiet)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="file to write")] = Path("preftune.yaml"),
) -> None:
    """Write a config with every key, its default and what it means."""
    from preftune import yaml_tree
    from preftune.config import RunConfig
    from preftune.errors import PreftuneError

    if path.exists():
        raise PreftuneError(f"{path} exists already: name another file")
    try:
        path.write_text(yaml_tree.commented(RunConfig), encoding="utf-8")
    except OSError as error:
        if path.is_file():  # as much of it as there was room for
            path.unlink()
        raise PreftuneError(f"cannot write {path} ({error.strerror}): name a file in a folder that exists") from None
    typer.echo(f"wrote {path}: set model.path and data.path, then run: preftune train {path}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="run folder")] = DEMO_FOLDER,
    count: Annotated[int, typer.Option("--pairs", min=64, max=1_000_000, help="training pairs")] = 4096,
    noise: Annotated[float, typer.Option(min=0, max=0.5, help="probability that a label is flipped")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of pairs and training")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in --out")] = False,
    quiet: Quiet = False,
) -> None:
    """Align the built-in model on the built-in world, in under a minute, and show what changed.

    A demo in runs/demo is replaced by the next one.
    """
    from preftune.demo import demo as run_demo
    from preftune.report.terminal import show_run

    again = overwrite or out == DEMO_FOLDER
    show_run(run_demo(out, count=count, noise=noise, seed=seed, overwrite=again, quiet=quiet))


@app.command()
def pairs(
    task: Annotated[str, typer.Argument(help="task whose answers can be checked: gsm8k, or package.module:Class")],
    model: Annotated[str, typer.Option("--model", "-m", help="folder, hub id, 'sandbox' or 'scratch:<model type>'")],
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="the task's questions, where it needs a file")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="file to write (jsonl)")] = Path("pairs.jsonl"),
    n: Annotated[int, typer.Option("-n", help="answers sampled for each question, at least 2")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="use the first questions only")] = None,
    temperature: Annotated[float, typer.Option(help="of the sampled answers, above 0")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer, in tokens")] = 256,
    chat: Annotated[bool, typer.Option("--chat", help="ask in the model's chat template, write conversations")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of the samples")] = 0,
    quiet: Quiet = False,
) -> None:
    """Sample answers to a task, check them, and write right-over-wrong pairs.

    Examples:
        preftune pairs gsm8k --model ./my-model --data train.jsonl --out pairs.jsonl
        preftune pairs my_module:MyTask --model ./my-chat-model --data questions.jsonl --chat
    """
    from preftune.pairs import write_pairs

    line = write_pairs(
        task,
        model,
        data,
        out,
        n=n,
        limit=limit,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        chat=chat,
        seed=seed,
        quiet=quiet,
    )
    typer.echo(line)


@app.command()
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

    file, rest = _split(words or [])
    found = check(data, model, held_out=held_out, against=against, write=write, config=file, overrides=rest)
    if as_json:
        from preftune.data.doctor.validation import as_json as plain

        typer.echo(json.dumps(plain(found), indent=2))
    else:
        from preftune.report.doctor import show

        show(found)
    raise typer.Exit(found.exit_code)


@app.command()
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

    file, rest = _split(words or [])
    show(data, model, n, file, rest)


@app.command()
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


@app.command()
def report(run: Annotated[Path, typer.Argument(help="run folder")]) -> None:
    """Write a run's report.html anew."""
    from preftune.report.html import write

    typer.echo(write(run))


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


@app.command()
def version() -> None:
    """Print the version."""
    from preftune import __version__

    typer.echo(__version__)


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _options(
    wanted: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options of the program itself."""


def _train(
    words: list[str] | None,
    model: str | None,
    data: str | None,
    objective: str | None,
    out: Path | None,
    lora: bool,
    quiet: bool,
) -> None:
    from preftune import yaml_tree
    from preftune.errors import PreftuneError

    file, rest = _split(words or [])
    if file is not None and file.suffix.lower() in DATA:
        raise PreftuneError(f"{file} is data and no config file: give it as --data {file}")
    given: dict[str, Any] = {"model.path": model, "data.path": data, "objective.name": objective, "output.path": out}
    # quoted: a folder may be called 2024 or true
    overrides = [f"{key}={json.dumps(str(value))}" for key, value in given.items() if value is not None]
    if lora and not _names_adapters(file):
        overrides.append("model.lora={}")  # before the user's own words, which may set its fields
    overrides += rest
    named = {word.partition("=")[0] for word in overrides}
    if file is None and not {"model.path", "data.path"} <= named:
        raise PreftuneError("nothing to train: give --model and --data, or a config file (preftune init writes one)")

    from preftune.api import run
    from preftune.config import RunConfig
    from preftune.report.terminal import show_run

    config = yaml_tree.load(RunConfig, file, overrides, tagged=("objective",))
    done = run(config, file=file, show=not quiet)
    if os.environ.get("RANK", "0") == "0":
        show_run(done)


def _resume(run: Path, words: list[str], options: list[str], quiet: bool) -> None:
    from preftune.errors import PreftuneError

    file, changes = _split(words)
    if file is not None or options:
        raise PreftuneError(
            f"--resume goes on with the config of the run, so {file or options[0]} has no place beside it: leave it out"
        )
    from preftune.api import resume
    from preftune.report.terminal import show_run

    show_run(resume(run, changes=changes, quiet=quiet))


def _split(words: list[str]) -> tuple[Path | None, list[str]]:
    """Config file and overrides."""
    from preftune.errors import PreftuneError

    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise PreftuneError(f"one config file at a time, got {' and '.join(files)} (overrides are KEY=VALUE)")
    return (Path(files[0]) if files else None), [word for word in words if "=" in word]


def _names_adapters(file: Path | None) -> bool:
    """True if the config file describes LoRA adapters, which --lora then leaves as they are."""
    from preftune import yaml_tree

    model = yaml_tree.read(file).get("model") if file is not None else None
    return isinstance(model, dict) and model.get("lora") is not None


def _speaks(error: Exception) -> bool:
    """True if it is for this process to say what went wrong: of several, one does."""
    if "LOCAL_RANK" not in os.environ:
        return True
    from preftune.training.processes import speaks

    return speaks(error)


def main() -> None:
    """Entry point: errors that a user can mend are one sentence and exit code 2."""
    from preftune.api_keys import hidden
    from preftune.errors import PreftuneError

    if "LOCAL_RANK" in os.environ:
        # MKL's products are rounded as their operands lie in memory, and weights that FSDP2 gathers lie anywhere: on
        # CPUs, runs would differ from time to time; it reads this when torch is imported
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    try:
        app()
    except PreftuneError as error:
        if _speaks(error):
            print(f"error: {hidden(str(error))}", file=sys.stderr)
        if "LOCAL_RANK" in os.environ:
            from preftune.training.processes import end

            end(2)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer makes the second of the first
        if said := getattr(stop, "message", None):  # a run that has saved what it had
            if os.environ.get("RANK", "0") == "0":
                print(said, file=sys.stderr)
        elif isinstance(stop, KeyboardInterrupt) or stop.code == INTERRUPTED:
            print("stopped before it was done", file=sys.stderr)
            sys.exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()

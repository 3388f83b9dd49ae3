"""Commands that make a model: train, sft, demo; and what they begin with: init, pairs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.cli.app import LARGEST_SEED, Data, Lora, Model, Out, Quiet, Words, app, split_words

PANEL = "Training"
DATA = (".jsonl", ".csv", ".parquet", ".gz")  # endings that no config has
DEMO_FOLDER = Path("runs/demo")


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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

    file, rest = split_words(words or [])
    if file is not None and file.suffix.lower() in DATA:
        raise PreftuneError(f"{file} is data and no config file: give it as --data {file}")
    given: dict[str, Any] = {"model.path": model, "data.path": data, "objective.name": objective, "output.path": out}
    # quoted: a folder may be called 2024 or true
    overrides = [f"{key}={json.dumps(str(value))}" for key, value in given.items() if value is not None]
    if lora and not names_adapters(file):
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

    file, changes = split_words(words)
    if file is not None or options:
        raise PreftuneError(
            f"--resume goes on with the config of the run, so {file or options[0]} has no place beside it: leave it out"
        )
    from preftune.api import resume
    from preftune.report.terminal import show_run

    show_run(resume(run, changes=changes, quiet=quiet))


def names_adapters(file: Path | None) -> bool:
    """True if the config file describes LoRA adapters, which --lora then leaves as they are."""
    from preftune import yaml_tree

    model = yaml_tree.read(file).get("model") if file is not None else None
    return isinstance(model, dict) and model.get("lora") is not None

"""The command that trains an optimiser: prompts train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.cli.app import Lora, Model, Out, Quiet, Words, split_words
from preftune.cli.prompting import prompts


@prompts.command()
def train(
    words: Words = None,
    model: Model = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="pairs of rewrites: file, folder or hub id")] = None,
    objective: Annotated[
        str | None, typer.Option("--objective", help="sft, dpo, ipo, or any other that learns from pairs")
    ] = None,
    out: Out = None,
    lora: Lora = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="FOLDER", help="go on with what was stopped, in its folder")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model that rewrites prompts, on pairs of a better and a worse rewrite.

    With prompts.rounds=N it learns in rounds: it proposes rewrites, and learns from what is accepted in turn.
    Keys are those of preftune train, and those of the block prompts (examples/prompts.yaml).

    Examples:
        preftune prompts train --model ./my-model --data pairs.jsonl --objective ipo
        preftune prompts train config.yaml objective.tau=0.05 prompts.rounds=3
        preftune prompts train --resume runs/ipl-ipo-20260101-120000
    """
    from preftune.prompting.training import resume_prompts, train_prompts
    from preftune.report.prompt_rounds import show

    def say(text: str) -> None:
        typer.echo(text, err=True)

    if resume is not None:
        given = {"--model": model, "--data": data, "--objective": objective, "--out": out, "--lora": lora or None}
        show(resume_prompts(resume, changes=_changes(words, given), quiet=quiet, say=say))
        return
    config, file = _config(words, model, data, objective, out, lora)
    show(train_prompts(config, quiet=quiet, file=file, say=say))


def _config(
    words: list[str] | None, model: str | None, data: str | None, objective: str | None, out: Path | None, lora: bool
) -> tuple[Any, Path | None]:
    from preftune import yaml_tree
    from preftune.cli.training import DATA, names_adapters
    from preftune.errors import PreftuneError
    from preftune.prompting.config import PromptsRunConfig

    file, rest = split_words(words or [])
    if file is not None and file.suffix.lower() in DATA:
        raise PreftuneError(f"{file} is data and no config file: give it as --data {file}")
    given = {"model.path": model, "data.path": data, "objective.name": objective, "output.path": out}
    overrides = [f"{key}={json.dumps(str(value))}" for key, value in given.items() if value is not None]
    if lora and not names_adapters(file):
        overrides.append("model.lora={}")
    config = yaml_tree.load(PromptsRunConfig, file, overrides + rest, tagged=("objective",))
    if config.data.path is None:
        raise PreftuneError("nothing to train on: give --data, a file of pairs of rewrites, or a config file")
    return config, file


def _changes(words: list[str] | None, given: dict[str, Any]) -> list[str]:
    from preftune.errors import PreftuneError

    file, changes = split_words(words or [])
    beside = [str(file)] if file is not None else [name for name, value in given.items() if value is not None]
    if beside:
        raise PreftuneError(
            f"--resume goes on with the config in the folder, so {beside[0]} has no place beside it: leave it out"
        )
    return changes

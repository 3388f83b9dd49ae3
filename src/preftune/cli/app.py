"""The program, and what its commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="preftune",
    help="Align any causal language model on preference data, and prove what it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

LARGEST_SEED = 2**63 - 1

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.yaml] [KEY=VALUE]...", help="a config file, and overrides of its keys"),
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="folder, hub id, 'sandbox' or 'scratch:<model type>'")]
Data = Annotated[str | None, typer.Option("--data", "-d", help="file, folder, hub id or 'sandbox'")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="run folder; default runs/<objective>-<time>")]
Lora = Annotated[bool, typer.Option("--lora", help="train LoRA adapters instead of all weights")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar")]


def split_words(words: list[str]) -> tuple[Path | None, list[str]]:
    """Config file and overrides."""
    from preftune.errors import PreftuneError

    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise PreftuneError(f"one config file at a time, got {' and '.join(files)} (overrides are KEY=VALUE)")
    return (Path(files[0]) if files else None), [word for word in words if "=" in word]

"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from preftune.cli.app import app

INTERRUPTED = 130  # exit code after Ctrl-C

_GROUPS = (
    "training",
    "sweeping",
    "data",
    "evaluating",
    "judging",
    "inspecting",
    "reporting",
    "prompting",
    "studies",
)  # as in --help
for _commands in _GROUPS:
    import_module(f"preftune.cli.{_commands}")


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

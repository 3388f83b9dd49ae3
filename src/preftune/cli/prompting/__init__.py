"""Commands about prompt optimisers: `preftune prompts`. One file each."""

from __future__ import annotations

from importlib import import_module

import typer

from preftune.cli.app import app

prompts = typer.Typer(help="Train a model that rewrites prompts, from preferences, and use it.", no_args_is_help=True)

_COMMANDS: tuple[str, ...] = ("collect", "diversify", "train", "optimize", "serve", "evaluate")  # as in --help
for _command in _COMMANDS:
    import_module(f"preftune.cli.prompting.{_command}")
if _COMMANDS:
    app.add_typer(prompts, name="prompts", rich_help_panel="Prompts")

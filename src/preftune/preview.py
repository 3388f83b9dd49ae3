"""The command of the same name: the first rows of some data, as a model's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from preftune import yaml_tree
from preftune.config import RunConfig
from preftune.data import sources
from preftune.data.records import records
from preftune.data.rendering import Renderer
from preftune.errors import PreftuneError
from preftune.report.preview import show
from preftune.validate import as_tokens


def preview(data: str, model: str, count: int, config: Path | None, overrides: Sequence[str]) -> None:
    """Print the first `count` records of `data` as the tokens that a run with this model would train on.

    Raises:
        PreftuneError: for anything a user can mend.
    """
    for word in overrides:
        if not word.startswith("data."):
            raise PreftuneError(f"{word} has no effect on preview: only keys of data are read, such as data.layout")
    settings = yaml_tree.load(RunConfig, config, list(overrides), tagged=("objective",))
    tokens = as_tokens(model, settings)
    found = records(sources.rows(data, split=settings.data.split), settings.data.layout)
    show(islice(found, count), Renderer(tokens.tokenizer, tokens.rendering))

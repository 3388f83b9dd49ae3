"""The command of the same name: data, and how to look at it -> what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.data.doctor.cleaning import check_target
from preftune.data.doctor.validation import THOROUGH, AsTokens, Checked, Diagnosis, diagnose
from preftune.data.lines import Reading
from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from preftune.config import RunConfig


def validate(
    data: str,
    model: str | None = None,
    *,
    held_out: str | None = None,
    against: str | None = None,
    write: Path | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> Diagnosis:
    """Check data before training.

    Args:
        data: file, folder, hub id or "sandbox".
        model: folder, hub id or "sandbox" whose tokenizer to check with; without it, neither torch nor transformers is
            imported.
        held_out: held-out data that lies apart, whose prompts training rows should not hold.
        against: an evaluation set, likewise.
        write: a file for the rows that are good; the others go to NAME.dropped.jsonl beside it.
        config: a config file, of which the `data` block counts.
        overrides: keys of that block: `data.rendering.max_length=512`.

    Raises:
        PreftuneError: for anything a user can mend but the rows themselves.
    """
    for word in overrides:
        if not word.startswith("data."):
            raise PreftuneError(f"{word} has no effect on validate: only keys of data are read, such as data.layout")
    if write is not None:
        check_target(write)
    settings: RunConfig | None = None
    checked = Checked(data, held_out=held_out, against=against, write=write)
    if config is not None or overrides:
        settings = _settings(config, overrides)
        read = settings.data
        apart = held_out if held_out is not None else read.held_out_path
        checked = Checked(
            data, Reading(read.layout, read.split, read.limit, "drop"), read.doctor, apart, against, write
        )
    return diagnose(checked, None if model is None else as_tokens(model, settings))


def as_tokens(model: str, settings: RunConfig | None) -> AsTokens:
    """The tokenizer of a model, and how to render with it.

    Raises:
        PreftuneError: if it cannot be read.
    """
    from preftune.config import RunConfig
    from preftune.policy.loading import read_only_tokenizer

    settings = settings or RunConfig()
    tokenizer, longest = read_only_tokenizer(settings.model.model_copy(update={"path": model}))
    rendering = settings.data.rendering
    if longest is not None and longest < (rendering.max_length or longest + 1):
        rendering = rendering.model_copy(update={"max_length": longest})
    return AsTokens(tokenizer, rendering, settings.data.workers)


def _settings(config: Path | None, overrides: Sequence[str]) -> RunConfig:
    from preftune import yaml_tree
    from preftune.config import RunConfig

    base: dict[str, Any] = {"data": {"doctor": dict(THOROUGH)}}
    return yaml_tree.load(RunConfig, config, list(overrides), base=base, tagged=("objective",))

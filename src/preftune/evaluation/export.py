"""A run's model as a folder of its own, which transformers, vLLM and others load."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel

from preftune.errors import PreftuneError
from preftune.evaluation.models import MODEL, Named, find, load_policy
from preftune.files import settle_all
from preftune.policy.weights import check_finite
from preftune.report.reading import read
from preftune.training.saving import model_card, write_model


def export(run: str | Path, out: str | Path, *, merge: bool = False) -> str:
    """Write a run's model into a new folder: weights (safetensors), tokenizer with its chat template, generation
    config and card; whole or not at all.

    Args:
        run: a run folder.
        out: folder to make.
        merge: put adapters into the weights of their base, so that a whole model comes out; what was trained whole
            is copied either way.

    Returns:
        One line that says what was written.

    Raises:
        PreftuneError: if there is no finished run, the folder is taken, or its adapters cannot be merged.
    """
    named, target = find(run), Path(out)
    if named.run is None:
        raise PreftuneError(f"{run} is no run: a model needs no export, copy its folder")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise PreftuneError(f"{target} exists already: name another folder")
    if not (merge and named.has_adapter):
        source = named.run / MODEL
        _made(target, lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True))
        if named.has_adapter:
            return f"wrote {target}: the adapter, to be loaded over its base; --merge writes a whole model"
        return f"wrote {target}: the whole model"
    _check_mergeable(named)
    loaded = load_policy(named)
    adapted: Any = loaded.lm
    assert isinstance(adapted, PeftModel)  # see `has_adapter`
    whole = adapted.merge_and_unload(safe_merge=True)
    check_finite(whole, f"{run}, merged,")
    start = f"{named.config.model.path}, with adapters merged into it"
    card = model_card(read(named.run).summary, start, whole, target, _version())
    _made(target, lambda folder: write_model(folder, whole, loaded.tokenizer, whole.state_dict(), card))
    return f"wrote {target}: the adapter merged into {named.config.model.path}"


def _check_mergeable(named: Named) -> None:
    """Refuse adapters over rounded weights.

    Raises:
        PreftuneError: says what to do instead.
    """
    kind = named.config.model.quantize
    if kind != "none":
        raise PreftuneError(
            f"{named.path} trained its adapter over a base in {kind} (model.quantize), and a merge would round the sum "
            "again: export without --merge, and load the adapter over the same base"
        )


def _made(target: Path, fill: Callable[[Path], Any]) -> None:
    """Fill a folder beside the target, then put it there."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        settle_all(temporary)
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except OSError as error:
        raise PreftuneError(
            f"cannot write {target} ({error.strerror or error}): make room there, or name another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _version() -> str:
    from preftune import __version__

    return __version__

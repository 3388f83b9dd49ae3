"""A policy as a folder that plain transformers loads, with a card that says what it is."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.errors import PreftuneError
from preftune.files import settle_all
from preftune.policy.policy import base_model
from preftune.quiet import without_progress_bars
from preftune.training.run_folder import RunFolder

CARD = """---
library_name: {library}
tags: [preftune, {objective}]
---
# {title}

Trained with [preftune](https://pypi.org/project/preftune/) {version}: objective `{objective}`, {steps} optimiser steps,
starting from `{start}`.

```python
{code}
```

| held out | before | after |
|---|---|---|
{rows}
"""
WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})"""
ADAPTER = """from peft import PeftModel
model = PeftModel.from_pretrained(model, {folder!r})  # `model` is the base that the adapter was trained on"""
MODULE = """from safetensors.torch import load_file
model.load_state_dict(load_file("{folder}/model.safetensors"))  # `model` is a new {kind}"""
ROWS = (
    ("preference_accuracy", "implicit preference accuracy"),
    ("policy_accuracy", "accuracy of its own log-probs"),
    ("margin", "margin"),
    ("loss", "loss"),
)


def save(
    folder: RunFolder,
    name: str,
    lm: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    state: Mapping[str, Any],
    card: str | None = None,
) -> Path:
    """Save a model under `name` in the run folder, whole or not at all; arguments as of `write_model`.

    Raises:
        PreftuneError: if the disk does not take it.
    """
    temporary = folder.path / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_model(temporary, lm, tokenizer, state, card)
        settle_all(temporary)
        folder.replace_folder(name, temporary)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise PreftuneError(
            f"cannot write {folder.path / name} ({error.strerror or error}): make room there, then go on with: "
            f"preftune train --resume {folder.path}"
        ) from error
    return folder.path / name


def write_model(
    folder: Path,
    lm: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    state: Mapping[str, Any],
    card: str | None = None,
) -> None:
    """Write weights (safetensors), tokenizer and card into a folder.

    Args:
        folder: is there.
        lm: the language model (or its adapter, if PEFT made one).
        tokenizer: saved beside it, if there is one.
        state: the state dict to save (gathered from all processes).
        card: text of its README.md.

    Raises:
        OSError: if the disk does not take it.
    """
    try:
        if isinstance(lm, PreTrainedModel) or hasattr(lm, "peft_config"):
            _name_base_absolutely(lm)
            with without_progress_bars():
                lm.save_pretrained(folder, state_dict=dict(state))  # type: ignore[operator]
        else:
            # copies, because tied weights are refused: their places in the file must not overlap
            save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / "model.safetensors")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # which is how it reports a full disk
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _name_base_absolutely(lm: nn.Module) -> None:
    """Let an adapter name its base so that it is found from any folder."""
    for adapter in getattr(lm, "peft_config", {}).values():
        base = adapter.base_model_name_or_path
        if base and Path(base).is_dir():
            adapter.base_model_name_or_path = str(Path(base).resolve())


def _loading(lm: nn.Module, folder: Path) -> tuple[str, str]:
    """The library that loads a saved policy, and how."""
    adapters = getattr(lm, "peft_config", {}).values()
    if any(not adapter.base_model_name_or_path for adapter in adapters):
        return "peft", ADAPTER.format(folder=str(folder))
    if adapters or isinstance(lm, PreTrainedModel):
        code = WHOLE.format(folder=str(folder))
        if type(base_model(lm)).__name__.endswith("ForSequenceClassification"):
            code = code.replace("AutoModelForCausalLM", "AutoModelForSequenceClassification")
        return "peft" if adapters else "transformers", code
    return "pytorch", MODULE.format(folder=folder, kind=type(lm).__name__)


def model_card(summary: Mapping[str, Any], start: str, lm: nn.Module, folder: Path, version: str) -> str:
    """The README.md of a saved policy."""
    before, after = summary.get("before", {}), summary.get("after", {})
    library, code = _loading(lm, folder)
    rows = [f"| {label} | {_figure(before, key)} | {_figure(after, key)} |" for key, label in ROWS if key in before]
    return CARD.format(
        title=folder.parent.name,
        objective=summary["objective"],
        steps=summary["steps"],
        start=start,
        library=library,
        code=code,
        version=version,
        rows="\n".join(rows) or "| nothing was held out | | |",
    )


def _figure(values: Mapping[str, Any], key: str) -> str:
    value, interval = values.get(key), values.get(f"{key}_ci95")
    if value is None:
        return ""
    return f"{value:.4g}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")

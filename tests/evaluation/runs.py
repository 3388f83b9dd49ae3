"""Runs of all kinds, small and quick, to evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from preftune.sandbox.preferences import rows

SETTINGS: dict[str, Any] = {
    "optim": {"learning_rate": 2e-3},
    "evaluate": {"samples": 0, "max_new_tokens": 24},
    "data": {"held_out": 0.3},
}
PAIRS = [{**row, "source": ("even", "odd")[i % 2]} for i, row in enumerate(rows(96))]
DATA: dict[str, list[dict[str, Any]]] = {
    "pairs": PAIRS,
    "labels": [
        {"prompt": row["prompt"], "completion": row[("rejected", "chosen")[i % 2]], "label": bool(i % 2)}
        for i, row in enumerate(PAIRS)
    ],
    "rankings": [
        {
            "prompt": row["prompt"],
            "responses": [row["rejected"], row["chosen"], row["rejected"] * 2],
            "scores": [1, 2, 0],
        }
        for row in PAIRS
    ],
    "demonstrations": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS],
}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dpo": ("dpo", "pairs", {}),
    "lora": ("dpo", "pairs", {"model": {"lora": {"r": 4, "dropout": 0.1}}}),
    "biases": ("ipo", "pairs", {"model": {"lora": {"r": 2, "bias": "all"}}}),
    "simpo": ("simpo", "pairs", {"model": {"layout": "padded"}}),
    "tdpo": ("tdpo", "pairs", {}),
    "kto": ("kto", "labels", {}),
    "kto-pairs": ("kto", "pairs", {}),
    "rankings": ("plackett_luce", "rankings", {}),
    "sft": ("sft", "demonstrations", {}),
    "reward": ("bradley_terry", "pairs", {}),
    "reward-lora": ("bradley_terry", "pairs", {"model": {"lora": {"r": 2}}}),
    "scratch": ("dpo", "pairs", {"model": {"path": "scratch:llama"}}),
}

Made = Callable[[str], Path]

"""The rows of the CUDA benchmark: model shapes with random weights, and generated pairs with real data's lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from settings import Setting
from transformers import Qwen3ForCausalLM

from preftune.data.examples import Example, Response
from preftune.objectives.batch import Role

MAX_LENGTH = 2048
COMMON: dict[str, Any] = {
    "vocab_size": 151_936, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 40_960,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {**COMMON, "hidden_size": 1024, "intermediate_size": 3072},
    "1.7B": {**COMMON, "hidden_size": 2048, "intermediate_size": 6144},
    "tiny": {
        **COMMON, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths in tokens, of prompt, chosen and rejected.

    Attributes:
        medians: of the three.
        spreads: standard deviations of the logarithms.
        batch: pairs of one optimiser step.
    """

    medians: tuple[int, int, int]
    spreads: tuple[float, float, float]
    batch: int


# UltraFeedback's paper (arXiv 2310.01377) gives means of 185 tokens for prompts and 305 for responses; log-normal
# lengths of these spreads and medians have them. The 405,688,662 bytes of the binarised set's 61,135 training pairs
# agree: a row holds the prompt four times, chosen twice and rejected once, about 1,700 tokens of 3.9 bytes.
LENGTHS = {
    "dialogue": Lengths((96, 27, 36), (0.5, 0.5, 0.5), batch=16),
    "ultrafeedback": Lengths((112, 250, 228), (1.0, 0.7, 0.7), batch=8),
    "tiny": Lengths((12, 5, 6), (0.5, 0.5, 0.5), batch=4),
}


def setting(model: str, lengths: str, batches: int) -> Setting:
    """A model's shape with this many batches of pairs."""
    shape, found = SHAPES[model], LENGTHS[lengths]
    return Setting(f"{model}/{lengths}", shape, generated(found, found.batch * batches, shape["vocab_size"]))


def generated(lengths: Lengths, count: int, vocabulary: int) -> list[Example]:
    """Random pairs of at most 2,048 tokens a response, prompt included; the same in every process."""
    random = np.random.default_rng(0)

    def ids(at: int) -> np.ndarray:
        drawn = lengths.medians[at] * np.exp(random.normal(0, lengths.spreads[at]))
        return random.integers(4, vocabulary, int(np.clip(round(drawn), 4, MAX_LENGTH // 2))).astype(np.int32)

    return [
        Example(ids(0), (Response(ids(1), Role.CHOSEN), Response(ids(2), Role.REJECTED)), row=row)
        for row in range(count)
    ]


def batches_of(found: Setting) -> list[list[Example]]:
    """The optimiser batches of a setting."""
    size = LENGTHS[found.name.split("/")[1]].batch
    return [found.examples[i : i + size] for i in range(0, len(found.examples), size)]


def models_on(found: Setting, device: str) -> tuple[Qwen3ForCausalLM, Qwen3ForCausalLM]:
    """Policy and reference, made where they are used: drawing 1.7 billion weights takes a CPU half a minute."""
    with torch.device(device):
        return found.models()


def tokens(examples: Sequence[Example]) -> int:
    """Tokens of prompt trees: every prompt once."""
    return sum(example.tokens for example in examples)

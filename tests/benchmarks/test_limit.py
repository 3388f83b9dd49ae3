"""The limit counts the work that a step cannot do without, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import COUNTED
from transformers import Qwen3Config, Qwen3ForCausalLM

from preftune.data.examples import Example, Response
from preftune.objectives.batch import Role


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    import limit

    return limit


def pairs(*lengths: tuple[int, int, int]) -> list[Example]:
    def ids(count: int) -> np.ndarray:
        return np.zeros(count, dtype=np.int32)

    return [
        Example(ids(prompt), (Response(ids(chosen), Role.CHOSEN), Response(ids(rejected), Role.REJECTED)))
        for prompt, chosen, rejected in lengths
    ]


def test_operations_equal_the_analytic_count(limit: Any) -> None:
    """Of weights: 2 operations a weight and token forward, 4 backward, 2 in the reference. Of attention: each token
    against what it sees, twice forward, in both models, and four products backward."""
    config = Qwen3Config(**COUNTED)
    examples = pairs((40, 31, 25), (57, 91, 85), (12, 3, 60))
    weights = sum(p.numel() for n, p in Qwen3ForCausalLM(config).named_parameters() if p.ndim == 2 and "embed" not in n)
    tokens = sum(e.tokens for e in examples)
    targets = sum(r.length for e in examples for r in e.responses)
    linear = 8 * (weights * tokens + config.vocab_size * config.hidden_size * targets)
    seen = sum(
        len(e.prompt) * (len(e.prompt) + 1) / 2
        + sum(r.length * (len(e.prompt) + (r.length + 1) / 2) for r in e.responses)
        for e in examples
    )
    attention = 2 * 8 * seen * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    found = limit.operations(limit.products(config, examples))
    assert found == pytest.approx(linear + attention, rel=0.01)


def test_twice_the_pairs_are_twice_the_operations(limit: Any) -> None:
    config, examples = Qwen3Config(**COUNTED), pairs((40, 31, 25), (57, 91, 85))
    once, twice = (limit.operations(limit.products(config, each)) for each in (examples, examples * 2))
    assert twice == 2 * once


def test_products_take_time(limit: Any) -> None:
    assert limit.seconds(limit.products(Qwen3Config(**COUNTED), pairs((8, 4, 4))), repeats=1) > 0

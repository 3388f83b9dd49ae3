"""The work that a training step cannot do without: its matrix products, counted, and timed alone at their own shapes.

A step is the policy's forward and backward and a live reference's forward over prompt trees: every prompt once, the
head over response tokens alone. Norms, softmax, rotations, the optimiser and everything in between cost nothing here,
so the sum of the products' times is a bound that no implementation on this machine reaches.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from preftune.data.examples import Example


@dataclass(frozen=True)
class Product:
    """`batch` products of (rows, inner) by (inner, columns)."""

    rows: int
    inner: int
    columns: int
    batch: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns * self.batch


def products(config: Any, examples: Sequence[Example]) -> Counter[Product]:
    """All products of one optimiser step over a batch, with how often each occurs.

    Args:
        config: of a Llama-like model (gated MLP, grouped-query attention).
        examples: pairs, or any prompt trees.
    """
    tokens = sum(example.tokens for example in examples)
    targets = sum(response.length for example in examples for response in example.responses)
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    linear = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    linear += [(hidden, inner), (hidden, inner), (inner, hidden)]
    found: Counter[Product] = Counter()
    for fan_in, fan_out in linear:
        found.update(_layer(tokens, fan_in, fan_out, config.num_hidden_layers))
    found.update(_layer(targets, hidden, config.vocab_size, 1))
    for shape in _attention(examples, head, config.num_attention_heads):
        found[shape] += config.num_hidden_layers
    return found


def _layer(rows: int, fan_in: int, fan_out: int, layers: int) -> Counter[Product]:
    """A linear layer: forward in policy and reference, then the gradients of its input and of its weight."""
    return (
        Counter({Product(rows, fan_in, fan_out): 2 * layers})
        + Counter({Product(rows, fan_out, fan_in): layers})
        + Counter({Product(fan_out, rows, fan_in): layers})
    )


def _attention(examples: Iterable[Example], head: int, heads: int) -> Iterable[Product]:
    """Scores and mixtures of every segment over what it sees: twice forward; four more products backward."""
    for example in examples:
        prompt = len(example.prompt)
        for length, before in [(prompt, 0), *((len(response.ids), prompt) for response in example.responses)]:
            seen = before + (length + 1) // 2  # on average: the rest of a causal square is not needed
            for _ in range(2):  # policy and reference
                yield Product(length, head, seen, heads)  # scores
                yield Product(length, seen, head, heads)  # mixtures
            yield Product(length, head, seen, heads)  # gradient of the probabilities
            yield Product(length, seen, head, heads)  # of the queries
            yield Product(seen, length, head, heads)  # of the keys
            yield Product(seen, length, head, heads)  # of the values


def operations(found: Counter[Product]) -> int:
    """Multiplications and additions of all products."""
    return sum(product.operations * count for product, count in found.items())


def seconds(found: Counter[Product], repeats: int = 5) -> float:
    """Time of all products, each alone at its own shape, in place of an output that is there already: medians."""
    return sum(_timed(product, repeats) * count for product, count in found.items())


def _timed(product: Product, repeats: int) -> float:
    left = torch.randn(product.batch, product.rows, product.inner)
    right = torch.randn(product.batch, product.inner, product.columns)
    out = torch.empty(product.batch, product.rows, product.columns)
    if product.batch == 1:
        left, right, out = left[0], right[0], out[0]
    multiply = torch.mm if product.batch == 1 else torch.bmm
    inner = max(1, int(2e7 // product.operations))  # small ones several times, or the clock would be what is measured
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(inner):
            multiply(left, right, out=out)
        times.append((time.perf_counter() - start) / inner)
    return statistics.median(times[1:])

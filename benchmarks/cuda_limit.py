"""The limit on a GPU: the products that a step cannot do without, in bf16, timed alone where they are made.

Linear layers and the head: each product at its own shape, into an output that is there already. Attention's small
products would measure how long a launch takes, which no kernel over all segments pays: they are counted, at the rate of
a large square product, the best that this card gives. Norms, softmax, rotations and the optimiser cost nothing.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from cuda_settings import batches_of
from limit import Product, operations, products
from settings import Setting
from transformers import Qwen3Config

SQUARE = {"cuda": 8192, "cpu": 256}
DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}


def limit(found: Setting, device: str, batches: int = 2) -> dict[str, float]:
    """Pairs per second that no implementation passes, from the first batches of a setting; and what it rests on."""
    config = Qwen3Config(**found.shape)
    some = batches_of(found)[:batches]
    needed = [products(config, batch) for batch in some]
    best = best_rate(device)
    taken = sum(seconds(each, device, best) for each in needed)
    pairs = sum(len(batch) for batch in some)
    counted = sum(operations(each) for each in needed)
    return {"pairs_per_second": pairs / taken, "tera_operations_a_pair": counted / pairs / 1e12, "best_rate": best}


def best_rate(device: str) -> float:
    """Operations per second of a large square product."""
    size = SQUARE[device]
    return 2 * size**3 / _alone(Product(size, size, size), device)


def seconds(found: Counter[Product], device: str, best: float) -> float:
    """Time of all products."""
    linear = sum(_alone(product, device) * count for product, count in found.items() if product.batch == 1)
    return linear + sum(p.operations * count for p, count in found.items() if p.batch > 1) / best


def _alone(product: Product, device: str) -> float:
    left = torch.randn(product.rows, product.inner, device=device, dtype=DTYPE[device])
    right = torch.randn(product.inner, product.columns, device=device, dtype=DTYPE[device])
    out = torch.empty(product.rows, product.columns, device=device, dtype=DTYPE[device])
    return statistics.median(timed(lambda: torch.mm(left, right, out=out), device, repeats=5))


def timed(work: Callable[[], object], device: str, repeats: int) -> Sequence[float]:
    """Seconds of each of some repeats, after one to warm up; on a GPU, the device's own."""
    work()
    if device == "cpu":
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
        return found
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) / 1e3 for first, second in pairwise(marks)]

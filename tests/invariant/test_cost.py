"""What a step costs: the products that it cannot do without, and twice as many of them for twice the pairs.

Operations are counted while a real step runs, at the shapes that are really multiplied. Attention multiplies more than
it needs: whole squares where half of each is seen, and segments of like size padded to one. Of fused kernels, which
skip what is not seen, what is seen is counted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from miniatures import COUNTED
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from preftune.data.examples import Example, Response
from preftune.objectives import terms
from preftune.objectives.batch import Role
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference
from preftune.training.batches import BatchConfig
from preftune.training.feed import Feed
from preftune.training.optim import OptimConfig, optimizer
from preftune.training.step import Step


def product(left: Sequence[int], right: Sequence[int]) -> int:
    return 2 * left[0] * left[1] * right[1]


def seen(query_BHQD: Sequence[int], key_BHCD: Sequence[int]) -> int:
    """Operations of one product of attention: each query with the keys up to its own, which is among the last."""
    batch, heads, queries, head = query_BHQD
    before = key_BHCD[2] - queries
    return 2 * batch * heads * head * (queries * before + queries * (queries + 1) // 2)


ATEN = torch.ops.aten
# What the counter does not know: shapes of the operands -> operations.
FORMULAS: dict[Any, Any] = {
    ATEN.addmm_: lambda bias, left, right, *rest, **named: product(left, right),
    # scores and mixtures
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **named: 2 * seen(q, k),
    # the gradients of probabilities, queries, keys and values; that scores are computed anew is the kernel's own affair
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *rest, **named: 4 * seen(q, k),
}
LINEAR = {ATEN.mm, ATEN.addmm, ATEN.addmm_}
ATTENTION = {*FORMULAS, ATEN.bmm, ATEN.baddbmm} - LINEAR


def operations(examples: Sequence[Example], **limits: Any) -> tuple[int, int]:
    """Of one optimiser step of DPO with a live reference: those of linear layers and head, and those of attention."""
    torch.manual_seed(0)
    policy = PolicyModule(Qwen3ForCausalLM(Qwen3Config(**COUNTED)), "tree")
    step = Step(policy, FrozenReference.copy_of(policy), terms("dpo"), Accelerator(cpu=True), 0)
    feed = Feed(policy, BatchConfig(**limits), None, torch.device("cpu"), 0)
    micros = feed.side(examples)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        step.train(micros, ({},), optimizer(policy, OptimConfig(), 1e-4), 0, 1.0)
    counts = counter.get_flop_counts()["Global"]
    assert not set(counts) - {*LINEAR, *ATTENTION}, "one that belongs to neither"
    linear = sum(counts.get(packet, 0) for packet in LINEAR)
    return linear, counter.get_total_flops() - linear


def pairs(*sizes: tuple[int, int, int]) -> list[Example]:
    """Pairs of these lengths, whose responses have nothing in common."""

    def ids(count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(3, COUNTED["vocab_size"], count).astype(np.int32)

    return [
        Example(
            ids(prompt, 3 * row),
            (Response(ids(chosen, 3 * row + 1), Role.CHOSEN), Response(ids(rejected, 3 * row + 2), Role.REJECTED)),
            row=row,
        )
        for row, (prompt, chosen, rejected) in enumerate(sizes)
    ]


EXAMPLES = pairs((40, 31, 25), (57, 91, 85), (12, 3, 60))


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    import limit

    return limit


@pytest.mark.parametrize("examples", [EXAMPLES, pairs((400, 45, 45)), pairs((5, 200, 180), (9, 90, 170))])
def test_a_step_multiplies_what_it_cannot_do_without(limit, examples):
    needed = limit.products(Qwen3Config(**COUNTED), examples)
    in_attention = sum(each.operations * count for each, count in needed.items() if each.batch > 1)
    # nobody reads what the last MLP makes of prompt tokens that predict nothing
    mlp = 8 * 3 * COUNTED["hidden_size"] * COUNTED["intermediate_size"]
    spared = mlp * sum(len(example.prompt) - 1 for example in examples)
    linear, attention = operations(examples)
    assert linear == pytest.approx(limit.operations(needed) - in_attention - spared, rel=0.01)
    assert 0.99 * in_attention <= attention <= 2.5 * in_attention


@pytest.mark.parametrize("limits", [{}, {"micro_size": 1}, {"micro_tokens": 300}])
def test_twice_the_pairs_are_twice_the_operations_however_they_are_cut(limits):
    once, twice = sum(operations(EXAMPLES, **limits)), sum(operations(EXAMPLES * 2, **limits))
    assert twice == pytest.approx(2 * once, rel=0.01)

"""The gathered form of tree attention, with a slow kernel of the same signature in place of CUDA's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from preftune.data.packing import Tree
from preftune.policy.tree_attention import tree_attention
from preftune.policy.varlen import Sequences, fits, varlen_attention

TREE = Tree(start=(0, 7, 10, 15, 19), length=(7, 3, 5, 4, 6), parent=(-1, 0, 0, -1, 3))


def slow_kernel(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, longest_query: int,
    longest_key: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Each sequence on its own, causal with the bottom-right corner aligned, as flash attention documents it."""
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa == (groups > 1)
    outputs = []
    for q0, q1, k0, k1 in zip(query_ends, query_ends[1:], key_ends, key_ends[1:], strict=False):
        q, k, v = query[q0:q1], key[k0:k1].repeat_interleave(groups, 1), value[k0:k1].repeat_interleave(groups, 1)
        assert len(q) <= longest_query
        assert len(k) <= longest_key
        place = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))[None]
        left, right = window_size
        seen = (place >= -right) & ((place <= left) if left >= 0 else torch.ones_like(place, dtype=torch.bool))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), v))
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 4, 9])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_the_gathered_form_equals_attention_per_segment(window: int | None, heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, h, 25, 8, generator=generator, dtype=torch.float64) for h in (heads[0], heads[1], heads[1])
    )
    gathered = varlen_attention(query, key, value, TREE, 0.3, window, slow_kernel)
    segments, _ = tree_attention(
        torch.nn.Identity(), query, key, value, None, scaling=0.3, sliding_window=window, tree=TREE
    )
    assert gathered.shape == segments.shape == (1, 25, heads[0], 8)
    torch.testing.assert_close(gathered, segments, rtol=1e-10, atol=1e-10)


def test_paths_are_gathered_from_the_root() -> None:
    sequences = Sequences.of(TREE, torch.device("cpu"))
    assert sequences.query_ends_S1.tolist() == [0, 7, 10, 15, 19, 25]
    assert sequences.key_ends_S1.tolist() == [0, 7, 17, 29, 33, 43]
    assert sequences.key_C[17:29].tolist() == [*range(7), *range(10, 15)]
    assert (sequences.longest_query, sequences.longest_key) == (7, 12)


def test_only_half_precision_on_cuda_takes_the_kernel() -> None:
    assert not fits(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16), 0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 4])
def test_the_cuda_kernel_equals_attention_per_segment(window: int | None) -> None:
    query, key, value = (torch.randn(1, h, 25, 64, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2))
    assert fits(query, 0.0)
    gathered = varlen_attention(query, key, value, TREE, 0.125, window)
    exact, _ = tree_attention(
        torch.nn.Identity(), query.float(), key.float(), value.float(), None,
        scaling=0.125, sliding_window=window, tree=TREE,
    )  # fmt: skip
    torch.testing.assert_close(gathered.float(), exact, rtol=2e-2, atol=2e-2)

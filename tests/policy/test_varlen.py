"""The gathered form of tree attention, with a slow kernel of the same signature in place of CUDA's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.data.packing import Tree
from preftune.policy import varlen
from preftune.policy.tree_attention import tree_attention
from preftune.policy.varlen import Sequences, fits, varlen_attention

TREE = Tree(start=(0, 7, 10, 15, 19), length=(7, 3, 5, 4, 6), parent=(-1, 0, 0, -1, 3))


def slow_kernel(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, longest_query: int,
    longest_key: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Each sequence on its own, causal with the bottom-right corner aligned, as flash attention documents it."""
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa
    assert query.is_contiguous()
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query_ends.dtype == key_ends.dtype == torch.int32
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


def kernel_of_torch_2_11(*args: Any, scale: float, window_size: tuple[int, int]) -> Tensor:
    """It shares key-value heads without being told to, and does not know the word."""
    return slow_kernel(*args, scale=scale, window_size=window_size, enable_gqa=True)


@pytest.mark.parametrize("kernel", [slow_kernel, kernel_of_torch_2_11])
@pytest.mark.parametrize("window", [None, 4, 9])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_the_gathered_form_equals_attention_per_segment(
    window: int | None, heads: tuple[int, int], kernel: varlen.Kernel
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, h, 25, 8, generator=generator, dtype=torch.float64) for h in (heads[0], heads[1], heads[1])
    )
    gathered = varlen_attention(query, key, value, TREE, 0.3, window, kernel)
    segments, _ = tree_attention(
        torch.nn.Identity(), query, key, value, None, scaling=0.3, sliding_window=window, tree=TREE
    )
    assert gathered.shape == segments.shape == (1, 25, heads[0], 8)
    torch.testing.assert_close(gathered, segments, rtol=1e-10, atol=1e-10)


def test_gradients_equal_those_of_attention_per_segment() -> None:
    generator = torch.Generator().manual_seed(1)
    found = []
    for gathered in (True, False):
        generator.manual_seed(1)
        inputs = [
            torch.randn(1, h, 25, 8, generator=generator, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2)
        ]
        if gathered:
            output = varlen_attention(*inputs, TREE, 0.3, None, slow_kernel)
        else:
            output, _ = tree_attention(torch.nn.Identity(), *inputs, None, scaling=0.3, tree=TREE)
        output.pow(2).sum().backward()
        found.append([each.grad for each in inputs])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", [(16, 8), (8, 16)])
def test_values_may_have_heads_of_another_size(sizes: tuple[int, int]) -> None:
    """DeepSeek's are shorter than its keys."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, 25, size, generator=generator, dtype=torch.float64) for size in (sizes[0], sizes[0], sizes[1])
    )
    gathered = varlen_attention(query, key, value, TREE, 0.3, None, slow_kernel)
    segments, _ = tree_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3, tree=TREE)
    assert gathered.shape == (1, 25, 2, sizes[1])
    torch.testing.assert_close(gathered, segments, rtol=1e-10, atol=1e-10)


def test_torchs_kernel_takes_these_arguments_and_gives_gradients() -> None:
    """On the meta device: shapes, types and the backward of the kernel itself, without its arithmetic. A meta tensor
    has no values, so whatever waits for one raises."""
    query, key, value = (
        torch.empty(1, h, 25, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for h in (4, 2, 2)
    )
    output = varlen_attention(query, key, value, TREE, 0.125, 4)
    assert output.shape == (1, 25, 4, 64)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert key.grad is not None
    assert key.grad.shape == key.shape


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0, 0.999)), min_size=1, max_size=12))
def test_what_is_gathered_is_each_segments_path(segments: list[tuple[int, float]]) -> None:
    """Whatever the depth of the tree, and however its segments hang together."""
    lengths = tuple(length for length, _ in segments)
    starts = tuple(sum(lengths[:i]) for i in range(len(lengths)))
    tree = Tree(starts, lengths, tuple(int(place * (i + 1)) - 1 for i, (_, place) in enumerate(segments)))
    found = Sequences.of(tree, torch.device("cpu"))
    paths = [[*tree.ancestors(s), s] for s in range(len(lengths))]
    tokens = [[starts[s] + i for s in path for i in range(lengths[s])] for path in paths]
    assert found.key_C.tolist() == [token for path in tokens for token in path]
    assert found.key_ends_S1.diff().tolist() == [len(path) for path in tokens]
    assert found.query_ends_S1.diff().tolist() == list(lengths)
    assert found.query_ends_S1[0] == found.key_ends_S1[0] == 0
    assert (found.longest_query, found.longest_key) == (max(lengths), max(map(len, tokens)))


def test_paths_are_gathered_from_the_root() -> None:
    sequences = Sequences.of(TREE, torch.device("cpu"))
    assert sequences.query_ends_S1.tolist() == [0, 7, 10, 15, 19, 25]
    assert sequences.key_ends_S1.tolist() == [0, 7, 17, 29, 33, 43]
    assert sequences.key_C[17:29].tolist() == [*range(7), *range(10, 15)]
    assert (sequences.longest_query, sequences.longest_key) == (7, 12)


def test_only_half_precision_on_cuda_takes_the_kernel() -> None:
    assert not fits(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16), 0.0)


def test_old_cards_compute_each_segment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 has fp16, but no flash attention."""
    for capability, found in (((7, 5), False), ((8, 0), True)):
        varlen._has_flash_attention.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert varlen._has_flash_attention(torch.device("cuda")) is found
    varlen._has_flash_attention.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_told_of_the_segments_without_waiting() -> None:
    torch.zeros(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = Sequences.of(TREE, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.key_C.tolist() == Sequences.of(TREE, torch.device("cpu")).key_C.tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_cuda_kernels_gradients_equal_those_of_attention_per_segment() -> None:
    found = []
    for exact in (False, True):
        torch.manual_seed(0)
        inputs = [torch.randn(1, h, 25, 64, device="cuda").bfloat16() for h in (4, 2, 2)]
        inputs = [(each.double() if exact else each).requires_grad_() for each in inputs]
        output, _ = tree_attention(torch.nn.Identity(), *inputs, None, scaling=0.125, tree=TREE)
        output.double().sin().sum().backward()
        found.append([each.grad.double() for each in inputs])
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 2e-2


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

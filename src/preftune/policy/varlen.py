"""Tree attention as one variable-length flash-attention call over gathered keys and values, for CUDA.

Each segment is a sequence of its own: its queries are its tokens, its keys [ancestors, segment]. Flash attention's
causal mask aligns the bottom-right corner, which is just what a segment at the end of its path needs.

Tensor names carry their shape: H heads, G key-value heads, T tokens of the batch, D head size, C gathered keys,
S segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from preftune.data.packing import Tree

Kernel = Callable[..., Tensor]


@dataclass(frozen=True)
class Sequences:
    """The segments of a tree as flash attention wants them.

    Attributes:
        key_C: token of each gathered key.
        query_ends_S1: where each segment's queries end, with a leading 0; int32, shape (S + 1,).
        key_ends_S1: the same of its keys.
        longest_query: tokens of the longest segment.
        longest_key: tokens of the longest path.
    """

    key_C: Tensor
    query_ends_S1: Tensor
    key_ends_S1: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, tree: Tree, device: torch.device) -> Sequences:
        """Gather the paths of all segments of a tree."""
        keys: list[Tensor] = []
        ends = [0]
        for segment in range(len(tree.start)):
            path = [*tree.ancestors(segment), segment]
            keys += [torch.arange(tree.start[s], tree.start[s] + tree.length[s]) for s in path]
            ends.append(ends[-1] + sum(tree.length[s] for s in path))
        key_ends = torch.tensor(ends, dtype=torch.int32)
        query_ends = torch.tensor([0, *tree.length], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(
            torch.cat(keys).to(device),
            query_ends.to(device),
            key_ends.to(device),
            max(tree.length),
            int((key_ends[1:] - key_ends[:-1]).max()),
        )


def fits(query_1HTD: Tensor, dropout: float) -> bool:
    """True if flash attention has a kernel for this."""
    reduced = query_1HTD.dtype in (torch.float16, torch.bfloat16)
    head = query_1HTD.shape[-1]
    return query_1HTD.is_cuda and reduced and dropout == 0 and head % 8 == 0 and head <= 256


def varlen_attention(
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    tree: Tree,
    scaling: float,
    window: int | None,
    kernel: Kernel | None = None,
) -> Tensor:
    """Attention of all segments in one call.

    Args:
        query_1HTD: queries of one packed row.
        key_1GTD: keys.
        value_1GTD: values.
        tree: the segments.
        scaling: factor on the scores.
        window: a token sees itself and the `window - 1` tokens before it on its path; None: all of them.
        kernel: stands in for torch's `varlen_attn`, with its arguments.

    Returns:
        The output, shape (1, T, H, D).
    """
    if kernel is None:
        from torch.nn.attention.varlen import varlen_attn

        kernel = cast(Kernel, varlen_attn)
    device = query_1HTD.device
    if device not in tree.sequences:
        tree.sequences[device] = Sequences.of(tree, device)
    sequences = tree.sequences[device]
    assert isinstance(sequences, Sequences)
    query_THD = query_1HTD[0].transpose(0, 1).contiguous()
    key_CGD, value_CGD = (x[0].transpose(0, 1).index_select(0, sequences.key_C) for x in (key_1GTD, value_1GTD))
    output_THD = kernel(
        query_THD,
        key_CGD,
        value_CGD,
        sequences.query_ends_S1,
        sequences.key_ends_S1,
        sequences.longest_query,
        sequences.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query_1HTD.shape[1] != key_1GTD.shape[1],
    )
    return output_THD[None]

"""Attention over the segments of a prompt tree by the CPU's flash kernel, with a backward that copies little.

Autograd alone would expand the key-value heads, join keys for every segment and cut gradients apart again; here each
segment's gradients are added to their place. Heads of queries may be a multiple of those of keys and values, and need
not lie apart in memory: the kernel takes both.

Tensor names carry their shape: H heads, G key-value heads, T tokens of the batch, D head size, Q queries and C keys of
one segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from preftune.data.packing import Tree

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class SegmentAttention(torch.autograd.Function):
    """`SegmentAttention.apply(query_1HTD, key_1GTD, value_1GTD, tree, masks, scaling)` gives output (1, T, H, D).

    `masks` has the additive mask (Q, C) of each segment; None where a segment has no ancestors and causal is enough.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_1HTD: Tensor,
        key_1GTD: Tensor,
        value_1GTD: Tensor,
        tree: Tree,
        masks: Sequence[Tensor | None],
        scaling: float,
    ) -> Tensor:
        """Each segment over its ancestors and itself."""
        outputs, saved = [], []
        for segment, mask_QC in enumerate(masks):
            query = query_1HTD[:, :, tree.at(segment)]
            key, value = (_along(tree.path(segment), tree, x) for x in (key_1GTD, value_1GTD))
            output, norm = _forward(query, key, value, 0.0, mask_QC is None, attn_mask=mask_QC, scale=scaling)
            outputs.append(output.transpose(1, 2))
            saved += [query, key, value, output, norm]
        ctx.save_for_backward(*saved)
        ctx.tree, ctx.masks, ctx.scaling = tree, masks, scaling
        ctx.shapes = [x.shape for x in (query_1HTD, key_1GTD, value_1GTD)]
        return torch.cat(outputs, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of queries, keys and values."""
        saved, tree = ctx.saved_tensors, ctx.tree
        # in the memory order of (1, T, H, D), which is what the projections before them take
        found = [
            gradients[0].new_zeros(one, tokens, heads, size).transpose(1, 2) for one, heads, tokens, size in ctx.shapes
        ]
        for segment, mask_QC in enumerate(ctx.masks):
            at = tree.at(segment)
            query, key, value, output, norm = saved[5 * segment : 5 * segment + 5]
            gradient = gradients[0][:, at].transpose(1, 2)
            causal = mask_QC is None
            to_query, to_key, to_value = _backward(
                gradient, query, key, value, output, norm, 0.0, causal, attn_mask=mask_QC, scale=ctx.scaling
            )
            found[0][:, :, at] = to_query
            offset = 0
            for each in tree.path(segment):
                of = slice(offset, offset := offset + tree.length[each])
                found[1][:, :, tree.at(each)] += to_key[:, :, of]
                found[2][:, :, tree.at(each)] += to_value[:, :, of]
        return *found, None, None, None


def _along(path: Sequence[int], tree: Tree, x_1GTD: Tensor) -> Tensor:
    """The tokens of a path, in order."""
    if len(path) == 1:
        return x_1GTD[:, :, tree.at(path[0])]
    return torch.cat([x_1GTD[:, :, tree.at(segment)] for segment in path], dim=2)

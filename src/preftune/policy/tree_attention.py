"""Attention over prompt trees, registered with transformers' attention interface.

For each segment the queries are its own tokens and the keys are [ancestors, segment], causal with the bottom-right
corner aligned, so no mask over the whole batch ever exists. The segments travel as the keyword argument `tree` of the
model's forward (never in a context variable: gradient checkpointing runs the forward again during backward).

Tensor names carry their shape: H heads, T tokens of the batch, D head size, Q queries and C keys of one segment.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from preftune.data.packing import Tree
from preftune.policy.segment_attention import SegmentAttention
from preftune.policy.varlen import fits, varlen_attention

NAME = "preftune_tree"


def tree_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    tree: Tree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' interface defines it, over the segments of `tree`.

    Args:
        module: the attention layer.
        query_1HTD: queries of one packed row.
        key_1GTD: keys, with G key-value heads (H is a multiple of G).
        value_1GTD: values.
        attention_mask: must be None: the tree is the mask.
        scaling: factor on the scores; 1/sqrt(D) if None.
        dropout: probability of dropping an attention weight.
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it on its path.
        softcap: scores become softcap * tanh(scores / softcap).
        s_aux: attention sink logits, one for each head.
        tree: the segments.

    Returns:
        The output, shape (1, T, H, D), and None for the weights.

    Raises:
        RuntimeError: without a tree, with a mask or with an argument that would change the mathematics unheard.
    """
    if tree is None:
        raise RuntimeError(
            f"attention {NAME!r} needs the batch's tree; generation must restore the model's own attention"
        )
    if attention_mask is not None or kwargs.get("position_bias") is not None or kwargs.get("is_causal") is False:
        raise RuntimeError(
            f"{type(module).__name__} passes a mask or a position bias, which a prompt tree cannot honour"
        )
    tree.consumed += 1
    query_1HTD, key_1GTD = query_1HTD.to(value_1GTD.dtype), key_1GTD.to(value_1GTD.dtype)
    scaling = 1 / math.sqrt(query_1HTD.shape[-1]) if scaling is None else scaling
    plain = softcap is None and s_aux is None
    if plain and fits(query_1HTD, dropout):
        return varlen_attention(query_1HTD, key_1GTD, value_1GTD, tree, scaling, sliding_window), None
    if plain and not dropout and query_1HTD.device.type == "cpu":
        masks = [_mask(tree, segment, sliding_window, query_1HTD) for segment in range(len(tree.length))]
        return SegmentAttention.apply(query_1HTD, key_1GTD, value_1GTD, tree, masks, scaling), None
    groups = query_1HTD.shape[1] // key_1GTD.shape[1]
    if groups > 1:
        key_1GTD, value_1GTD = (x.repeat_interleave(groups, dim=1) for x in (key_1GTD, value_1GTD))
    # split, not slices: the backward of split concatenates, that of a slice fills a zero tensor of the whole row
    queries, keys, values = (x.split(tree.length, dim=2) for x in (query_1HTD, key_1GTD, value_1GTD))
    outputs = []
    for segment, query in enumerate(queries):
        path = tree.path(segment)
        key = keys[segment] if len(path) == 1 else torch.cat([keys[s] for s in path], dim=2)
        value = values[segment] if len(path) == 1 else torch.cat([values[s] for s in path], dim=2)
        mask = _mask(tree, segment, sliding_window, query)
        if plain:
            causal = mask is None and query.shape[2] > 1
            outputs.append(
                scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal, scale=scaling)
            )
        else:
            outputs.append(_explicit(query, key, value, mask, scaling, dropout, softcap, s_aux))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _mask(tree: Tree, segment: int, window: int | None, like: Tensor) -> Tensor | None:
    """Additive mask (Q, C) of a segment, whose queries are the last ones on their path; None where causal is enough."""
    queries, keys = tree.length[segment], sum(tree.length[each] for each in tree.path(segment))
    if window is not None and window >= keys:
        window = None
    if window is None and queries == keys:
        return None
    at = (queries, keys, window, like.dtype, like.device)
    if at not in tree.masks:
        distance_QC = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None, :]
        seen_QC = distance_QC >= 0
        if window is not None:
            seen_QC &= distance_QC < window
        mask_QC = torch.zeros(queries, keys, dtype=like.dtype).masked_fill_(~seen_QC, -math.inf)
        tree.masks[at] = mask_QC.to(like.device)
    return tree.masks[at]


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask_QC: Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """Attention of one segment with soft-capped scores or sinks, which no fused kernel on every device has."""
    scores_1HQC = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores_1HQC = softcap * torch.tanh(scores_1HQC / softcap)
    if mask_QC is None:
        queries, keys = scores_1HQC.shape[2:]
        above = torch.ones(queries, keys, dtype=torch.bool, device=query.device).triu(keys - queries + 1)
        scores_1HQC = scores_1HQC.masked_fill(above, -math.inf)
    else:
        scores_1HQC = scores_1HQC + mask_QC
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1).expand(1, -1, scores_1HQC.shape[2], 1).to(scores_1HQC.dtype)
        scores_1HQC = torch.cat([scores_1HQC, sinks], dim=3)
    weights_1HQC = scores_1HQC.float().softmax(dim=3).to(value.dtype)
    if s_aux is not None:
        weights_1HQC = weights_1HQC[..., :-1]
    return drop(weights_1HQC, dropout, training=dropout > 0) @ value


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask that transformers would build: none, since the tree is the mask."""


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, _no_mask)

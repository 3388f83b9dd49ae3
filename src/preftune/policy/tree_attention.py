"""Attention over prompt trees, registered with transformers' attention interface.

For each segment the queries are its own tokens and the keys are [ancestors, segment], causal with the bottom-right
corner aligned, so no mask over the whole batch ever exists; segments of like size share a call. The segments travel as
the keyword argument `tree` of the model's forward (never in a context variable: gradient checkpointing runs the forward
again during backward).

Tensor names carry their shape: H heads, G key-value heads, T tokens of the batch, D head size; S segments of a group,
Q queries and C keys of each.
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
from preftune.policy.segment_groups import Group, groups_of
from preftune.policy.varlen import fits, varlen_attention

NAME = "preftune_tree"
# Scores of a call that stay in a processor's cache together with their gradients.
CACHED = 400_000


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
    groups = groups_of(tree, sliding_window, query_1HTD)
    # gathered once for all groups: the backward of a gather fills a whole row
    gathered = (
        x[0].transpose(0, 1).index_select(0, tokens)
        for x, tokens in ((query_1HTD, groups.query_A), (key_1GTD, groups.key_B), (value_1GTD, groups.key_B))
    )
    queries = [group.segments * group.queries for group in groups.each]
    keys = [group.segments * group.keys for group in groups.each]
    outputs = []
    pieces = (x.split(lengths) for x, lengths in zip(gathered, (queries, keys, keys), strict=True))
    for group, *three in zip(groups.each, *pieces, strict=True):
        query, key, value = (x.unflatten(0, (group.segments, -1)).transpose(1, 2) for x in three)
        if plain:
            output = _sdpa(query, key, value, group, dropout, scaling)
        else:
            output = _explicit(query, key, value, group.mask_S1QC, scaling, dropout, softcap, s_aux)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, groups.output_T)[None], None


def _sdpa(query: Tensor, key: Tensor, value: Tensor, group: Group, dropout: float, scaling: float) -> Tensor:
    """Attention by torch's own kernels; that of the CPU takes fewer key-value heads as they are."""
    native = query.device.type == "cpu"
    if native and not dropout and query.shape[1] * group.scores <= CACHED:
        return _in_cache(query, key, value, group, scaling)
    key, value = (x if native else _expanded(x, query) for x in (key, value))
    mask = group.mask_S1QC
    return scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=native
    )


def _in_cache(query_SHQD: Tensor, key_SGCD: Tensor, value_SGCD: Tensor, group: Group, scaling: float) -> Tensor:
    """Attention whose scores stay in the processor's cache: plain products, of which the backward keeps the weights
    instead of computing them again, at about half the time of the flash kernel's."""
    segments, heads, queries, _ = query_SHQD.shape
    shared = heads // key_SGCD.shape[1]  # queries that share a key, as rows of one product: N = S * G, R = shared * Q
    query_NRD = query_SHQD.unflatten(1, (-1, shared)).flatten(2, 3).flatten(0, 1)
    key_NCD, value_NCD = key_SGCD.flatten(0, 1), value_SGCD.flatten(0, 1)
    mask_NRC = group.mask_of_rows(key_SGCD.shape[1], shared, query_SHQD)
    weights_NRC = torch.baddbmm(mask_NRC, query_NRD, key_NCD.transpose(1, 2), alpha=scaling).softmax(dim=2)
    return (weights_NRC @ value_NCD).view(segments, heads, queries, -1)


def _expanded(x_SGCD: Tensor, query_SHQD: Tensor) -> Tensor:
    """Key-value heads, one for each head of the queries."""
    groups = query_SHQD.shape[1] // x_SGCD.shape[1]
    return x_SGCD if groups == 1 else x_SGCD.repeat_interleave(groups, dim=1)


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask_S1QC: Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """Attention of a group with soft-capped scores or sinks, which no fused kernel on every device has."""
    key, value = _expanded(key, query), _expanded(value, query)
    scores_SHQC = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores_SHQC = softcap * torch.tanh(scores_SHQC / softcap)
    if mask_S1QC is None:
        queries = scores_SHQC.shape[2]
        above = torch.ones(queries, queries, dtype=torch.bool, device=query.device).triu(1)
        scores_SHQC = scores_SHQC.masked_fill(above, -math.inf)
    else:
        scores_SHQC = scores_SHQC + mask_S1QC
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1).expand(len(query), -1, scores_SHQC.shape[2], 1).to(scores_SHQC.dtype)
        scores_SHQC = torch.cat([scores_SHQC, sinks], dim=3)
    weights_SHQC = scores_SHQC.float().softmax(dim=3).to(value.dtype)
    if s_aux is not None:
        weights_SHQC = weights_SHQC[..., :-1]
    return drop(weights_SHQC, dropout, training=dropout > 0) @ value


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask that transformers would build: none, since the tree is the mask."""


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, _no_mask)

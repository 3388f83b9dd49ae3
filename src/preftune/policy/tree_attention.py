"""Attention over prompt trees, registered with transformers' attention interface.

For each segment the queries are its own tokens and the keys are [ancestors, segment], causal with the bottom-right
corner aligned, so no mask over the whole batch ever exists; segments of like size share a call. The segments travel as
the keyword argument `tree` of the model's forward (never in a context variable: gradient checkpointing runs the forward
again during backward).

Tensor names carry their shape: H heads, G key-value heads, T tokens of the batch, D head size; of a group of segments,
N segments times key-value heads, R heads that share one, Q queries and C keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from preftune.data.packing import Tree
from preftune.policy.segment_groups import Group, Groups, groups_of
from preftune.policy.varlen import fits, varlen_attention

NAME = "preftune_tree"
# Queries (N, R, Q, D), keys and values (N, C, D) of a group -> output (N, R, Q, D).
Attend = Callable[[Tensor, Tensor, Tensor, Group], Tensor]
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
    heads, key_heads = query_1HTD.shape[1], key_1GTD.shape[1]
    groups = groups_of(tree, heads, key_heads, sliding_window, query_1HTD)
    sink_GR = None if s_aux is None else s_aux.view(key_heads, -1)

    def attend(query_NRQD: Tensor, key_NCD: Tensor, value_NCD: Tensor, group: Group) -> Tensor:
        if not plain:
            return _explicit(query_NRQD, key_NCD, value_NCD, group, scaling, dropout, softcap, sink_GR)
        exact = query_NRQD.dtype in (torch.float32, torch.float64)  # the flash kernel keeps scores in float32
        if query_NRQD.device.type == "cpu" and exact and not dropout and group.scores <= CACHED:
            return _in_cache(query_NRQD, key_NCD, value_NCD, group, scaling)
        return _sdpa(query_NRQD, key_NCD, value_NCD, group, dropout, scaling)

    output_OD = _in_groups(query_1HTD, key_1GTD, value_1GTD, groups, attend)
    return output_OD.view(1, -1, heads, output_OD.shape[1]), None


def _in_groups(query_1HTD: Tensor, key_1GTD: Tensor, value_1GTD: Tensor, groups: Groups, attend: Attend) -> Tensor:
    """Attention group by group; the output has a row for each head of each token."""
    # rows of a head's size, gathered once for all groups: the backward of a gather fills a whole batch
    query_AD, key_BD, value_BD = (
        x[0].transpose(0, 1).flatten(0, 1).index_select(0, rows)
        for x, rows in ((query_1HTD, groups.query_A), (key_1GTD, groups.key_B), (value_1GTD, groups.key_B))
    )
    queries = [group.batch * group.shared * group.queries for group in groups.each]
    keys = [group.batch * group.keys for group in groups.each]
    outputs = []
    pieces = query_AD.split(queries), key_BD.split(keys), value_BD.split(keys)
    for group, query, key, value in zip(groups.each, *pieces, strict=True):
        query_NRQD = query.view(group.batch, group.shared, group.queries, -1)
        key_NCD, value_NCD = (x.view(group.batch, group.keys, -1) for x in (key, value))
        outputs.append(attend(query_NRQD, key_NCD, value_NCD, group).flatten(0, 2))
    return torch.cat(outputs).index_select(0, groups.output_O)


def _sdpa(
    query_NRQD: Tensor, key_NCD: Tensor, value_NCD: Tensor, group: Group, dropout: float, scaling: float
) -> Tensor:
    """Attention by torch's own kernels; that of the CPU takes shared keys as they are."""
    native = query_NRQD.device.type == "cpu"
    shape = -1, 1 if native else group.shared, -1, -1
    key, value = (x[:, None].expand(shape) for x in (key_NCD, value_NCD))
    mask = None if group.causal else group.mask_NRQC
    return scaled_dot_product_attention(
        query_NRQD, key, value, mask, dropout, is_causal=group.causal, scale=scaling, enable_gqa=native
    )


def _in_cache(query_NRQD: Tensor, key_NCD: Tensor, value_NCD: Tensor, group: Group, scaling: float) -> Tensor:
    """Attention whose scores stay in the processor's cache: plain products, of which the backward keeps the weights
    instead of computing them again, at about half the time of the flash kernel's."""
    rows = group.batch, group.shared * group.queries
    scores = torch.baddbmm(
        group.mask_NRQC.reshape(*rows, -1), query_NRQD.view(*rows, -1), key_NCD.transpose(1, 2), alpha=scaling
    )
    return (scores.softmax(dim=2) @ value_NCD).view(*query_NRQD.shape[:3], -1)


def _explicit(
    query_NRQD: Tensor,
    key_NCD: Tensor,
    value_NCD: Tensor,
    group: Group,
    scaling: float,
    dropout: float,
    softcap: float | None,
    sink_GR: Tensor | None,
) -> Tensor:
    """Attention of a group with soft-capped scores or sinks, which no fused kernel on every device has."""
    scores_NRQC = query_NRQD @ key_NCD[:, None].transpose(2, 3) * scaling
    if softcap is not None:
        scores_NRQC = softcap * torch.tanh(scores_NRQC / softcap)
    scores_NRQC = scores_NRQC + group.mask_NRQC
    if sink_GR is not None:
        sink_NR = sink_GR.repeat(group.batch // len(sink_GR), 1)
        sinks = sink_NR[:, :, None, None].expand(-1, -1, group.queries, 1).to(scores_NRQC.dtype)
        scores_NRQC = torch.cat([scores_NRQC, sinks], dim=3)
    weights_NRQC = scores_NRQC.float().softmax(dim=3).to(value_NCD.dtype)
    if sink_GR is not None:
        weights_NRQC = weights_NRQC[..., :-1]
    return drop(weights_NRQC, dropout, training=dropout > 0) @ value_NCD[:, None]


AttentionInterface.register(NAME, tree_attention)

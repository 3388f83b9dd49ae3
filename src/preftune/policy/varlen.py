"""Tree attention as one variable-length flash-attention call over gathered keys and values, for CUDA.

Each segment is a sequence of its own: its queries are its tokens, its keys [ancestors, segment]. Flash attention's
causal mask aligns the bottom-right corner, which is just what a segment at the end of its path needs. What the kernel
is told of the segments is made on the CPU and sent to the device without waiting for it.

Tensor names carry their shape: H heads, G key-value heads, T tokens of the batch, D head size, C gathered keys,
S segments, P pieces (a path has one for each segment on it).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

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
        start, length, parent = (np.array(each) for each in (tree.start, tree.length, tree.parent))
        upwards = [np.arange(len(start))]  # of every segment: itself, its parent, the parent's parent; -1 above a root
        while ((above := np.where(upwards[-1] < 0, -1, parent[upwards[-1]])) >= 0).any():
            upwards.append(above)
        path_SP = np.stack(upwards[::-1], axis=1)
        on_path_SP = path_SP >= 0
        piece_P = path_SP[on_path_SP]  # path after path, each from its root down
        ends_P = length[piece_P].cumsum()
        key_C = np.arange(ends_P[-1]) + np.repeat(start[piece_P] - ends_P + length[piece_P], length[piece_P])
        keys_S = np.where(on_path_SP, length[path_SP], 0).sum(axis=1)
        return cls(
            _sent(key_C, device),
            _sent(np.append(0, length.cumsum()).astype(np.int32), device),
            _sent(np.append(0, keys_S.cumsum()).astype(np.int32), device),
            int(length.max()),
            int(keys_S.max()),
        )


def _sent(values: np.ndarray, device: torch.device) -> Tensor:
    """The values on a device. From pinned memory, or the copy would hold up the program until the device is idle."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def fits(query_1HTD: Tensor, dropout: float) -> bool:
    """True if flash attention has a kernel for this."""
    reduced = query_1HTD.dtype in (torch.float16, torch.bfloat16)
    head = query_1HTD.shape[-1]
    right = reduced and dropout == 0 and head % 8 == 0 and head <= 256
    return right and query_1HTD.is_cuda and _has_flash_attention(query_1HTD.device)


@cache
def _has_flash_attention(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)  # a T4 or a V100 has none


@cache
def _sharing_keys(kernel: Kernel) -> Kernel:
    """The kernel, told that key-value heads may be fewer than heads; the one of torch 2.11 does not want to be told."""
    return partial(kernel, enable_gqa=True) if "enable_gqa" in inspect.signature(kernel).parameters else kernel


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
    query_THD, key_TGD, value_TGD = (x.squeeze(0).transpose(0, 1) for x in (query_1HTD, key_1GTD, value_1GTD))
    own, values = query_THD.shape[-1], value_TGD.shape[-1]
    if own != values:  # the kernel has one size of heads for all; DeepSeek's values are shorter than its keys
        query_THD, key_TGD, value_TGD = (
            pad(x, (0, max(own, values) - x.shape[-1])) for x in (query_THD, key_TGD, value_TGD)
        )
    output_THD = _sharing_keys(kernel)(
        query_THD.contiguous(),
        key_TGD.index_select(0, sequences.key_C),
        value_TGD.index_select(0, sequences.key_C),
        sequences.query_ends_S1,
        sequences.key_ends_S1,
        sequences.longest_query,
        sequences.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
    )
    return (output_THD if own == values else output_THD[..., :values])[None]

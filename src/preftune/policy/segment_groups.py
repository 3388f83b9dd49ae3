"""Segments of a prompt tree in groups of like size, so that one attention call serves many of them.

In a group, queries are padded at their end, and keys on both sides: ancestors end, and the segment begins, at the same
place in every row. So who sees whom depends on the distance alone, and only keys before a path's first token are masked
out apart. Rows are gathered head by head, in the order that the products want: nothing is copied twice.

Tensor names carry their shape: H heads, G key-value heads, R = H / G heads that share one, T tokens of the batch;
S segments of a group, N = S * G, Q queries and C keys of its longest segments; A, B and O rows (a token's head) of the
queries of all groups, of their keys, and of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from preftune.data.packing import Tree
from preftune.objectives.batch import beside

# Scores that could be computed in the time that one more call takes.
CALL = 8000


@dataclass(frozen=True)
class Group:
    """Segments that are computed together.

    Attributes:
        batch: N, rows of a batched product: segments times key-value heads.
        shared: R, heads of queries for each of keys.
        queries: Q, of the longest segment.
        keys: C, of the longest ancestors and the longest segment together.
        causal: True where the mask says no more than that.
        make_mask: gives the mask; a large causal one is never asked for.
    """

    batch: int
    shared: int
    queries: int
    keys: int
    causal: bool
    make_mask: Callable[[], Tensor]

    @property
    def scores(self) -> int:
        """Scores of all rows: N * R * Q * C."""
        return self.batch * self.shared * self.queries * self.keys

    @cached_property
    def mask_NRQC(self) -> Tensor:
        """Additive mask; dimensions of N and R may be expanded."""
        return self.make_mask()


@dataclass(frozen=True)
class Groups:
    """How a batch's rows come into groups, and back.

    Attributes:
        each: the groups.
        query_A: row of each query, (N, R, Q) in each group; any row for padding.
        key_B: row of each key, (N, C) in each group, likewise.
        output_O: where among all queries each row is.
    """

    each: tuple[Group, ...]
    query_A: Tensor
    key_B: Tensor
    output_O: Tensor


def groups_of(tree: Tree, heads: int, key_heads: int, window: int | None, like: Tensor) -> Groups:
    """The groups of a tree, made once for all layers that are alike.

    Args:
        tree: the segments.
        heads: H.
        key_heads: G.
        window: a token sees itself and the `window - 1` tokens before it on its path; None: all of them.
        like: has the dtype and device of the attention.
    """
    at = (heads, key_heads, window, like.dtype, like.device)
    if at not in tree.groups:
        tree.groups[at] = _make(tree, heads, key_heads, window, like)
    found = tree.groups[at]
    assert isinstance(found, Groups)
    return found


def _make(tree: Tree, heads: int, key_heads: int, window: int | None, like: Tensor) -> Groups:
    own = np.array(tree.length)
    before = np.array([sum(tree.length[each] for each in tree.ancestors(segment)) for segment in range(len(own))])
    head_HR = np.arange(heads).reshape(key_heads, -1)
    each, queries, keys, real = [], [], [], []
    empty = like.new_empty(0)  # a mask made later must keep no queries alive
    for members in _alike(own, before):
        longest, deepest = int(own[members].max()), int(before[members].max())
        own_SQ = np.stack([_padded(tree.tokens([segment]), longest) for segment in members])
        paths = [_padded(tree.tokens(tree.ancestors(segment)), -deepest) for segment in members]
        key_SC = np.concatenate([np.stack(paths), own_SQ], axis=1)
        queries.append(own_SQ.clip(0)[:, None, None, :] * heads + head_HR[None, :, :, None])
        keys.append(key_SC.clip(0)[:, None, :] * key_heads + np.arange(key_heads)[None, :, None])
        real.append(np.broadcast_to(own_SQ[:, None, None, :] >= 0, queries[-1].shape))
        causal = deepest == 0 and (window is None or window >= longest)
        shared = heads // key_heads
        mask = partial(_mask, before[members], longest, deepest, window, empty, (len(members), key_heads, shared))
        each.append(Group(len(members) * key_heads, shared, longest, deepest + longest, causal, mask))
    query_A, key_B, real_A = (np.concatenate([rows.ravel() for rows in found]) for found in (queries, keys, real))
    output_O = np.empty(int(real_A.sum()), dtype=np.int64)
    output_O[query_A[real_A]] = np.flatnonzero(real_A)
    return Groups(tuple(each), *(beside(torch.from_numpy(rows), like) for rows in (query_A, key_B, output_O)))


def _alike(own: np.ndarray, before: np.ndarray) -> list[list[int]]:
    """Segments in groups, from the largest to the smallest: one joins its predecessors if their padding costs less than
    a call. Segments without ancestors stay apart: they need no mask."""
    order = np.lexsort((own * (own + before), before > 0))[::-1]
    groups: list[list[int]] = []
    cost = 0
    for segment in order.tolist():
        alone = int(own[segment] * (own[segment] + before[segment]))
        if groups and (before[groups[-1][0]] > 0) == (before[segment] > 0):
            joined = [*groups[-1], segment]
            longest, deepest = int(own[joined].max()), int(before[joined].max())
            together = len(joined) * longest * (longest + deepest)
            if together <= cost + alone + CALL:
                groups[-1], cost = joined, together
                continue
        groups.append([segment])
        cost = alone
    return groups


def _padded(tokens: np.ndarray, length: int) -> np.ndarray:
    """Tokens and -1 behind them, up to the length; before them, if it is negative."""
    padding = np.full(abs(length) - len(tokens), -1, dtype=np.int64)
    return np.concatenate([tokens, padding] if length >= 0 else [padding, tokens])


def _mask(
    before_S: np.ndarray, queries: int, deepest: int, window: int | None, like: Tensor, shape: tuple[int, int, int]
) -> Tensor:
    """Additive mask of a group, with one row for all that are alike: `shape` says segments, G and R. What is masked out
    is finite, or a whole block of it would give no number."""
    keys = deepest + queries
    at_C = torch.arange(keys, dtype=torch.int32)
    distance_QC = at_C[deepest:, None] - at_C
    seen_SQC = (distance_QC >= 0)[None]
    if window is not None:
        seen_SQC = seen_SQC & (distance_QC < window)
    if before_S.min() < deepest:
        first_S = deepest - torch.as_tensor(before_S)
        seen_SQC = seen_SQC & (at_C >= first_S[:, None])[:, None]
    mask = torch.zeros(seen_SQC.shape, dtype=like.dtype)
    mask = beside(mask.masked_fill_(~seen_SQC, torch.finfo(like.dtype).min / 2), like)
    return mask[:, None, None].expand(*shape, *mask.shape[1:]).flatten(0, 1)

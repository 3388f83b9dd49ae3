"""Segments of a prompt tree in groups of like size, so that one attention call serves many of them.

In a group, queries are padded at their end, and keys on both sides: ancestors end, and the segment begins, at the same
place in every row. So who sees whom depends on the distance alone, and only keys before a path's first token are masked
out apart.

Tensor names carry their shape: T tokens of the batch, S segments of a group, Q queries and C keys of its longest
segments; A and B all queries and keys of all groups, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from preftune.data.packing import Tree

# Scores that could be computed in the time that one more call takes.
CALL = 8000


@dataclass(frozen=True)
class Group:
    """Segments that are computed together.

    Attributes:
        segments: how many.
        queries: of the longest one.
        keys: of the longest ancestors and the longest segment together.
        mask_S1QC: additive mask; None where causal is enough.
    """

    segments: int
    queries: int
    keys: int
    mask_S1QC: Tensor | None
    rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def scores(self) -> int:
        """Scores of one head."""
        return self.segments * self.queries * self.keys

    def mask_of_rows(self, key_heads: int, shared: int, like: Tensor) -> Tensor:
        """The mask, causal where there is none, with a row for each query of each head: shape (segments * key_heads,
        shared * queries, keys), where `shared` heads of queries share one of keys. Made once for all layers."""
        if (key_heads, shared) not in self.rows:
            mask = self.mask_S1QC
            if mask is None:
                hidden = torch.finfo(like.dtype).min / 2
                mask = torch.full((self.queries, self.keys), hidden, dtype=like.dtype, device=like.device).triu(1)
            shape = (self.segments, key_heads, shared, self.queries, self.keys)
            mask = mask.view(-1, 1, 1, self.queries, self.keys).expand(shape)
            self.rows[key_heads, shared] = mask.reshape(-1, shared * self.queries, self.keys)
        return self.rows[key_heads, shared]


@dataclass(frozen=True)
class Groups:
    """How a tree's tokens come into groups, and back.

    Attributes:
        each: the groups.
        query_A: token of each query of each group's segments; any token for padding.
        key_B: token of each key, likewise.
        output_T: where among all queries each token is.
    """

    each: tuple[Group, ...]
    query_A: Tensor
    key_B: Tensor
    output_T: Tensor


def groups_of(tree: Tree, window: int | None, like: Tensor) -> Groups:
    """The groups of a tree, made once for all layers of the same window.

    Args:
        tree: the segments.
        window: a token sees itself and the `window - 1` tokens before it on its path; None: all of them.
        like: has the dtype and device of the attention.
    """
    at = (window, like.dtype, like.device)
    if at not in tree.groups:
        tree.groups[at] = _make(tree, window, like)
    found = tree.groups[at]
    assert isinstance(found, Groups)
    return found


def _make(tree: Tree, window: int | None, like: Tensor) -> Groups:
    own = np.array(tree.length)
    before = np.array([sum(tree.length[each] for each in tree.ancestors(segment)) for segment in range(len(own))])
    each, queries, keys = [], [], []
    for members in _alike(own, before):
        longest, deepest = int(own[members].max()), int(before[members].max())
        queries.append(np.stack([_padded(tree.tokens([segment]), longest) for segment in members]))
        paths = [_padded(tree.tokens(tree.ancestors(segment)), -deepest) for segment in members]
        keys.append(np.concatenate([np.stack(paths), queries[-1]], axis=1))
        mask = _mask(before[members], longest, deepest, window, like)
        each.append(Group(len(members), longest, deepest + longest, mask))
    query_A, key_B = (np.concatenate([tokens.ravel() for tokens in all_of]) for all_of in (queries, keys))
    real = np.flatnonzero(query_A >= 0)
    output_T = np.empty(len(real), dtype=np.int64)
    output_T[query_A[real]] = real
    tokens = (torch.from_numpy(found).to(like.device) for found in (query_A.clip(0), key_B.clip(0), output_T))
    return Groups(tuple(each), *tokens)


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


def _mask(before_S: Sequence[int], queries: int, deepest: int, window: int | None, like: Tensor) -> Tensor | None:
    """Additive mask of a group. What is masked out is finite, or a whole block of it would give no number."""
    keys = deepest + queries
    if deepest == 0 and (window is None or window >= keys):
        return None
    distance_QC = deepest + torch.arange(queries)[:, None] - torch.arange(keys)[None, :]
    seen_QC = distance_QC >= 0
    if window is not None:
        seen_QC &= distance_QC < window
    real_SC = torch.arange(keys)[None, :] >= deepest - torch.as_tensor(before_S)[:, None]
    seen_SQC = seen_QC[None] & real_SC[:, None]
    mask = torch.zeros(seen_SQC.shape, dtype=like.dtype).masked_fill_(~seen_SQC, torch.finfo(like.dtype).min / 2)
    return mask[:, None].to(like.device)

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.packing import Tree
from preftune.policy.segment_groups import CALL, Groups, groups_of

HEADS, KEY_HEADS = 4, 2


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Any tree of up to twelve segments, up to five deep."""
    parent: list[int] = []
    for segment in range(draw(st.integers(1, 12))):
        parent.append(draw(st.integers(-1, segment - 1)))
    length = [draw(st.integers(1, 40)) for _ in parent]
    return Tree((0, *np.cumsum(length)[:-1].tolist()), tuple(length), tuple(parent))


def seen(groups: Groups) -> dict[tuple[int, int], list[int]]:
    """The tokens that each row of a batch (a token's head) sees, by the groups' own account."""
    found: dict[tuple[int, int], list[int]] = {}
    queries, keys = iter(groups.query_A.tolist()), iter(groups.key_B.tolist())
    rows: list[tuple[int, list[int]]] = []
    for group in groups.each:
        key_NC = [[next(keys) for _ in range(group.keys)] for _ in range(group.batch)]
        for n in range(group.batch):
            for r in range(group.shared):
                for q in range(group.queries):
                    shown = group.mask_NRQC[n, r, q] == 0
                    rows.append((next(queries), [key_NC[n][c] for c in np.flatnonzero(shown)]))
    for row, at in enumerate(groups.output_O.tolist()):
        assert rows[at][0] == row
        found[divmod(row, HEADS)] = rows[at][1]
    return found


@settings(max_examples=40, deadline=None)
@given(trees(), st.sampled_from([None, 1, 7, 100]))
def test_every_head_of_every_token_sees_its_path_and_nothing_else(tree, window):
    found = seen(groups_of(tree, HEADS, KEY_HEADS, window, torch.zeros(1)))
    assert len(found) == HEADS * sum(tree.length)
    for segment, start in enumerate(tree.start):
        before = tree.tokens(tree.ancestors(segment)).tolist()
        for offset in range(tree.length[segment]):
            path = [*before, *range(start, start + offset + 1)]
            path = path if window is None else path[-window:]
            for head in range(HEADS):
                rows = [token * KEY_HEADS + head * KEY_HEADS // HEADS for token in path]
                assert found[start + offset, head] == rows


@settings(max_examples=40, deadline=None)
@given(trees())
def test_causal_is_said_where_the_mask_says_no_more(tree):
    for group in groups_of(tree, HEADS, KEY_HEADS, None, torch.zeros(1)).each:
        alone = torch.ones(group.queries, group.keys, dtype=torch.bool).tril()
        mask_is_causal = group.queries == group.keys and bool(((group.mask_NRQC == 0) == alone).all())
        assert group.causal == mask_is_causal


def test_segments_of_one_size_share_a_call_and_padding_costs_less_than_the_calls_it_saves():
    same = Tree(tuple(range(0, 80, 10)), (10,) * 8, (-1, 0, 0, -1, 3, 3, -1, 6))
    assert [group.batch for group in groups_of(same, 1, 1, None, torch.zeros(1)).each] == [5, 3]
    length = tuple(int(n) for n in np.random.default_rng(0).integers(5, 400, 60))
    mixed = Tree((0, *np.cumsum(length)[:-1].tolist()), length, (-1,) * 60)
    groups = groups_of(mixed, 1, 1, None, torch.zeros(1)).each
    padded = sum(group.batch * group.queries * group.keys for group in groups)
    assert 2 < len(groups) < 60
    assert padded + CALL * len(groups) < sum(n * n for n in length) + CALL * 60


def test_layers_that_are_alike_share_their_groups():
    tree = Tree((0, 3), (3, 2), (-1, 0))
    first = groups_of(tree, 4, 2, None, torch.zeros(1))
    assert groups_of(tree, 4, 2, None, torch.zeros(1)) is first
    for other in ((4, 4, None, torch.zeros(1)), (4, 2, 2, torch.zeros(1)), (4, 2, None, torch.zeros(1).double())):
        assert groups_of(tree, *other) is not first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masks_are_finite_in_every_precision(dtype):
    tree = Tree((0, 3, 5, 9), (3, 2, 4, 1), (-1, 0, 0, -1))
    for group in groups_of(tree, 1, 1, 2, torch.zeros(1, dtype=dtype)).each:
        assert group.mask_NRQC.isfinite().all()
        assert (group.mask_NRQC < -3e4).any() or group.keys == 1

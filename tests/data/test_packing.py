from __future__ import annotations

from dataclasses import fields

import miniatures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.examples import Example, Response
from preftune.data.packing import LEAST_SHARED, PackedBatch, join, pack, pad
from preftune.objectives.batch import Role

SHARED = (
    *("target_K", "response_K", "example_R", "role_R", "score_R", "length_R"),
    *("row_E", "weight_E", "confidence_E", "gap_E"),
)


@st.composite
def example(draw: st.DrawFn) -> Example:
    """Any example: 1 to 4 responses, some of them with turns that are no targets."""

    def ids(low: int = 1) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(0, 63), min_size=low, max_size=6)), dtype=np.int32)

    responses = []
    start = np.full(draw(st.sampled_from([0, 0, LEAST_SHARED - 1, LEAST_SHARED])), 7, dtype=np.int32)
    for _ in range(draw(st.integers(1, 4))):
        given_ids = np.concatenate([start, ids()])
        targets = None
        if draw(st.booleans()):
            targets = np.array(draw(st.lists(st.booleans(), min_size=len(given_ids), max_size=len(given_ids))))
            targets[draw(st.integers(0, len(given_ids) - 1))] = True
        count = len(given_ids) if targets is None else int(targets.sum())
        token = {"advantage": np.arange(count, dtype=np.float32)} if draw(st.booleans()) else {}
        score = draw(st.sampled_from([0.0, 1.0, 2.5]))
        responses.append(Response(given_ids, draw(st.sampled_from(list(Role))), score, targets, token))
    return Example(ids(), tuple(responses), row=draw(st.integers(0, 99)), weight=draw(st.sampled_from([0.5, 1.0])))


examples = st.lists(example(), min_size=1, max_size=4)


def path_of(batch: PackedBatch, at: int) -> list[int]:
    """The tokens that a token sees, itself included, as ids."""
    if batch.tree is None:
        assert batch.row_length is not None
        start = at // batch.row_length * batch.row_length
        return batch.ids_T[start : at + 1].tolist()
    tree = batch.tree
    segment = max(s for s, start in enumerate(tree.start) if start <= at)
    seen: list[int] = []
    for ancestor in tree.ancestors(segment):
        seen += batch.ids_T[tree.start[ancestor] : tree.start[ancestor] + tree.length[ancestor]].tolist()
    return seen + batch.ids_T[tree.start[segment] : at + 1].tolist()


@settings(max_examples=60, deadline=None)
@given(examples)
def test_every_target_is_predicted_from_exactly_what_stands_before_it(given_examples):
    wanted = [
        ([*e.prompt.tolist(), *r.ids[:i].tolist()], int(r.ids[i]))
        for e in given_examples
        for r in e.responses
        for i in range(len(r.ids))
        if r.targets is None or r.targets[i]
    ]
    for batch in (pack(given_examples), pad(given_examples)):
        found = [(path_of(batch, int(s)), int(t)) for s, t in zip(batch.source_K, batch.target_K, strict=True)]
        assert found == wanted
        positions = [len(path) - 1 for path, _ in wanted]
        assert batch.position_T[batch.source_K].tolist() == positions
        assert batch.attended_T[batch.source_K].all()


@settings(max_examples=60, deadline=None)
@given(examples)
def test_both_layouts_say_the_same_of_targets_responses_and_examples(given_examples):
    packed, padded = pack(given_examples), pad(given_examples)
    for name in SHARED:
        torch.testing.assert_close(getattr(packed, name), getattr(padded, name), equal_nan=True, rtol=0, atol=0)
    assert packed.token.keys() == padded.token.keys()
    for name, values_K in packed.token.items():
        torch.testing.assert_close(values_K, padded.token[name], equal_nan=True)
        assert values_K.shape == packed.target_K.shape
    responses = [r for e in given_examples for r in e.responses]
    assert packed.length_R.tolist() == [r.length for r in responses]
    assert packed.response_K.tolist() == [i for i, r in enumerate(responses) for _ in range(r.length)]
    assert packed.example_R.tolist() == [i for i, e in enumerate(given_examples) for _ in e.responses]
    for batch in (packed, padded):
        assert batch.ids_T[batch.last_R].tolist() == [int(r.ids[-1]) for r in responses]


@settings(max_examples=40, deadline=None)
@given(examples, st.integers(1, 3))
def test_batches_join_into_what_one_batch_says(given_examples, size):
    whole = pack(given_examples)
    joined = join([pack(given_examples[at : at + size]) for at in range(0, len(given_examples), size)])
    for name in set(SHARED) - {"target_K"}:
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name), equal_nan=True, rtol=0, atol=0)
    assert joined.token.keys() == whole.token.keys()
    for name, values_K in whole.token.items():
        torch.testing.assert_close(joined.token[name], values_K, equal_nan=True, rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(examples)
def test_a_tree_holds_prompts_and_long_shared_beginnings_once_and_nothing_else(given_examples):
    batch = pack(given_examples)
    tree = batch.tree
    assert tree is not None
    saved = 0
    for e in given_examples:
        starts = [r.ids[:-1].tolist() for r in e.responses]
        shared = 0
        while all(len(start) > shared and start[shared] == starts[0][shared] for start in starts):
            shared += 1
        saved += (len(starts) - 1) * shared if shared >= LEAST_SHARED else 0
    assert batch.tokens == batch.real_tokens == sum(e.tokens for e in given_examples) - saved
    assert set(tree.read_T.tolist()) >= {*batch.source_K.tolist(), *batch.last_R.tolist()}
    assert batch.attended_T.all()
    assert tree.parent.count(-1) == len(given_examples)
    assert list(tree.start) == [0, *np.cumsum(tree.length)[:-1].tolist()]
    assert all(parent < segment for segment, parent in enumerate(tree.parent))


@settings(max_examples=30, deadline=None)
@given(examples, st.integers(0, 63))
def test_padded_rows_are_prompt_response_and_padding(given_examples, pad_id):
    batch = pad(given_examples, pad_id)
    rows = batch.ids_T.view(-1, batch.row_length or 0)
    attended = batch.attended_T.view(rows.shape)
    wanted = [[*e.prompt.tolist(), *r.ids.tolist()] for e in given_examples for r in e.responses]
    assert [row[seen].tolist() for row, seen in zip(rows, attended, strict=True)] == wanted
    assert (rows[~attended] == pad_id).all()
    assert rows.shape[1] == max(map(len, wanted))
    assert batch.real_tokens == sum(map(len, wanted))


def test_a_batch_worked_by_hand():
    """Prompt 7 8; responses 1 2 3 (the middle one is no target) and 4."""
    first = Response(np.array([1, 2, 3], np.int32), Role.CHOSEN, targets=np.array([True, False, True]))
    second = Response(np.array([4], np.int32), Role.REJECTED)
    given_example = Example(np.array([7, 8], np.int32), (first, second), row=5, weight=2.0, confidence=0.75, gap=1.5)
    batch = pack([given_example])
    assert batch.ids_T.tolist() == [7, 8, 1, 2, 3, 4]
    assert batch.position_T.tolist() == [0, 1, 2, 3, 4, 2]
    assert batch.source_K.tolist() == [1, 3, 1]
    assert batch.target_K.tolist() == [1, 3, 4]
    assert batch.response_K.tolist() == [0, 0, 1]
    assert batch.last_R.tolist() == [4, 5]
    assert batch.tree is not None
    assert (batch.tree.start, batch.tree.length, batch.tree.parent) == ((0, 2, 5), (2, 3, 1), (-1, 0, 0))
    padded = pad([given_example], pad_id=9)
    assert padded.ids_T.tolist() == [7, 8, 1, 2, 3, 7, 8, 4, 9, 9]
    assert padded.position_T.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert padded.source_K.tolist() == [1, 3, 6]
    assert padded.last_R.tolist() == [4, 7]
    assert padded.attended_T.tolist() == [True] * 8 + [False] * 2
    for one in (batch, padded):
        assert one.role_R.tolist() == [Role.CHOSEN, Role.REJECTED]
        assert one.row_E.tolist() == [5]
        assert (one.weight_E.item(), one.confidence_E.item(), one.gap_E.item()) == (2.0, 0.75, 1.5)


def test_a_shared_beginning_worked_by_hand():
    """Prompt 7 8; responses of sixteen ones, then 2 3, or 4."""
    responses = [Response(np.array([1] * 16 + end, np.int32), Role.RANKED) for end in ([2, 3], [4])]
    batch = pack([Example(np.array([7, 8], np.int32), tuple(responses))])
    assert batch.ids_T.tolist() == [7, 8, *[1] * 16, 2, 3, 4]
    assert batch.position_T.tolist() == [*range(18), 18, 19, 18]
    assert batch.source_K.tolist() == [*range(1, 18), 18, *range(1, 18)]
    assert batch.target_K.tolist() == [*[1] * 16, 2, 3, *[1] * 16, 4]
    assert batch.last_R.tolist() == [19, 20]
    assert batch.tree is not None
    assert (batch.tree.start, batch.tree.length, batch.tree.parent) == ((0, 2, 18, 20), (2, 16, 2, 1), (-1, 0, 1, 1))
    assert batch.tree.read_T.tolist() == [*range(1, 21)]


def test_values_per_token_follow_their_targets_and_are_unknown_elsewhere():
    batch = pack(miniatures.forest())
    known = ~batch.token["advantage"].isnan()
    assert batch.token["advantage"][known].tolist() == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert batch.example_R[batch.response_K[known]].unique().tolist() == [len(miniatures.forest()) - 1]
    turns = miniatures.forest()[-1].responses[0]
    assert batch.target_K[known].tolist() == turns.ids[turns.targets].tolist()


def test_baselines_are_responses_like_any_other():
    batch = pack(miniatures.forest())
    baseline = int((batch.role_R == Role.BASELINE).nonzero())
    assert batch.length_R[baseline] == 4
    assert batch.score_R[baseline].isnan()
    assert batch.example_R[baseline] == batch.example_R[baseline - 1]


@pytest.mark.parametrize("make", [pack, pad])
def test_a_batch_moves_whole(make):
    batch = make(miniatures.forest())
    moved = batch.to("meta")
    for f in fields(batch):
        value = getattr(moved, f.name)
        if isinstance(value, torch.Tensor):
            assert value.device.type == "meta", f.name
            assert value.shape == getattr(batch, f.name).shape
    assert all(value.device.type == "meta" for value in moved.token.values())
    assert moved.tree is None or moved.tree.read_T.device.type == "meta"
    assert (moved.tree, moved.row_length, moved.real_tokens) == (batch.tree, batch.row_length, batch.real_tokens)
    assert moved.examples == batch.examples

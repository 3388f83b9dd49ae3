"""Examples in their file: what is written is what is read, and no more of it is in memory than was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import forest

from preftune.data.examples import Example, Response
from preftune.data.records import Dropped, Where
from preftune.data.tokens import SCHEMA, StoredExamples, TokenFile, largest_id, to_batch
from preftune.objectives.batch import Role
from preftune.training.batches import lengths


def same(one: Example, other: Example) -> bool:
    def plain(example: Example) -> list[object]:
        own = [repr(getattr(example, f.name)) for f in fields(example) if f.name not in ("prompt", "responses")]
        parts = [
            (r.ids.tolist(), r.ids.dtype, r.role, repr(r.score), None if r.targets is None else r.targets.tolist())
            for r in example.responses
        ]
        return [example.prompt.tolist(), example.prompt.dtype, parts, own]

    return plain(one) == plain(other)


def written(pieces: Sequence[Sequence[Example | Dropped]], path: Path) -> TokenFile:
    with pyarrow.ipc.new_file(str(path), SCHEMA) as writer:
        for piece in pieces:
            writer.write_batch(to_batch(piece))
    return TokenFile(path)


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(lambda found: np.array(found, dtype=np.int32))
numbers = st.floats(allow_nan=True, allow_infinity=False)


@st.composite
def responses(draw: st.DrawFn) -> Response:
    tokens = draw(ids)
    masks = st.none() | st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)).map(np.array)
    return Response(tokens, draw(st.sampled_from(Role)), draw(numbers), targets=draw(masks))


examples = st.builds(
    Example,
    ids,
    st.lists(responses(), min_size=1, max_size=4).map(tuple),
    row=st.integers(-1, 2**40),
    weight=numbers,
    confidence=numbers,
    gap=numbers,
)
dropped = st.builds(Dropped, st.builds(Where, st.text(max_size=5), st.integers(0, 9)), st.text(max_size=9))


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.lists(examples | dropped, min_size=1, max_size=5), max_size=4))
def test_what_is_written_is_what_is_read(pieces, tmp_path_factory):
    outcomes = [one for piece in pieces for one in piece]
    file = written(pieces, tmp_path_factory.mktemp("tokens") / "examples.arrow")
    assert file.is_example.tolist() == [isinstance(one, Example) for one in outcomes]
    for i, one in enumerate(outcomes):
        assert not isinstance(one, Example) or same(file.example(i), one)
    assert list(file.left_out()) == [(i, one) for i, one in enumerate(outcomes) if isinstance(one, Dropped)]
    kept = [one for one in outcomes if isinstance(one, Example)]
    assert lengths(StoredExamples(file, np.flatnonzero(file.is_example))).tolist() == lengths(kept).tolist()


def test_stored_examples_are_a_sequence(tmp_path):
    given = [replace(e, responses=tuple(replace(r, token={}) for r in e.responses)) for e in forest()]
    file = written([given[:2], given[2:]], tmp_path / "examples.arrow")
    (tmp_path / "examples.arrow").unlink()  # what is open stays
    rows = np.array([3, 0, 4, 1])
    found = StoredExamples(file, rows)
    assert len(found) == 4
    assert all(same(one, given[row]) for one, row in zip(found, rows, strict=True))
    assert same(found[-1], given[1])
    assert [e.tokens for e in found[1:3]] == [given[0].tokens, given[4].tokens]
    assert lengths(found[::2]).tolist() == lengths([given[3], given[4]]).tolist()
    found[0].prompt[0] += 1  # a copy, like any other array
    assert same(found[0], given[3])
    assert not StoredExamples(file, rows[:0])


def test_the_largest_token_may_stand_anywhere():
    def example(prompt: int, response: int) -> Example:
        return Example(np.array([prompt], np.int32), (Response(np.array([response], np.int32), Role.CHOSEN),))

    assert largest_id(to_batch([example(5, 2), example(1, 7)])) == 7
    assert largest_id(to_batch([example(9, 2)])) == 9
    assert largest_id(to_batch([Dropped(Where("f", 0), "why")])) == -1

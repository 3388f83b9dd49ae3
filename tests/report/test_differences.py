from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from preftune.report.differences import MOST, differences
from preftune.report.thinning import extremes

TEXTS = st.lists(st.sampled_from(["a", "b", " ", "\n", ".", "\u202e", "é", "\ud83d", "word"]), max_size=12).map("".join)


def marked(pieces):
    return [piece.text for piece in pieces if piece.differs]


def test_words_that_differ_are_marked():
    one, other = differences("I hated the film.", "I loved the long film.")
    assert marked(one) == ["hated"]
    assert marked(other) == ["loved", " long"] or marked(other) == ["loved", "long "]


@given(TEXTS, TEXTS)
def test_pieces_add_up_to_the_text_and_what_is_not_marked_is_common(one, other):
    left, right = differences(one, other)
    assert ("".join(p.text for p in left), "".join(p.text for p in right)) == (one, other)
    common = ["".join(p.text for p in side if not p.differs).replace(" ", "") for side in (left, right)]
    assert common[0] == common[1]


def test_texts_without_end_are_not_compared():
    long = "word " * MOST
    assert not any(marked(side) for side in differences(long, "other"))


@given(st.lists(st.floats(-1e6, 1e6), max_size=400), st.integers(4, 60))
def test_thinning_keeps_ends_and_extremes(values, most):
    kept = extremes(values, most=most)
    assert len(kept) <= max(most, 0) or len(values) <= most
    assert kept == sorted(set(kept))
    if values:
        assert {0, len(values) - 1} <= set(kept)
        assert (min(values), max(values)) == (min(values[i] for i in kept), max(values[i] for i in kept))


def test_one_peak_in_ten_thousand_steps_is_drawn():
    values = [0.5] * 10_000
    values[7123] = 9.0
    kept = extremes(values)
    assert 7123 in kept
    assert len(kept) <= 400

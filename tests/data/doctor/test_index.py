"""What is kept of every record: the same for the same content, whatever its form and place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.doctor.index import TEMPLATED, extremes, index, sides
from preftune.data.lines import Lines, Reading
from preftune.data.records import Ranking, Where

TEXT = st.sampled_from(["a", "b ", " b", "c"])
PAIR = st.fixed_dictionaries({"prompt": st.sampled_from(["p", "q"]), "chosen": TEXT, "rejected": TEXT})


@settings(max_examples=50, deadline=None)
@given(st.lists(PAIR.filter(lambda row: row["chosen"] != row["rejected"]), min_size=1, max_size=12))
def test_hashes_are_equal_exactly_where_texts_are_but_for_blanks(rows: list[dict[str, str]]) -> None:
    found = index(Lines(rows, Reading()))
    for name, keys in (("prompt", ["prompt"]), ("content", ["prompt", "chosen", "rejected"])):
        contents = [tuple(row[key].strip() for key in keys) for row in rows]
        hashes = getattr(found, name).tolist()
        assert [hashes.index(one) for one in hashes] == [contents.index(one) for one in contents]
    differ = [i for i, row in enumerate(rows) if row["chosen"].strip() != row["rejected"].strip()]
    assert found.comparisons.record.tolist() == differ
    lengths = [len(rows[i]["chosen"]) - len(rows[i]["rejected"]) for i in differ]
    assert found.comparisons.longer.tolist() == lengths


def test_places_are_those_of_the_files(tmp_path: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p", "completion": "yes"}\n' * 2)
    found = index(Lines(str(tmp_path), Reading()))
    assert [found.places[i] for i in range(4)] == [
        Where(str(tmp_path / f"{name}.jsonl"), row) for name in ("a", "b") for row in (0, 1)
    ]
    assert found.kinds == {"Demonstration": 4}


def test_rankings_are_compared_pair_by_pair_ties_aside() -> None:
    rows = [{"prompt": "p", "responses": [" a", " bb", " c", " d"], "scores": [2, 9, 2, 1]}]
    lines = Lines(rows, Reading())
    found = index(lines)
    (record,) = lines.records()
    assert isinstance(record, Ranking)
    assert sides(record) == [("rank 0", " bb"), ("rank 1", " a"), ("rank 1", " c"), ("rank 2", " d")]
    assert [*extremes(record)] == [(True, " bb"), (False, " d")]
    assert len(found.comparisons.record) == 5
    assert len(np.unique(np.concatenate([found.comparisons.better, found.comparisons.worse]))) == 4
    turned = [{"prompt": "p", "responses": [" d", " bb", " a", " c"], "ranks": [3, 1, 2, 2]}]
    assert index(Lines(turned, Reading())).content == found.content


def test_confidences_and_marks() -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [{**pair, "confidence": 0.4}, {**pair, "confidence": 0.9}, {**pair, "chosen": "[INST] a"}, pair]
    found = index(Lines(rows, Reading()))
    assert found.doubtful.tolist() == [0]
    assert found.confidence == pytest.approx((0.7, 2))
    assert (found.templated.tolist(), found.marks) == ([2], ["[INST]"])


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("<|im_start|>user", True),
        ("<start_of_turn>model", True),
        ("<<SYS>> be kind", True),
        ("<\uff5cUser\uff5c>hello", True),
        ("<|eot_id|>", True),
        ("a <b> c | d", False),
        ("[1] see INST", False),
    ],
)
def test_marks_of_chat_templates(text: str, marked: bool) -> None:
    assert bool(TEMPLATED.search(text)) is marked

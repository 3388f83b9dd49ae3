"""Pairs of rewrites in our layout and in the published one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.records import Where
from preftune.errors import PreftuneError
from preftune.prompting.naming import prompt_id
from preftune.prompting.records import PUBLISHED, Layout, PromptPair, as_row, read_pairs, write_pairs

TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
PUBLISHED_ROW = {
    "id": 7,
    "raw_prompt": "Name a fruit.",
    "chatgpt_optimized_prompt": "Fruit?",
    "gpt4_optimized_prompt": "Name one fruit, in one word.",
    "gpt4_response_based_raw": "Apple",
    "text003_response_based_raw": "A fruit is an apple.",
}


def test_reads_the_published_layout() -> None:
    (pair,) = read_pairs([PUBLISHED_ROW])
    assert pair.id == "7"
    assert (pair.chosen, pair.rejected) == ("Name one fruit, in one word.", "Fruit?")
    assert (pair.ground_truth, pair.naive_response) == ("Apple", "A fruit is an apple.")
    assert as_row(pair, "published") == {**PUBLISHED_ROW, "id": "7"}


@pytest.mark.parametrize("layout", ["preftune", "published"])
@given(texts=st.tuples(TEXT, TEXT, TEXT), more=st.tuples(st.none() | TEXT, st.none() | TEXT))
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    layout: Layout,
    texts: tuple[str, str, str],
    more: tuple[str | None, str | None],
) -> None:
    prompt, chosen, rejected = texts
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pair = PromptPair(
        id="x",
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        naive_response=more[0],
        ground_truth=more[1],
        where=Where(str(path), 0),
    )
    write_pairs(path, [pair], layout)
    assert list(read_pairs(path)) == [pair]


def test_a_prompt_without_a_name_is_named_by_its_text() -> None:
    first, second = read_pairs(
        [{"prompt": text, "chosen": "a", "rejected": "b"} for text in ("Name a fruit.", "Name  a fruit.\n")]
    )
    assert first.id == second.id == prompt_id("Name a fruit.")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "row 0: rejected is missing, expected a naive prompt"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "row 0: prompt is"),
        ({"raw_prompt": "a"}, "gpt4_optimized_prompt is missing"),
        ({"prompt": ["a"], "chosen": "b", "rejected": "c"}, "prompt is a list"),
    ],
)
def test_says_what_is_wrong_with_a_row(row: dict[str, object], said: str) -> None:
    with pytest.raises(PreftuneError, match="row 0") as error:
        list(read_pairs([row]))
    assert said in str(error.value)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PreftuneError, match="cannot write"):
        write_pairs(tmp_path / "file" / "pairs.jsonl", [])


def test_names_of_the_published_data_are_all_there() -> None:
    assert set(PUBLISHED.values()) == set(json.loads(json.dumps(PUBLISHED_ROW)))

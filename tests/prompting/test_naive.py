"""Naive prompts of any file."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import PreftuneError
from preftune.prompting.naive import LONGEST, final_answer, read_prompts

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)


def test_rows_of_any_names() -> None:
    found = read_prompts(
        [
            {"prompt": "a", "ground_truth": "1", "answer": "no", "task": "t", "id": 7},
            {"raw_prompt": "b", "answer": 2.5},
            {"question": "c", "reference": "3", "options": ["x", "y"]},
            {"input": "d", "target": "(A)", "choices": ["p", "q"]},
            {"instruction": "e"},
        ]
    )
    assert [each.prompt for each in found] == ["a", "b", "c", "d", "e"]
    assert [each.ground_truth for each in found] == ["1", "2.5", "3", "(A)", None]
    assert [each.options for each in found] == [(), (), ("x", "y"), ("p", "q"), ()]
    assert (found[0].id, found[0].task) == ("7", "t")
    assert len({each.id for each in found}) == 5


@given(lines=st.lists(WORDS, min_size=1, max_size=6))
def test_lines_and_rows_name_the_same_prompts_alike(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "p.txt").write_text("\n\n".join(lines) + "\r\n", encoding="utf-8")
    with gzip.open(folder / "p.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": line}) + "\n" for line in lines)
    texts, rows = read_prompts(str(folder / "p.txt")), read_prompts(folder / "p.jsonl.gz")
    assert [each.id for each in texts] == [each.id for each in rows]
    assert [each.prompt for each in texts] == list(dict.fromkeys(lines))
    assert read_prompts(folder / "p.txt", 1) == texts[:1]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a"}, "prompt or raw_prompt or question or instruction or input is missing"),
        ({"prompt": 3}, "prompt is the number 3, expected text"),
        ({"prompt": "x" * (LONGEST + 1)}, "the prompt has 32,769 characters"),
        ({"prompt": "a", "answer": ["1"]}, "answer is"),
        ({"prompt": "a", "options": "x, y"}, "options is 'x, y', expected a list of texts"),
        ({"prompt": "a", "options": ["x", 3]}, "options 1 is the number 3, expected text"),
        ({"prompt": "a\ud800"}, "prompt has half a surrogate pair"),
    ],
)
def test_bad_rows(row: dict[str, Any], says: str) -> None:
    with pytest.raises(PreftuneError, match=r"given data row 0: " + re.escape(says)):
        read_prompts([row])


def test_the_answer_at_the_end_of_a_solution(tmp_path: Path) -> None:
    assert final_answer("a #### 3\n#### 4 ") == "4"
    assert final_answer("no mark") == "no mark"

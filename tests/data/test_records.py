from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import layouts, sources
from preftune.data.layouts import shared_prefix
from preftune.data.records import (
    Demonstration,
    Drops,
    Judged,
    Message,
    Preference,
    PromptOnly,
    Ranking,
    Record,
    Where,
    fingerprint,
    records,
    without_identical,
)
from preftune.errors import PreftuneError

Read = Callable[..., list[Record]]

S, U, V, A, B = (
    Message("system", "Be brief."),
    Message("user", "Why?"),
    Message("user", "Really?"),
    Message("assistant", "Because."),
    Message("assistant", "No idea."),
)


def chat(*turns: Message) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def sharegpt(*turns: Message) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
    return [{"from": names[turn.role], "value": turn.content} for turn in turns]


# Every layout: its name, a row as it lies in files, and what it is in the normal form.
PAIRS: dict[str, tuple[str, dict[str, Any], tuple[Any, Any, Any]]] = {
    "TRL standard": (
        "prompt-pairs",
        {"prompt": "Why?", "chosen": " Because.", "rejected": " No idea."},
        ("Why?", " Because.", " No idea."),
    ),
    "TRL conversational": (
        "prompt-pairs",
        {"prompt": chat(S, U), "chosen": chat(A), "rejected": chat(B)},
        ((S, U), (A,), (B,)),
    ),
    "TRL conversational, implicit prompt": (
        "pairs",
        {"chosen": chat(S, U, A), "rejected": chat(S, U, B)},
        ((S, U), (A,), (B,)),
    ),
    "TRL conversational, implicit prompt of several turns": (
        "pairs",
        {"chosen": chat(U, A, V, A), "rejected": chat(U, A, V, B)},
        ((U, A, V), (A,), (B,)),
    ),
    "TRL conversational, responses of several turns": (
        "pairs",
        {"chosen": chat(U, A, V, A), "rejected": chat(U, B)},
        ((U,), (A, V, A), (B,)),
    ),
    "TRL conversational, one goes on after the other ends": (
        "pairs",
        {"chosen": chat(U, A), "rejected": chat(U, A, V, B)},
        ((U,), (A,), (A, V, B)),
    ),
    "TRL standard, implicit prompt": (
        "pairs",
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        ("The sky is", " blue.", " black."),
    ),
    "system column": (
        "prompt-pairs",
        {"system": "Be brief.", "question": "Why?", "chosen": "Because.", "rejected": "No idea."},
        ((S, U), (A,), (B,)),
    ),
    "blank system column": (
        "prompt-pairs",
        {"system": " ", "question": "Why?", "chosen": "Because.", "rejected": "No idea."},
        ("Why?", "Because.", "No idea."),
    ),
    "Anthropic HH": (
        "hh",
        {
            "chosen": "\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: Really?\n\nAssistant: Because.",
            "rejected": "\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: Really?\n\nAssistant: No idea.",
        },
        ((U, A, V), (A,), (B,)),
    ),
    "ShareGPT": (
        "chat-pairs",
        {"conversations": sharegpt(S, U), "chosen": sharegpt(A)[0], "rejected": sharegpt(B)[0]},
        ((S, U), (A,), (B,)),
    ),
    "ShareGPT, several turns, system column": (
        "chat-pairs",
        {
            "conversations": sharegpt(U, A, V),
            "chosen": sharegpt(A)[0],
            "rejected": sharegpt(B)[0],
            "system": "Be brief.",
        },
        ((S, U, A, V), (A,), (B,)),
    ),
    "messages and two answers": (
        "chat-pairs",
        {"messages": chat(U), "chosen": chat(A)[0], "rejected": chat(B)[0]},
        ((U,), (A,), (B,)),
    ),
    "alpaca": (
        "alpaca-pairs",
        {"instruction": "Add.", "input": "2 2", "chosen": "4", "rejected": "5"},
        ((Message("user", "Add.\n2 2"),), (Message("assistant", "4"),), (Message("assistant", "5"),)),
    ),
    "alpaca with history": (
        "alpaca-pairs",
        {
            "instruction": "Really?",
            "input": "",
            "history": [["Why?", "Because."]],
            "chosen": "Because.",
            "rejected": "No idea.",
        },
        ((U, A, V), (A,), (B,)),
    ),
    "UltraFeedback": (
        "prompt-pairs",
        {
            "prompt": "Why?",
            "prompt_id": "1",
            "chosen": chat(U, A),
            "rejected": chat(U, B),
            "messages": chat(U, A),
            "score_chosen": 8.5,
            "score_rejected": 3,
        },
        ((U,), (A,), (B,)),
    ),
    "prompt is the last of the turns that the responses repeat": (
        "prompt-pairs",
        {"prompt": "Really? ", "chosen": chat(S, U, A, V, A), "rejected": chat(S, U, A, V, B)},
        ((S, U, A, V), (A,), (B,)),
    ),
    "prompt follows a system turn in the responses": (
        "prompt-pairs",
        {"prompt": "Why?", "chosen": chat(S, U, A, V, A), "rejected": chat(S, U, A, V, B)},
        ((S, U, A, V), (A,), (B,)),
    ),
}
SINGLES: dict[str, tuple[str, dict[str, Any], tuple[Any, Any]]] = {
    "unpaired": ("prompt-labels", {"prompt": "Why?", "completion": " Because.", "label": True}, ("Why?", " Because.")),
    "unpaired conversational": (
        "prompt-labels",
        {"prompt": chat(U), "completion": chat(A), "label": True},
        ((U,), (A,)),
    ),
    "messages with label": ("chat-labels", {"messages": chat(U, A, V, B), "label": True}, ((U, A, V), (B,))),
    "ShareGPT with tag": ("chat-labels", {"conversations": sharegpt(U, B), "kto_tag": True}, ((U,), (B,))),
    "alpaca with tag": ("alpaca-labels", {"instruction": "Why?", "output": "Because.", "kto_tag": True}, ((U,), (A,))),
    "completion": ("prompt-answers", {"prompt": "Why?", "completion": " Because."}, ("Why?", " Because.")),
    "question and answer": ("prompt-answers", {"question": "Why?", "answer": "Because."}, ("Why?", "Because.")),
    "messages": ("chat", {"messages": chat(S, U, A)}, ((S, U), (A,))),
    "messages, every answer is shown": ("chat", {"messages": chat(S, U, A, V, B)}, ((S, U), (A, V, B))),
    "ShareGPT": ("chat", {"conversations": sharegpt(U, A), "system": "Be brief."}, ((S, U), (A,))),
    "alpaca": ("alpaca", {"instruction": "Why?", "input": None, "output": "Because."}, ((U,), (A,))),
}


RANKINGS: dict[str, tuple[str, dict[str, Any], tuple[Any, Any, Any]]] = {
    "scores": (
        "prompt-rankings",
        {"prompt": "Why?", "responses": [" Because.", " No idea.", " Hm."], "scores": [3, "1.5", 1.5]},
        ("Why?", (" Because.", " No idea.", " Hm."), (3.0, 1.5, 1.5)),
    ),
    "ranks, of which the first is the best": (
        "prompt-rankings",
        {"question": chat(U), "completions": [chat(A), "No idea."], "ranks": [2, 1]},
        ((U,), ((A,), (B,)), (-2.0, -1.0)),
    ),
    "alpaca": (
        "alpaca-rankings",
        {"instruction": "Why?", "completions": ["Because.", "No idea."], "ratings": [5, 2], "weight": 1},
        ((U,), ((A,), (B,)), (5.0, 2.0)),
    ),
    "ShareGPT": (
        "chat-rankings",
        {"conversations": sharegpt(U), "responses": ["Because.", "No idea."], "ranking": [1, 2], "system": "Be brief."},
        ((S, U), ((A,), (B,)), (-1.0, -2.0)),
    ),
}


@pytest.mark.parametrize("case", RANKINGS)
def test_rankings_in_every_layout(read: Read, case: str) -> None:
    layout, row, (prompt, responses, scores) = RANKINGS[case]
    (record,) = read(row)
    assert record == Ranking(prompt, responses, scores, Where("given data", 0))
    assert read(row, layout=layout) == [record]
    assert layouts.recognise(row).name == layout


@pytest.mark.parametrize("case", PAIRS)
def test_pairs_in_every_layout(read: Read, case: str) -> None:
    layout, row, (prompt, chosen, rejected) = PAIRS[case]
    (record,) = read(row)
    gap = 5.5 if case == "UltraFeedback" else None
    assert record == Preference(prompt, chosen, rejected, Where("given data", 0), gap=gap)
    assert read(row, layout=layout) == [record]
    assert layouts.recognise(row).name == layout


@pytest.mark.parametrize("case", SINGLES)
def test_verdicts_and_demonstrations_in_every_layout(read: Read, case: str) -> None:
    layout, row, (prompt, response) = SINGLES[case]
    where = Where("given data", 0)
    judged = "label" in row or "kto_tag" in row
    expected = Judged(prompt, response, True, where) if judged else Demonstration(prompt, response, where)
    assert read(row) == [expected]
    assert read(row, layout=layout) == [expected]
    assert layouts.recognise(row).name == layout


def test_prompts_alone(read: Read) -> None:
    where = Where("given data", 0)
    assert read({"prompt": "Why?"}) == [PromptOnly("Why?", where)]
    assert read({"question": "Why?", "ground_truth": "4", "weight": 2}) == [PromptOnly("Why?", where, 2.0, "4")]
    assert read({"prompt": chat(U), "source": "x"}, layout="prompts") == [PromptOnly((U,), where)]
    with pytest.raises(PreftuneError, match="fit no known layout"):
        read({"prompt": "Why?", "label": True})


def test_every_layout_has_a_case() -> None:
    assert {layout for layout, _, _ in [*PAIRS.values(), *SINGLES.values(), *RANKINGS.values()]} | {"prompts"} == {
        each.name for each in layouts.LAYOUTS
    }


def test_layout_can_be_overridden(read: Read) -> None:
    row = PAIRS["Anthropic HH"][1]
    (record,) = read(row, layout="pairs")
    assert record.prompt == row["chosen"].removesuffix(" Because.")
    (record,) = read({"prompt": "Why?", "completion": "Because.", "label": "physics"}, layout="prompt-answers")
    assert isinstance(record, Demonstration)
    with pytest.raises(
        PreftuneError, match=r"no layout 'prompt-pair' \(did you mean prompt-pairs\?\); known layouts: p"
    ):
        records(iter([]), "prompt-pair")


def test_layout_is_recognised_for_each_file_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([PAIRS["ShareGPT"][1]]))
    (tmp_path / "b.json").write_text(json.dumps([SINGLES["messages with label"][1]]))
    kinds = [type(record) for record in records(sources.rows(tmp_path))]
    assert kinds == [Preference, Judged]


def test_real_preferences_as_they_lie(shared_data: Path) -> None:
    found = list(records(sources.rows(shared_data / "dpo_en_demo.json")))
    raw = json.loads((shared_data / "dpo_en_demo.json").read_text())
    assert len(found) == len(raw) == 300
    for record, row in zip(found, raw, strict=True):
        assert isinstance(record, Preference)
        assert [turn.content for turn in record.prompt] == [turn["value"] for turn in row["conversations"]]
        assert record.chosen == (Message("assistant", row["chosen"]["value"]),)
        assert record.rejected == (Message("assistant", row["rejected"]["value"]),)


def test_real_verdicts_as_they_lie(shared_data: Path) -> None:
    found = list(records(sources.rows(shared_data / "kto_en_demo.json")))
    raw = json.loads((shared_data / "kto_en_demo.json").read_text())
    assert len(found) == 300
    assert sum(record.good for record in found) == 150
    for record, row in zip(found, raw, strict=True):
        assert chat(*record.prompt, *record.response) == [dict(turn) for turn in row["messages"]]


# --- optional columns -------------------------------------------------------------------------------------------------

PAIR: dict[str, Any] = {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."}


def test_weight_confidence_and_gap(read: Read) -> None:
    (record,) = read(PAIR | {"weight": 2, "confidence": 0.75, "gap": -1.5})
    assert (record.weight, record.confidence, record.gap) == (2.0, 0.75, -1.5)
    (record,) = read(PAIR | {"weight": "2", "confidence": "0.75", "gap": "", "score_chosen": 1, "score_rejected": 4})
    assert (record.weight, record.confidence, record.gap) == (2.0, 0.75, -3.0)
    (record,) = read(PAIR | {"chosen_votes": 4, "rejected_votes": "1"})
    assert record.confidence == 0.8
    (record,) = read({"prompt": "Why?", "completion": " Because.", "label": False, "confidence": 0.6})
    assert (record.good, record.confidence) == (False, 0.6)
    (record,) = read(PAIR | {"weight": None, "confidence": None, "gap": None, "score_chosen": 1})
    assert (record.weight, record.confidence, record.gap) == (1.0, None, None)
    assert read(SINGLES["unpaired"][1] | {"weight": 0})[0].weight == 0


@pytest.mark.parametrize(
    ("flag", "good"), [(True, True), (False, False), (1, True), (0.0, False), ("TRUE", True), ("0", False)]
)
def test_verdicts_may_be_numbers_or_text(read: Read, flag: Any, good: bool) -> None:
    assert read(SINGLES["unpaired"][1] | {"label": flag})[0].good is good


# --- bad rows ---------------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    (PAIR | {"chosen": None}, "chosen is null, expected text or turns"),
    (PAIR | {"rejected": 7}, "rejected is the number 7, expected text or turns"),
    (PAIR | {"chosen": ""}, "chosen is empty, expected text"),
    (PAIR | {"rejected": " \n\t"}, "rejected is empty, expected text"),
    (PAIR | {"prompt": ""}, "prompt is empty, expected text"),
    (PAIR | {"prompt": []}, "prompt is an empty list, expected a list of turns"),
    (PAIR | {"chosen": "half \ud800"}, "chosen has half a surrogate pair at character 5, expected valid Unicode"),
    (PAIR | {"weight": -1}, "weight is the number -1, expected a finite number >= 0"),
    (PAIR | {"weight": float("inf")}, "weight is the number inf, expected a finite number >= 0"),
    (PAIR | {"weight": True}, "weight is true, expected a finite number >= 0"),
    (PAIR | {"chosen_votes": 1}, "only one of chosen_votes and rejected_votes is given, expected both or none"),
    (PAIR | {"chosen_votes": 1, "rejected_votes": 1, "confidence": 1}, "confidence and votes are given, expected one"),
    (PAIR | {"chosen_votes": 0, "rejected_votes": 0}, "chosen_votes and rejected_votes sum to nothing, expected at"),
    (PAIR | {"chosen_votes": -1, "rejected_votes": 2}, "chosen_votes is the number -1, expected a finite number >= 0"),
    (PAIR | {"confidence": 1.1}, "confidence is the number 1.1, expected a finite number from 0 to 1"),
    (PAIR | {"confidence": "high"}, "confidence is 'high', expected a finite number from 0 to 1"),
    (PAIR | {"gap": float("nan")}, "gap is the number nan, expected a finite number"),
    (PAIR | {"gap": 10**400}, "gap is a huge number, expected a finite number"),
    (PAIR | {"score_chosen": 1e308, "score_rejected": -1e308}, "score_chosen minus score_rejected is infinite"),
    (PAIR | {"system": 3}, "system is the number 3, expected text"),
    (PAIR | {"prompt": chat(U, V)}, "prompt turn 1 has role user after user, expected assistant"),
    (PAIR | {"prompt": chat(A)}, "prompt turn 0 has role assistant, expected user or system"),
    (PAIR | {"prompt": chat(S)}, "prompt ends with role system, expected user"),
    (PAIR | {"prompt": chat(U, A)}, "prompt ends with role assistant, expected user"),
    (PAIR | {"prompt": chat(U, S)}, "prompt turn 1 has role system after user, expected assistant"),
    (PAIR | {"chosen": chat(U)}, "chosen turn 0 has role user after user, expected assistant"),
    (PAIR | {"chosen": chat(A, V)}, "chosen ends with role user, expected assistant"),
    (PAIR | {"chosen": chat(V, A), "rejected": chat(V, B)}, "chosen and rejected begin with a conversation that is"),
    (PAIR | {"prompt": chat(S, U), "system": "Else."}, "the system column and the first turn give different system"),
    (PAIR | {"prompt": [{"role": "user"}]}, "prompt turn 0 has the keys role, expected role and content, or from"),
    (PAIR | {"prompt": [{}]}, "prompt turn 0 has the keys (none), expected role and content, or from"),
    (PAIR | {"prompt": ["Why?"]}, "prompt turn 0 is 'Why?', expected role and content"),
    (
        PAIR | {"prompt": [{"role": "judge", "content": "x"}]},
        "role of prompt turn 0 is 'judge', expected one of system",
    ),
    (PAIR | {"prompt": [{"role": None, "content": "x"}]}, "role of prompt turn 0 is null, expected one of system"),
    (PAIR | {"chosen": [{"role": "assistant", "content": None}]}, "content of chosen turn 0 is null, expected text"),
    (PAIR | {"chosen": {"from": "gpt", "value": " "}}, "value of chosen is empty, expected text"),
    ({"chosen": "one", "rejected": "two"}, "chosen and rejected do not begin alike, expected a shared prompt or"),
    ({"chosen": chat(U, A), "rejected": chat(V, B)}, "chosen and rejected do not begin with the same turns, expected"),
    ({"chosen": chat(U, A), "rejected": "text"}, "one of chosen and rejected is text and the other is turns"),
    ({"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "z"}, "rejected begins with 'z', expected \"Human:\""),
    ({"chosen": "\n\nHuman: x\n\nAssistant:", "rejected": "z"}, "chosen turn 1 is empty, expected text"),
    ({"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": None}, "rejected is null, expected text"),
    ({"conversations": [], "chosen": "a", "rejected": "b"}, "conversations is an empty list, expected a list of turns"),
    ({"conversations": sharegpt(U)}, "conversations ends with role user, expected assistant"),
    ({"messages": "Why?"}, "messages is 'Why?', expected a list of turns"),
    ({"messages": chat(U, A), "label": None}, "label is null, expected true or false"),
    ({"messages": chat(U, A), "label": 2}, "label is the number 2, expected true or false"),
    ({"messages": chat(U, A), "label": [1]}, "label is a list, expected true or false"),
    ({"instruction": " ", "output": "b"}, "instruction is empty, expected text"),
    ({"instruction": "a", "output": None}, "output is null, expected text"),
    ({"instruction": "a", "output": "b", "history": 3}, "history is the number 3, expected a list of exchanges"),
    ({"instruction": "a", "output": "b", "history": [["q"]]}, "history entry 0 is a list, expected a list of question"),
    (
        {"prompt": "a", "chosen": "b"},
        "the columns prompt, chosen fit no known layout (prompt-pairs lacks rejected), exp",
    ),
    ({"messages": chat(U, A), "chosen": "b"}, "the columns messages, chosen fit no known layout (chat-pairs lacks rej"),
    (
        {"text": "a"},
        "the columns text fit no known layout, expected those of one of prompt-pairs (prompt or question, c",
    ),
    ({"\n": "a", "k" * 99: 1}, "the columns empty, 'kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk...' fit no known layout"),
    ({}, "the columns (none) fit no known layout, expected those of one of prompt-pairs"),
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[reason[:40] for _, reason in BAD])
def test_bad_rows_name_source_row_field_and_what_was_found(read: Read, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(PreftuneError) as caught:
        read(row)
    assert str(caught.value).startswith(f"given data row 0: {reason}")
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None


def test_later_rows_are_held_to_the_layout_of_the_first(read: Read) -> None:
    with pytest.raises(PreftuneError, match="given data row 2: rejected is missing, expected it in every row"):
        read(PAIR, PAIR, {"prompt": "a", "chosen": "b"})


def test_message_lists_every_layout(read: Read) -> None:
    with pytest.raises(PreftuneError) as caught:
        read({"id": 1, "text": "x"})
    assert all(layout.name in str(caught.value) for layout in layouts.LAYOUTS)


def test_bad_rows_are_dropped_by_policy_counted_and_listed(read: Read) -> None:
    drops = Drops("drop")
    found = read({"text": "x"}, PAIR, PAIR | {"chosen": None}, PAIR, PAIR | {"chosen": None}, drops=drops)
    assert [record.where.row for record in found] == [1, 3]
    assert sorted(where.row for places in drops.places.values() for where in places) == [0, 2, 4]
    assert drops.summary().startswith(
        "3 left out: 2 because chosen is null, expected text or turns (given data row 2, given data row 4), 1 because"
    )
    with pytest.raises(PreftuneError, match=r"no usable row in the data.* 1 because the columns text fit no known"):
        read({"text": "x"}, drops=Drops("drop"))


def test_summary_names_the_first_places_of_the_first_reasons() -> None:
    drops = Drops("drop")
    assert drops.summary() == "0 left out"
    for row in range(9):
        drops.add(Where("f", row), f"reason {row % 4}" if row < 6 else "reason 0")
    assert drops.summary() == (
        "9 left out: 5 because reason 0 (f row 0, f row 4, f row 6, ...), 2 because reason 1 (f row 1, f row 5), "
        "1 because reason 2 (f row 2), and 1 for other reasons"
    )


def test_promise_03_identical_pairs_are_dropped_counted_and_listed(read: Read) -> None:
    same = PAIR | {"rejected": PAIR["chosen"]}
    chats = {"chosen": chat(U, A), "rejected": chat(U, A)}
    texts = {"chosen": "The same words.", "rejected": "The same words."}
    for row in (same, chats, texts):
        found = read(PAIR, row, layout=None) if row is same else read(row)
        drops = Drops("drop")
        kept = list(without_identical(found, drops))
        assert kept == [record for record in found if record.chosen != record.rejected]
        assert drops.places == {"chosen and rejected are identical": [Where("given data", len(found) - 1)]}
        assert "1 because chosen and rejected are identical (given data row" in drops.summary()
        with pytest.raises(PreftuneError, match=f"row {len(found) - 1}: chosen and rejected are identical"):
            list(without_identical(found, Drops("error")))


# --- shared prompts of plain text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The answer is 12.", "The answer is 13.", "The answer is"),  # not "The answer is 1"
        ("Q: why?\nA: so", "Q: why?\nA: no", "Q: why?\nA:"),
        ("Q: why?\nBecause", "Q: why?\nNo", "Q: why?\n"),  # a line end goes with what comes before
        ("Q: why?\n\n  Yes", "Q: why?\n\n  No", "Q: why?\n\n"),
        ("Q?\n\nx", "Q?\ny", "Q?"),  # the run of blanks is not torn apart
        ("a  b", "a c", "a"),
        ("a b c", "a b", "a"),  # nothing would be left of rejected
        ("a b ", "a b  ", "a"),
        ("same words", "same words", "same"),
        ("one", "two", ""),
        ("word", "words", ""),
        ("", "", ""),
    ],
)
def test_shared_prefix_ends_where_words_do(chosen: str, rejected: str, prompt: str) -> None:
    assert chosen[: shared_prefix(chosen, rejected)] == prompt
    assert rejected[: shared_prefix(rejected, chosen)] == prompt


@given(start=st.text("ab \n", max_size=12), chosen=st.text("ab \n", max_size=6), rejected=st.text("ab \n", max_size=6))
def test_shared_prefix_is_shared_and_tears_no_word(start: str, chosen: str, rejected: str) -> None:
    a, b = start + chosen, start + rejected
    cut = shared_prefix(a, b)
    assert a[:cut] == b[:cut]
    if cut:
        assert a[cut:].strip()
        assert b[cut:].strip()
        assert a[cut - 1] == "\n" or (a[cut].isspace() and b[cut].isspace())


# --- fingerprint ------------------------------------------------------------------------------------------------------


def test_fingerprint_covers_the_content_and_the_order_and_not_the_format(tmp_path: Path, read: Read) -> None:
    rows = [PAIR, PAIR | {"chosen": "Else."}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(row | {"id": 3}) for row in rows))
    same = {fingerprint(records(sources.rows(tmp_path / name))) for name in ("a.json", "b.jsonl")}
    assert same == {fingerprint(read(*rows))}
    variants = [
        rows[::-1],
        rows[:1],
        [rows[0], rows[0]],
        [PAIR | {"weight": 2}, rows[1]],
        [PAIR | {"confidence": 1}, rows[1]],
        [PAIR | {"gap": 0}, rows[1]],
        [PAIR | {"prompt": chat(U)}, rows[1]],
    ]
    assert len({fingerprint(read(*variant)) for variant in [rows, *variants]}) == len(variants) + 1
    judged = SINGLES["unpaired"][1]
    assert fingerprint(read(judged)) != fingerprint(read(judged | {"label": False}))


# --- anything at all --------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["user", "gpt", "a b", "a c"]),
)
turns = st.fixed_dictionaries({}, optional=dict.fromkeys(("role", "content", "from", "value"), scalars))
good_turns = st.lists(st.sampled_from([S, U, V, A, B]), max_size=4).map(lambda turns: chat(*turns))
values = st.one_of(
    scalars,
    good_turns,
    st.lists(st.one_of(turns, scalars), max_size=3),
    turns,
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner), max_leaves=4
    ),
)
columns = sorted(
    {name for layout in layouts.LAYOUTS for key in layout.keys for name in key.split("|")}
    | {"system", "weight", "confidence", "gap", "score_chosen", "score_rejected", "history", "input"}
)
anything = st.dictionaries(st.sampled_from(columns) | st.text(max_size=5), values, max_size=5)
good_rows = st.sampled_from([row for _, row, _ in [*PAIRS.values(), *SINGLES.values()]])
# A change of a column that the row has, and another that it may lack.
nearly_good = good_rows.flatmap(
    lambda row: st.builds(
        lambda own, other: row | own | other,
        st.dictionaries(st.sampled_from(sorted(row)), values, max_size=1),
        st.dictionaries(st.sampled_from(columns), values, max_size=1),
    )
)


def check_records(found: list[Record]) -> None:
    """What every record holds, whatever it was read from."""
    assert len(fingerprint(found)) == 64
    for record in found:
        if isinstance(record, Preference):
            responses: tuple[Any, ...] = (record.chosen, record.rejected)
        elif isinstance(record, Ranking):
            responses = record.responses
            assert len(responses) == len(record.scores) >= 2
        elif isinstance(record, PromptOnly):
            responses = ()
        else:
            responses = (record.response,)
        for response in responses:
            if isinstance(response, str):
                assert isinstance(record.prompt, str)
                assert response.strip()
            else:
                assert record.prompt[-1].role in ("user", "tool")
                assert (response[0].role, response[-1].role) == ("assistant", "assistant")


@settings(max_examples=400, deadline=None)
@given(
    rows=st.lists(nearly_good, max_size=3) | st.lists(anything | scalars, max_size=3),
    layout=st.none() | st.none() | st.none() | st.sampled_from([layout.name for layout in layouts.LAYOUTS]),
    policy=st.sampled_from(["error", "drop"]),
)
def test_any_json_gives_records_or_one_sentence(rows: list[Any], layout: str | None, policy: Any) -> None:
    drops = Drops(policy)
    try:
        found = list(records(sources.rows(rows), layout, drops))
    except PreftuneError as error:
        message = str(error)
    else:
        message = ""
        assert len(found) + drops.total == len(rows)
        check_records(found)
    assert message.encode().count(b"\n") == 0

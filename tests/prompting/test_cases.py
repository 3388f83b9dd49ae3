"""Rows of eight case types: what is drawn, what is shown, and how they are rendered and kept."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.records import Drops, Message, Preference, Where, records
from preftune.data.sources import rows
from preftune.errors import PreftuneError
from preftune.prompting.case_files import is_held_out, read_cases, split_by_source, write_cases
from preftune.prompting.case_statistics import TYPES, describe
from preftune.prompting.cases import CASE_TYPES, Case, case_input, case_type, diversify, render
from preftune.prompting.records import PromptPair
from preftune.prompting.template import Template, words_in

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(str.strip)
TEMPLATE = Template()


@st.composite
def some_pairs(draw: st.DrawFn) -> list[PromptPair]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        found.append(
            PromptPair(
                id=draw(st.sampled_from(["a", "b", "c", str(number)])),
                prompt=draw(TEXT),
                chosen=draw(TEXT),
                rejected=draw(TEXT),
                naive_response=draw(st.none() | TEXT),
                ground_truth=draw(st.none() | TEXT),
                task=draw(st.none() | TEXT),
                where=Where("pairs.jsonl", number),
            )
        )
    return found


def pair(number: int = 0, **changes: Any) -> PromptPair:
    given = PromptPair(
        id=f"p{number}",
        prompt=f"Name fruit {number}",
        chosen=f"Name fruit {number}, in one word.",
        rejected=f"Fruit {number}?",
        naive_response="It is a pear.",
        ground_truth="Apple",
        where=Where("pairs.jsonl", number),
    )
    return replace(given, **changes)


def made(pairs: list[PromptPair], **settings: Any) -> list[Case]:
    return list(diversify(pairs, drops=Drops("drop"), **settings))


@given(pairs=some_pairs(), seed=st.integers(0, 3), each=st.integers(1, 8), extra=st.booleans())
def test_what_a_pair_becomes_depends_on_itself_alone(
    pairs: list[PromptPair], seed: int, each: int, extra: bool
) -> None:
    together = made(pairs, seed=seed, each=each, extra=extra)
    alone = [case for one in pairs for case in made([one], seed=seed, each=each, extra=extra)]
    assert together == alone
    backwards = made(pairs[::-1], seed=seed, each=each, extra=extra)
    assert Counter(map(repr, backwards)) == Counter(map(repr, together))


@given(pairs=some_pairs(), seed=st.integers(0, 3), words=st.sampled_from(["rounded", "use", "exact"]))
def test_rows_hold_what_they_say(pairs: list[PromptPair], seed: int, words: Any) -> None:
    by_place = {one.where: one for one in pairs}
    for case in made(pairs, seed=seed, each=8, extra=True, words=words):
        of = by_place[case.where]
        assert case.source == of.id
        assert case.prompt == case.original
        assert case.prompt.startswith(of.prompt)
        if case.kind == "rewrite":
            assert case.chosen.startswith(of.chosen.rstrip())
            assert words_in(case.chosen) <= case.words
            assert case.chosen.split() != case.rejected.split()
            if words == "exact":
                assert words_in(case.chosen) == case.words
            else:  # both keep the limit, so it does not tell which is better
                assert words_in(case.rejected) <= case.words
        if case.options:
            assert {text.split()[0] for text in case.options if text.split()} <= {
                *str(of.naive_response).split(),
                *str(of.ground_truth).split(),
            }
            assert case.options["AB".index(str(case.ground_truth))] == of.ground_truth
        if case.options and case.kind == "rewrite":
            assert case.completed(case.chosen) == case.chosen
            assert case.completed(of.chosen) == case.chosen
        if case.kind == "instruction":
            assert case.chosen.split() != case.rejected.split()
        preference = render(case, TEMPLATE, chat=False)
        assert preference.chosen != preference.rejected
        assert (case.response in str(case_input(case, TEMPLATE, False))) if case.shows_response else True


def test_all_eight_types_of_a_pair_that_is_fully_known() -> None:
    cases = made([pair()], each=8)
    assert Counter(case.type for case in cases) == Counter(case_type(*each) for each in CASE_TYPES)
    shown = {case.type: str(case_input(case, TEMPLATE, False)) for case in cases}
    assert "It is a pear." not in shown["generation+truth"]
    assert "\nApple\n" in shown["generation+truth"]
    assert "\nIt is a pear.\n" in shown["generation+response"]
    assert "Apple" not in shown["generation+response"]
    assert "A: " in shown["multiple_choice"]
    assert "Apple" in shown["multiple_choice"]  # as an option


def test_less_known_gives_fewer_types() -> None:
    assert {case.type for case in made([pair(naive_response=None)], each=8)} == {"generation", "generation+truth"}
    assert {case.type for case in made([pair(ground_truth=None)], each=8)} == {"generation", "generation+response"}
    same = made([pair(ground_truth="It is  a pear.")], each=8, extra=True)
    assert not any(case.options or case.kind == "instruction" for case in same)
    asked = made([pair(prompt="Which?\n(A) a pear\n(B) a stone", ground_truth="(A)")], each=8)
    assert {case.form for case in asked} == {"multiple_choice"}
    assert not any(case.options for case in asked)


def test_shares_are_those_that_were_asked_for() -> None:
    cases = made([pair(i) for i in range(2000)], extra=True)
    rewrites = [case for case in cases if case.kind == "rewrite"]
    choices = [case for case in rewrites if case.form == "multiple_choice"]
    assert len(rewrites) == 2000
    assert len(choices) / 2000 == pytest.approx(0.5, abs=0.04)
    counts = Counter((case.shows_response, case.shows_ground_truth) for case in rewrites)
    assert all(count / 2000 == pytest.approx(0.25, abs=0.04) for count in counts.values())
    assert sum(case.response_is_right is True for case in choices) / len(choices) == pytest.approx(0.2, abs=0.04)
    assert sum(case.ground_truth == "A" for case in choices) / len(choices) == pytest.approx(0.5, abs=0.05)
    more = [case for case in cases if case.kind != "rewrite"]
    assert len(more) == 2000
    assert sum(case.kind == "instruction" for case in more) / 2000 == pytest.approx(0.5, abs=0.04)
    told = [case for case in more if case.kind == "discrimination"]
    assert sum(case.chosen_first for case in told) / len(told) == pytest.approx(0.5, abs=0.05)
    assert not any(case.options for case in made([pair(i) for i in range(50)], multiple_choice=0.0))
    assert made([pair(i) for i in range(50)], seed=1) != made([pair(i) for i in range(50)], seed=2)


def test_rendered_as_text_and_as_turns() -> None:
    case = next(case for case in made([pair(i) for i in range(20)], extra=True) if case.kind == "discrimination")
    text = render(case, TEMPLATE, chat=False)
    answers = ("A", "B") if case.chosen_first else ("B", "A")
    assert (text.chosen, text.rejected) == answers
    assert f"[Prompt A]\n{case.chosen if case.chosen_first else case.rejected}\n" in str(text.prompt)
    turns = render(case, TEMPLATE, chat=True)
    assert isinstance(turns.prompt, tuple)
    assert (turns.prompt[0].role, turns.chosen) == ("user", (Message("assistant", answers[0]),))
    answer = next(case for case in made([pair(i) for i in range(20)], extra=True) if case.kind == "instruction")
    asked = str(render(answer, TEMPLATE, chat=False).prompt)
    assert asked.startswith(answer.prompt)
    assert asked.endswith(f"at most {answer.words} words.\n\n")


def test_an_answer_row_asks_for_the_right_one() -> None:
    for case in made([pair(i) for i in range(40)], extra=True):
        if case.kind == "instruction":
            wanted = {"Apple": "It is a pear.", "A": "B", "B": "A"}
            assert case.rejected == wanted[case.chosen]
            assert case.chosen == case.ground_truth


def test_equal_rewrites_hold_no_preference() -> None:
    equal = pair(rejected="Name  fruit 0, in one word. ")
    drops = Drops("drop")
    assert not list(diversify([equal], drops=drops))
    assert drops.total == 1
    with pytest.raises(PreftuneError, match=r"pairs\.jsonl row 0: chosen and rejected are identical"):
        list(diversify([equal]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"each": 9}, "each is 9, expected the number of case types of a pair, from 1 to 8"),
        ({"multiple_choice": 1.5}, "multiple_choice is 1.5, expected a share"),
        ({"right_naive": -0.1}, "right_naive is -0.1, expected a share"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(PreftuneError, match=says):
        made([pair()], **settings)


@given(pairs=some_pairs(), chat=st.booleans())
def test_cases_read_back_and_are_rows_of_pairs(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[PromptPair], chat: bool
) -> None:
    cases = made(pairs, each=3, extra=True)
    path = tmp_path_factory.mktemp("cases") / "rows.jsonl"
    assert write_cases(path, cases, TEMPLATE, chat) == len(cases)
    if not cases:
        return
    back = [replace(case, where=Where("pairs.jsonl", 0)) for case in read_cases(path)]
    assert back == [replace(case, where=Where("pairs.jsonl", 0)) for case in cases]
    learned = list(records(rows(path)))
    assert all(isinstance(each, Preference) for each in learned)
    for each, case in zip(learned, cases, strict=True):
        assert isinstance(each, Preference)
        assert replace(each, where=case.where) == render(case, TEMPLATE, chat)


def test_rows_without_a_case_are_refused() -> None:
    with pytest.raises(PreftuneError, match="row 0 holds no case under 'case'"):
        list(read_cases([{"prompt": "a", "chosen": "b", "rejected": "c"}]))
    held = {"kind": "rewrite", "form": "song"}
    with pytest.raises(PreftuneError, match="row 0: the case's form is wrong"):
        list(read_cases([{"case": held}]))


@given(pairs=some_pairs(), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_no_prompt_lies_on_both_sides_and_none_moves(pairs: list[PromptPair], share: float, seed: int) -> None:
    train, held = split_by_source(pairs, share, seed)
    assert not {one.id for one in train} & {one.id for one in held}
    assert sorted([*train, *held], key=pairs.index) == pairs
    assert split_by_source(pairs[:1], share, seed)[1] == [one for one in held if one is pairs[0]]
    cases = split_by_source(made(pairs, seed=seed), share, seed)
    assert {case.source for case in cases[1]} <= {one.id for one in held}


def test_the_share_is_held_out_on_average() -> None:
    assert sum(is_held_out(str(i), 0.05) for i in range(10_000)) == pytest.approx(500, abs=70)
    assert not any(is_held_out(str(i), 0.0) for i in range(100))
    assert all(is_held_out(str(i), 1.0) for i in range(100))
    with pytest.raises(PreftuneError, match=r"share to hold out is 1\.5"):
        split_by_source([pair()], 1.5)


def test_statistics_count_what_is_there() -> None:
    pairs = [pair(i) for i in range(6)]
    pairs += [
        pair(5),
        pair(7, prompt=" Name fruit  0", rejected="Name fruit 7 in very many words, as many as it takes."),
    ]
    cases = made(pairs, each=8, extra=True)
    found = describe(cases)
    assert found.rows == len(cases) == 8 * 9
    assert (found.sources, found.duplicates) == (7, 9)
    assert found.same_prompts == 1
    assert tuple(found.types) == TYPES
    assert [found.types[case_type(*each)] for each in CASE_TYPES] == [8] * 8
    assert found.types["instruction"] + found.types["discrimination"] == 8
    assert found.chosen_longer == pytest.approx(7 / 8)
    assert found.chosen_shorter == pytest.approx(1 / 8)
    assert found.response_right + found.response_wrong == 8 * 4
    assert found.limit_kept == 1.0
    assert found.words["rejected"].most == words_in(pairs[-1].rejected) + 7  # and the options "A: Apple", "B: It ..."
    assert json.loads(json.dumps(found.as_json())) == found.as_json()
    with pytest.raises(PreftuneError, match="no row to rewrite"):
        describe([])


def test_the_exact_limit_tells_the_length_and_the_others_do_not() -> None:
    limits = {
        words: {case.words for case in made([pair(i) for i in range(30)], words=words, multiple_choice=0)}
        for words in ("exact", "rounded", "use")
    }
    assert limits == {"exact": {6}, "rounded": {10}, "use": {43}}


def test_written_where_nothing_can_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PreftuneError, match="cannot write"):
        write_cases(tmp_path / "file" / "rows.jsonl", made([pair()]), TEMPLATE, False)

"""Optimised prompts: whatever an optimiser writes, what a prompt says is still there; and who chooses."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from task_prompts import HOSTILE, OPTION, PLAN, QUOTED, better, originals, same, silent, spoilt, task_prompts

import preftune
from preftune.errors import PreftuneError
from preftune.evaluation.judges.rubric import read_rubric
from preftune.prompting.choosing import RUBRIC, with_input
from preftune.prompting.facts import problem, protected
from preftune.prompting.generators import FunctionGenerator
from preftune.prompting.optimize import SAME, Optimized, OptimizeSettings, optimize
from preftune.prompting.rewriter import Rewriter, open_rewriter
from preftune.prompting.template import Template
from preftune.prompting.using import optimize_prompt


def rewriter(function: Any) -> Rewriter:
    return Rewriter(FunctionGenerator("test:function", function), Template())


def run(prompts: Sequence[str], function: Any = better, **settings: Any) -> list[Optimized]:
    return optimize(prompts, rewriter(function), OptimizeSettings(**settings))


def follows(parts: Sequence[str], of: Sequence[str]) -> bool:
    rest = iter(of)
    return all(part in rest for part in parts)


def assert_facts(original: str, text: str) -> None:
    """By plain means, not those of the code under test: digits, option lines and quotations, in their order."""
    assert follows(re.findall(r"\d+", original), re.findall(r"\d+", text)), (original, text)
    lines = [match[0].strip() for match in OPTION.finditer(original)]
    assert lines == [match[0].strip() for match in OPTION.finditer(text)], (original, text)
    assert all(quoted in text for quoted in QUOTED.findall(original)), (original, text)


def test_hostile_rewrites_of_real_prompts_never_alter_a_fact() -> None:
    prompts = task_prompts(200)
    accepted: Counter[str] = Counter()
    for by in HOSTILE:
        changed = [prompt for prompt in prompts if spoilt(by, prompt) != prompt]

        def function(asked: list[str], by: Any = by) -> list[str]:
            return [spoilt(by, text) for text in originals(asked)]

        for found in run(changed, function, candidates=1):
            assert_facts(found.original, found.text)
            accepted[by.__name__] += found.changed
        assert len(changed) > 10, by
    never = {"another_digit", "one_digit_more", "two_numbers_swapped", "options_swapped", "an_option_added", "answered"}
    assert not never & set(+accepted), accepted
    assert sum(accepted.values()) < 0.15 * len(HOSTILE) * len(prompts), accepted


def test_no_protected_span_of_a_real_prompt_can_be_altered() -> None:
    """Each span of 200 prompts in four ways: a character gone, another one, all gone, in capitals."""
    draw, count = random.Random(0), 0
    for prompt in task_prompts(200):
        for span in protected(prompt):
            place = draw.randrange(len(span.text))
            other = "7" if span.text[place] != "7" else "x"
            begin, end = span.text[:place], span.text[place + 1 :]
            for altered in {begin + end, begin + other + end, "", span.text.swapcase()} - {span.text}:
                rewrite = f"{prompt[: span.start]}{altered}{prompt[span.end :]} Think."
                assert problem(prompt, rewrite, limit=10**6) is not None, (span, rewrite)
                count += 1
    assert count > 3000


def test_kind_rewrites_of_real_prompts_are_used() -> None:
    found = run(task_prompts(200), candidates=1)
    assert [each.reason for each in found if not each.changed] == []
    assert all(each.text == each.original.strip() + PLAN for each in found if each.original == each.original.strip())


def test_an_untrained_model_never_alters_a_fact() -> None:
    """The built-in base model has never seen a question: it writes garbage."""
    prompts = task_prompts(200)
    with open_rewriter("sandbox") as untrained:
        found = optimize(prompts, untrained, OptimizeSettings(candidates=2))
    for each in found:
        assert_facts(each.original, each.text)
    kept = [each for each in found if not each.changed]
    assert len(kept) > 190
    assert all(each.text == each.original and each.reason for each in kept)


def test_the_first_that_may_be_used_is_used() -> None:
    def by_turn(asked: list[str]) -> list[str]:
        each = ["Add 2 and 3.", "Add 2 and 4, please.", "Please add 2 and 3.", "Kindly add 2 and 3."]
        return [each[i % 4] if len(asked) > 1 else "Add 12 and 3" for i in range(len(asked))]

    (found,) = run(["Add 2 and 3."], by_turn, candidates=5)
    assert found.text == "Please add 2 and 3."
    assert found.changed
    assert not found.reason
    assert [each.problem for each in found.tried] == [
        "'2' is missing or altered",
        "it is the same as the prompt",
        "'3' is missing or altered",
        None,
        None,
    ]
    assert len(run(["Add 2 and 3."])[0].tried) == 1, "the first passes, so no other is written"


def test_the_original_comes_back_with_the_reason() -> None:
    (found,) = run(["Add 2 and 3."], same, candidates=2)
    assert (found.text, found.changed) == ("Add 2 and 3.", False)
    assert found.reason == "none of 2 rewrites is used: it is the same as the prompt"
    (found,) = run(["Add 2 and 3."], silent, candidates=1)
    assert found.reason == "the rewrite is not used: it is empty"
    (found,) = run(["Say it."], words=3)
    assert "words, more than 3" in found.reason
    (found,) = run(["Say it to Ann."], lambda asked: ["Tell Ann." for _ in asked], marks=("to Ann",))
    assert "'to Ann' is missing or altered" in found.reason


def test_white_space_and_line_ends_of_the_prompt_stay() -> None:
    (found,) = run(["  Say `a\r\nb` aloud.\r\n\r\n"], lambda asked: ["Please say `a\nb` aloud.\nNow!" for _ in asked])
    assert found.text == "  Please say `a\r\nb` aloud.\r\nNow!\r\n\r\n"


def test_data_is_never_shown_and_never_changed() -> None:
    seen: list[str] = []

    def function(asked: list[str]) -> list[str]:
        seen.extend(asked)
        return better(asked)

    data = "\n\nText:\n" + "a 1 \t “b” \x0b\n" * 4000
    (found,) = run(["Summarise the text." + data], function, input_after="Text:")
    assert found.text == "Summarise the text." + PLAN + data
    assert "“b”" not in "".join(seen)
    with_data, without = run(["Do it. Text: x", "Do it."], input_after="Text:")
    assert (with_data.changed, without.text, without.changed) == (True, "Do it.", False)
    assert without.reason == "it has no 'Text:', at which its data was said to begin"
    with pytest.raises(PreftuneError, match="prompt 0 has nothing before 'Text:', expected text"):
        run(["Text: x"], input_after="Text:")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("", "prompt 0 is empty, expected text"),
        (" \n", "prompt 0 is empty, expected text"),
        ("a" * 100_000, "prompt 0 has 100,000 characters, expected at most 32,768"),
        ("a\x00b", r"prompt 0 has the character U\+0000, expected text"),
    ],
)
def test_a_prompt_that_is_none_is_refused(prompt: str, told: str) -> None:
    with pytest.raises(PreftuneError, match=told):
        run([prompt])


@pytest.mark.parametrize(
    "wrong", [{"candidates": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"words": 0}, {"input_after": " "}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PreftuneError, match=f"^{next(iter(wrong))} is .*, expected "):
        OptimizeSettings(**wrong)


def three_ways(asked: list[str]) -> list[str]:
    return [f"{text} {('Be short.', 'Reason first.', 'Be kind.')[i % 3]}" for i, text in enumerate(originals(asked))]


def answers(prompts: list[str]) -> list[str]:
    """A generator that answers rightly if it is told to reason."""
    return [str(sum(map(int, re.findall(r"\d+", one)))) if "Reason" in one else "9999" for one in prompts]


def longest(a: str, b: str) -> str:
    return "tie" if len(a) == len(b) else "a" if len(a) > len(b) else "b"


def shortest(a: str, b: str) -> str:
    return longest(b, a)


def reasons(response: str) -> float:
    return float(response != "9999")


def write_examples(path: Path, count: int) -> str:
    rows = [f'{{"prompt": "What is {i} + {i + 1}?", "answer": "{2 * i + 1}"}}' for i in range(count)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return f"sums:number={path}"


def test_examples_choose_the_wording_that_brings_right_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "at_hand", sys.modules[__name__])
    options = {"generator": "at_hand:answers", "candidates": 4}
    found = optimize_prompt(
        "Add the numbers.", "at_hand:three_ways", examples=write_examples(tmp_path / "a.jsonl", 20), **options
    )
    assert found.text == "Add the numbers. Reason first."
    assert found.score == 0.0
    assert sorted(each.score or 0 for each in found.tried) == [0, 0, 0, 1]
    assert found.note.startswith("the best of 3 gains +100.0% on 20 examples (95% interval +")
    few = optimize_prompt(
        "Add the numbers.", "at_hand:three_ways", examples=write_examples(tmp_path / "b.jsonl", 2), **options
    )
    assert (few.text, few.reason) == ("Add the numbers.", SAME), "two examples are no evidence"


def test_a_judge_chooses_by_answers_or_by_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "at_hand", sys.modules[__name__])
    by_answers = optimize_prompt(
        "Add 2 and 3.", "at_hand:three_ways", judge="at_hand:reasons", generator="at_hand:answers"
    )
    assert by_answers.text == "Add 2 and 3. Reason first."
    by_prompts = optimize_prompt("Add 2 and 3.", "at_hand:three_ways", judge="at_hand:longest")
    assert by_prompts.text == "Add 2 and 3. Reason first.", "the longest"
    (none,) = optimize_prompt(["Add 2 and 3."], "at_hand:three_ways", judge="at_hand:shortest")
    assert (none.text, none.reason) == ("Add 2 and 3.", SAME)


def test_the_rubric_for_prompts_can_be_read() -> None:
    assert "Prompt as it was" in read_rubric(RUBRIC)


def test_with_input() -> None:
    assert with_input("{input}!", "a {input}") == "a {input}!"


def test_what_is_asked_for_in_python_is_checked() -> None:
    assert preftune.optimize_prompt is optimize_prompt
    with pytest.raises(PreftuneError, match="no option 'candidate': did you mean candidates"):
        optimize_prompt("a", "sandbox", candidate=2)
    for wrong, told in (
        ({"judge": "sandbox", "examples": "gsm8k"}, "two ways to choose"),
        ({"examples": "gsm8k"}, "name a generator"),
        ({"generator": "sandbox"}, "name a judge, or examples"),
        ({"limit": 3}, "limit is given"),
    ):
        with pytest.raises(PreftuneError, match=told):
            optimize_prompt("a", "sandbox", **wrong)


def test_what_was_written_is_replayed(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    first = optimize_prompt(["Add 2 and 3.", "Say it."], "sandbox", folder=folder, candidates=3)
    files = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    assert first == optimize_prompt(["Add 2 and 3.", "Say it."], "sandbox", folder=folder, candidates=3)
    assert files == {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    (alone,) = optimize_prompt(["Say it."], "sandbox", candidates=3)
    assert alone == first[1], "what else is asked beside a prompt changes nothing"


AROUND = ("\uff0d{}", "\u2013{}", "-{}", "0 * {}", "{} hundred", "{}!", "{}%", "{}0", "{},000", "~~{}~~", "{} {}")


def test_nothing_is_put_around_a_number_of_real_questions() -> None:
    """Signs, digits, factors, and the number once more."""
    for text in task_prompts(100):
        numbers = list(re.finditer(r"(?<![\w.,$/-])\d+(?![\w.,/%-])", text))
        for match in numbers[:2]:
            for form in AROUND:
                spoiled = text[: match.start()] + form.format(match[0], match[0]) + text[match.end() :]
                assert problem(text, spoiled) is not None, (form, spoiled)
        assert problem(text, f"{text}\nThere are seventeen more.") is not None
        assert problem(text, f"{text}\nSee https://example.com") is not None
        assert problem(text, f"{text}\nThink about it, and say how you found the answer.") is None or "Options" in text

"""Protected spans: what is found, and that no rewrite passes that alters one."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.prompting.facts import problem, protected
from preftune.prompting.language import language_change

FENCED = "Mend this:\n```python\nfor i in range(3):\n    print(i)\n```\nplease"
OPTIONS = "Which one is red?\nOptions:\n(A) the sky\n(B) a rose\n(C) grass"
LIST = "Is it plausible?\nOptions:\n- yes \n- no"


def texts(text: str, *marks: str) -> list[str]:
    return [span.text for span in protected(text, marks)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "It has 1,200.50 of 3/4, -7 and 5% at 12:30 on 7/9/1972",
            ["1,200.50", "3/4", "-7", "5%", "12:30", "7/9/1972"],
        ),
        ("$80,000 for 15 kg in 3 hours", ["$80,000", "15 kg", "3 hours"]),
        ("GPT-4 read Catch-22 at 5am, the 3rd", ["GPT-4", "Catch-22", "5am", "3rd"]),
        ("a 3-shot prompt of 2026-11-22, x2", ["3", "2026-11-22", "x2"]),
        ("she eats three and half of a dozen, twice", ["three", "half", "dozen", "twice"]),
        ("zwei und dreißig Äpfel", ["zwei", "dreißig"]),
        ("½ cup, m², 1\u202f200 €, ٣ kilos", ["½", "m²", "1\u202f200 €", "٣"]),
        ("\u6211\u67093\u4e2a\u82f9\u679c", ["3"]),
        ('say "no, 2" and “ja” and „nein“ and «oui» and 「はい」', ['"no, 2"', "“ja”", "„nein“", "«oui»", "「はい」"]),
        ("the dogs' bones aren't 'rain man's', it's", ["'rain man's'"]),
        ("« a » et « b »", ["« a »", "« b »"]),
        ("run `rm -r x` and ``a`b``", ["`rm -r x`", "``a`b``"]),
        (FENCED, [FENCED[FENCED.index("```") : FENCED.rindex("```") + 3]]),
        ("```\nnever closed 1", ["```\nnever closed 1"]),
        ('a path <path d="M 1,2"/> here', ['<path d="M 1,2"/>']),
        ("see https://a.b/c_(d)?x=1, or (www.e.org) or me@x.org.", ["https://a.b/c_(d)?x=1", "www.e.org", "me@x.org"]),
        ("put {name} and {{ table }} and ${x} into %s", ["{name}", "{{ table }}", "${x}", "%s"]),
        ("keep [[this as it is]] please", ["[[this as it is]]"]),
        (
            r"Let $x_1 + y$ and \(z\) be \frac{a}{b}; it costs $5 and $6",
            ["$x_1 + y$", r"\(z\)", r"\frac{a}{b}", "$5", "$6"],
        ),
        ("((6 * -6) + 8) =", ["((6 * -6) + 8) ="]),
        ("close [ < ( ) { please", ["[ < ( ) {"]),
        ("not ( True ) and False is", ["not ( True ) and False"]),
        (OPTIONS, ["(A) the sky", "(B) a rose", "(C) grass"]),
        (LIST, ["- yes", "- no"]),
        ("Choose: A) red B) blue C) green", ["A) red", "B) blue", "C) green"]),
        ("Choose\nA: red\r\nB: blue\r\n", ["A: red", "B: blue"]),
        ("Options: red, green or blue\nSay why.", ["red, green or blue"]),
        ("\u9009\u4e00\u4e2a\nA\u3001\u7ea2\nB\u3001\u84dd", ["A\u3001\u7ea2", "B\u3001\u84dd"]),
        ("\uff08A\uff09\u7ea2\n\uff08B\uff09\u84dd", ["\uff08A\uff09\u7ea2", "\uff08B\uff09\u84dd"]),
        ("a date in MM/DD/YYYY", ["MM/DD/YYYY"]),
        ("Write a poem about autumn.", []),
        ("Tell me about vitamin A. Or I do it - a bit - for you and/or me.", []),
    ],
)
def test_what_is_protected(text: str, found: list[str]) -> None:
    assert texts(text) == found


def test_spans_that_overlap_are_one() -> None:
    text = 'Is "5 of {x}, see https://a.b/5" right?'
    assert texts(text) == ['"5 of {x}, see https://a.b/5"']
    assert texts("Keep Ann Lee and Lee Roy, Ann Lee Roy", "Ann Lee", "Lee Roy")[-1] == "Ann Lee Roy"


def test_marks_are_texts_patterns_and_places() -> None:
    text = "Translate Guten Tag for Ann."
    marks = ("Guten Tag", re.compile(r"\bAn+\b"), (0, 9))
    assert [span.text for span in protected(text, marks)] == ["Translate", "Guten Tag", "Ann"]
    assert problem(text, "Please translate Guten Tag for Ann.", marks) is not None, "an upper-case letter was marked"
    assert problem(text, "Translate this greeting, Guten Tag, for our Ann.", marks) is None
    assert problem("Annie sings", "Annie sings well", ["Ann"]) is None, "it stood inside of a word before"
    assert problem("Ann sings", "Annie sings well", ["Ann"]) == "'Ann' is missing or altered"
    with pytest.raises(ValueError, match="lies outside a text of 28"):
        protected(text, [(3, 29)])


@pytest.mark.parametrize(
    ("original", "rewrite", "why"),
    [
        ("Add 12 to x", "Add 312 to x", "'12' is missing or altered"),
        ("Add 12 to x", "Add 12.5 to x", "'12' is missing or altered"),
        ("Add 12 to x", "Add -12 to x", "'12' is missing or altered"),
        ("Add 12 to x", "Add $12 to x", "'12' is missing or altered"),
        ("Add 12 to x", "Add 12% to x", "'12' is missing or altered"),
        ("Add 12 to x", "Add 12 kg to x", "'12' is missing or altered"),
        ("Add 12 to x", "Add twelve to x", "'12' is missing or altered"),
        ("It took 3 hours", "It took 3 minutes, say", "'3 hours' is missing or altered"),
        ("She eats three of them", "She eats four of them", "'three' is missing or altered"),
        ("Add 3 and 5 and 3", "Add 3 and 5 again", "'3' is there fewer times, or in another order"),
        ("Ann has 3, Bob 5", "Ann has 5 and Bob 3", "'5' is there fewer times, or in another order"),
        ("Tom has 5 apples", "Count his apples.\n5. Say how many.", "'5' is missing or altered"),
        ('Say "12" and 12', 'Say "12" now', "'12' is there fewer times, or in another order"),
        ("Say “hi”", 'Say "hi" now', "'“hi”' is missing or altered"),
        ("Run `x`", "Run ``x`` now", "'`x`' is missing or altered"),
        ("See http://a.b/c", "See http://a.b/cd now", "'http://a.b/c' is missing or altered"),
        ("Fill {x}", "Fill {{x}} now", "'{x}' is missing or altered"),
        (OPTIONS, OPTIONS.replace("(A) the sky\n(B) a rose", "(A) a rose\n(B) the sky"), "is missing or altered"),
        (OPTIONS, OPTIONS.replace("\n(C) grass", ""), "'(C) grass' is missing or altered"),
        (OPTIONS, OPTIONS + "\n(D) blood", "the answer option '(D) blood' is new or altered"),
        (OPTIONS, OPTIONS.replace("(C) grass", "(C) grass or roses"), "'(C) grass or roses' is new or altered"),
        (LIST, LIST.replace("- yes \n- no", "- no\n- yes"), "another order"),
        ("Is it red?", "Is it red?\nOptions:\n- Yes\n- No", "the answer option '- Yes' is new"),
        ("Add 3 and 5", "Add 3 and 5. It is 8, in fact", "the number '8' is new"),
        ("Add 3 and 5", "Add 3 and 5.\n8. Check it.", "the number '8' is new"),
        ("Add 3 and 5", "Add 3 and 5. Step 1: think. Step 3: say it.", None),
        ("Add 4 and 6", "Add 4 and 6. Step 1: think. Step 3: say it.", "the number '3' is new"),
        ("What is the capital of France today?", "Was ist heute die Hauptstadt von Frankreich?", "en to de"),
        ("Sum?", "Сумма?", "its language changed (latin to cyrillic)"),
        ("Why?", "", "it is empty"),
        ("Why?", " Why?\n", "it is the same as the prompt"),
        ("Why is it?", "Why is\x00 it so?", "it has the character U+0000, which is no text"),
        ("Why is it?", "Why is it \ufffd so?", "U+FFFD"),
        ("Why is it?", "Why is\u202e it so?", "U+202E"),
        ("Add 12 to x", "Add 1\u200b2 to x", "U+200B"),
        ("Add 12 to x", "Add \uff11\uff12 to x", "'12' is missing or altered"),
        ("Why?\r\n```\r\na\r\n```", "But why?\r\n```\r\na\r\n```", None),
        ("Why?\r\n```\r\na\r\n```", "But why?\n```\na\n```", "is missing or altered"),
        ("Add 3 to 5", "Add 3 to 5, and remember that 5 comes last.", "'5' is new, or there more often"),
        ("It costs $80,000", "It costs $80,000; what is 80,000 in words?", "'80,000' is new, or there more often"),
        ("Ann has 3, Bob 5", "Ann has 5 and Bob 3. Remember 3 and 5.", "is new, or there more often"),
        ("Take 5 of them", "Take \uff0d5 of them", "'5' is missing or altered"),
        ("Take 5 of them", "Take \u20135 of them", "'5' is missing or altered"),
        ("Take 5 of them", "Take 5! of them", "'5' is missing or altered"),
        ("Take 16 of them", "Take 16 hundred of them", "'16' is missing or altered"),
        ("Take 16 of them", "Take 16 of them. There are seventeen more.", "'seventeen' is new"),
        ("Add 12 and 500", "Add 12 500", "'12' is missing or altered"),
        ("5\u516c\u91cc\u3042", "5\u7c73\u3042", "is missing or altered"),
        ("Take USD 5 now", "Take JPY 5 now", "'USD 5' is missing or altered"),
        ("einundzwanzig", "zweiundvierzig", "'einundzwanzig' is missing or altered"),
        ("See https://a.com", "See https://a.com.evil.com", "is new"),
        ("See https://a.com", "See https://a.com@evil.com", "is new"),
        ("See it", "See it at https://evil.com", "'https://evil.com' is new"),
        ("Run it", "Run it, or `rm -rf /`", "is new"),
        ("Ask tom@a.com", "Ask not.tom@a.com", "is new"),
        ("True and False is", "not True and False is", "is new"),
        ("True and False is", "True and False and False is", "is new"),
        ("((2 + 3) * 4) =", "0 * ((2 + 3) * 4) =", "is new"),
        ("Close [ < (", "Close [ < ( {", "is new"),
        (OPTIONS, "It is (B).\n" + OPTIONS, "'B' is new, or there more often"),
        ("What is x + y", "What is x * y", "is missing or altered"),
        ("Read /etc/passwd", "Read /etc/shadow", "'/etc/passwd' is missing or altered"),
        ("Call foo() on it", "Call bar() on it", "'foo()' is missing or altered"),
        ("Call getName on it", "Call getMark on it", "'getName' is missing or altered"),
        ("Tom has one dog", "Tom has zillions of dogs", "'one' is there fewer times"),
        ("Tom has a dog", "In one word, does Tom have a dog", None),
        ("Nimm \u201arot\u2018", "Nimm \u201ablau\u2018", "is missing or altered"),
        ("Er l\u00e4uft 5 Kilometer", "Er l\u00e4uft 5 Meter", "'5 Kilometer' is missing or altered"),
        ("What is (2 + 3) =", "What is - (2 + 3) =", "is new"),
        ("Which?\n1) red\n2) blue", "Which?\n1) blue\n2) red", "'1) red' is missing or altered"),
        ("Which?\n[A] red\n[B] blue", "Which one?\n[A] blue\n[B] red", "'[A] red' is missing or altered"),
        ("Which?\n(B) red\n(C) blue", "Which?\n(B) blue\n(C) red", "'(B) red' is missing or altered"),
        ("Which?\n- red\n- blue", "Which is it?\n- red\n- violet", "'- blue' is missing or altered"),
        ("Which?\n- red\n- blue", "Think, then say which.\n- red\n- blue", None),
        (LIST, LIST + "\n\n- Maybe", "is new"),
        (OPTIONS, OPTIONS + "\n\n1) blood\n2) wine", "is new"),
        ("Why is it?", "Why is it so?\n- Think.\n- Say it.", None),
        ("Add 12 and 3.", "Add 12 and 3.\u2028Ignore that.", "U+2028"),
        (OPTIONS, "Name the colour of each, then choose.\n" + OPTIONS, None),
        ("Sum?", "Somme?", None),
        ("我有3个苹果", "我有3个苹果,一共多少?", None),
    ],
)
def test_why_a_rewrite_may_not_be_used(original: str, rewrite: str, why: str | None) -> None:
    told = problem(original, rewrite)
    assert told is None if why is None else why in str(told)


def test_the_limits_are_for_the_caller_to_set() -> None:
    assert problem("Why?", "Why is it so?", limit=4) is None
    assert problem("Why?", "Why is it ever so?", limit=4) == "it has 5 words, more than 4"
    listed = "Add 3 and 5.\n1. Think.\n2. Say it."
    assert problem("Add 3 and 5", listed) is None
    assert problem("Add 3 and 5", listed, new_numbers="none") == "the number '1' is new"
    assert problem("Add 3 and 5", "Add 3 and 5 in 20 words", new_numbers="any") is None
    swapped = "Given 5 and 3, add them"
    assert problem("Add 3 and 5", swapped, order=False) is None
    assert problem("Add 3 and 5 and 3", swapped, order=False) == "'3' is there fewer times, or in another order"
    assert problem('Add "3" and 3', 'Add "3" up', order=False) == "'3' is there fewer times, or in another order"


def test_languages_are_told_apart_where_they_can_be() -> None:
    assert (
        language_change("Schreibe ein kurzes Gedicht über den Herbst", "Write a short poem about the autumn")
        == "de to en"
    )
    assert language_change("秋についての詩を書いてください", "请写一首关于秋天的短诗吧") is not None
    assert language_change("Write a poem", "Schreib ein Gedicht") is None, "too short to tell"
    assert language_change("Translate Привет into English", "Translate the word Привет into English") is None
    assert language_change("12 + 3 =", "? ?") is None


PIECES = st.one_of(
    st.sampled_from(
        ["add", "the", "Ann", ".", ",", "?", "\n", "\r\n", "(", ")", "'", '"', "`", "-", "%", "  ", "Options:"]
    ),
    st.integers(0, 999).map(str),
    st.sampled_from(
        ["1,200", "3.5", "-7", "$5", "`x=1`", '"a 2"', "{x}", "http://a.b/c", "5 kg", "three", "(A) x\n(B) y", "é1"]
    ),
)
PROMPTS = st.lists(PIECES, min_size=1, max_size=12).map(" ".join)


@settings(deadline=None)
@given(PROMPTS)
def test_spans_lie_in_the_text_in_order_and_apart(text: str) -> None:
    found = protected(text)
    assert [text[span.start : span.end] for span in found] == [span.text for span in found]
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert all(span.text.strip() == span.text for span in found if span.kind != "code")


@settings(deadline=None)
@given(PROMPTS, PROMPTS)
def test_what_passes_holds_every_span_in_order(text: str, rewrite: str) -> None:
    """Held against the plainest search there is."""
    for candidate in (rewrite, f"{text} {rewrite}", f"{rewrite} {text}", text.replace("a", "o"), text[:-1], text[::-1]):
        if problem(text, candidate) is None:
            rest = candidate
            for span in protected(text):
                _, found, rest = rest.partition(span.text)
                assert found == span.text, (text, candidate, span)


@settings(deadline=None)
@given(PROMPTS, st.data())
def test_no_single_character_of_a_span_can_change(text: str, data: st.DataObject) -> None:
    found = protected(text)
    if not found:
        return
    span = data.draw(st.sampled_from(found))
    place = data.draw(st.integers(span.start, span.end - 1))
    other = data.draw(st.sampled_from([char for char in "071x" if char != text[place]]))
    changed = text[:place] + other + text[place + 1 :]
    cut = text[:place] + text[place + 1 :]
    grown = text[:place] + other + text[place:]
    for candidate in (changed, cut, grown):
        if problem(text, candidate) is None:  # then it stands there again, whole, by another reading
            assert all(each.text in candidate for each in found)
            assert sum(candidate.count(each.text) for each in found) >= len(found)


def test_a_long_prompt_takes_no_long_time() -> None:
    import time

    for piece in ("it's \"5 of `x`, (A) {y} $", "(" * 50 + " ", "'a \"b ", "1,2-3 ", "[[ <a ", "A) b "):
        text = piece * (50_000 // len(piece))
        begin = time.perf_counter()
        problem(text, text + " Think!")
        assert time.perf_counter() - begin < 10, piece


@settings(deadline=None)
@given(PROMPTS)
def test_a_kind_sentence_before_and_after_is_no_harm(text: str) -> None:
    if text.strip():
        told = problem(text, f"Please answer this.\n\n{text.strip()}\n\nThink about it.", limit=10**6)
        assert told is None or "option" in told, "an open list of options takes in what follows"

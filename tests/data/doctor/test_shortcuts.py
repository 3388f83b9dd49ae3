"""Length, words, forms and scripts that give the better response away; and silence where nothing does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from preftune.data.doctor import shortcuts
from preftune.data.doctor.checkup import Chart
from preftune.data.lines import Lines, Reading
from preftune.evaluation.intervals import accuracy_interval

WORDS = "river stone cloud garden bridge winter summer table window letter music forest".split()
Change = Callable[[np.random.Generator, str, str], tuple[str, str]]


def pairs(change: Change, count: int = 400) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        texts = [" ".join(WORDS[j] for j in random.integers(len(WORDS), size=12)) + "." for _ in range(2)]
        chosen, rejected = change(random, *texts)
        rows.append({"prompt": f"question {i}", "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return rows


def as_verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]


def chart(rows: list[dict[str, Any]]) -> Chart:
    return Chart(Lines(rows, Reading()))


def names(finding: Any) -> list[str]:
    return [] if finding is None else [sign["sign"] for sign in finding.signs]


def same(random: np.random.Generator, chosen: str, rejected: str) -> tuple[str, str]:
    return chosen, rejected


@pytest.mark.parametrize("form", [list, as_verdicts])
def test_texts_drawn_alike_have_no_sign(form: Any) -> None:
    found = chart(form(pairs(same)))
    assert shortcuts.length_bias(found.index)[0] is None
    for check in (shortcuts.markers, shortcuts.formats, shortcuts.language):
        assert check(found.lines, found.sample) is None


@pytest.mark.parametrize("form", [list, as_verdicts])
def test_planted_words_are_named(form: Any) -> None:
    def sure(random: np.random.Generator, chosen: str, rejected: str) -> tuple[str, str]:
        return f"Sure! {chosen}" if random.random() < 0.5 else chosen, f"{rejected} As an AI model"

    found = chart(form(pairs(sure)))
    told = shortcuts.markers(found.lines, found.sample)
    assert any("sure" in name for name in names(told))
    assert any("model" in name or "as an ai" in name for name in names(told))
    by_name = {sign["sign"]: sign for sign in told.signs}
    marks = next(sign for name, sign in by_name.items() if "sure" in name)
    assert marks["worse"] == 0
    assert marks["better"] == sum("Sure!" in row["chosen"] for row in pairs(sure))


def test_a_word_on_both_sides_or_in_few_rows_is_no_sign() -> None:
    def both(random: np.random.Generator, chosen: str, rejected: str) -> tuple[str, str]:
        return f"Sure! {chosen}", f"Sure! {rejected}"

    def rare(random: np.random.Generator, chosen: str, rejected: str) -> tuple[str, str]:
        return f"{'zebra ' if random.random() < 0.005 else ''}{chosen}", rejected

    for change in (both, rare):
        found = chart(pairs(change))
        assert not any(
            "sure" in name or "zebra" in name for name in names(shortcuts.markers(found.lines, found.sample))
        )


@pytest.mark.parametrize("form", [list, as_verdicts])
@pytest.mark.parametrize(
    ("added", "name"),
    [("\n- one\n- two", "a bullet list"), ("\n```python\nx = 1\n```", "a code block"), ("\n| a | b |", "a table")],
)
def test_planted_forms_are_named(added: str, name: str, form: Any) -> None:
    found = chart(form(pairs(lambda random, chosen, rejected: (chosen + added, rejected))))
    assert name in names(shortcuts.formats(found.lines, found.sample))


def test_a_script_on_one_side_is_named() -> None:
    found = chart(pairs(lambda random, chosen, rejected: (chosen, "Река и мост зимой.")))
    assert names(shortcuts.language(found.lines, found.sample)) == ["Cyrillic letters", "Latin letters"]


def test_length_bias_is_the_share_that_the_longer_wins_with_its_interval() -> None:
    def longer(random: np.random.Generator, chosen: str, rejected: str) -> tuple[str, str]:
        return (chosen, rejected[:10]) if random.random() < 0.8 else (chosen[:10], rejected)

    rows = pairs(longer)
    wins = [float(len(row["chosen"]) > len(row["rejected"])) for row in rows]
    finding, figures = shortcuts.length_bias(chart(rows).index)
    assert figures["longer_wins"] == pytest.approx(np.mean(wins))
    assert figures["longer_wins_ci95"] == pytest.approx(accuracy_interval(wins, range(len(wins))))
    assert "the longer response is the better one in 7" in finding.text or "in 8" in finding.text
    turned, other = shortcuts.length_bias(
        chart([{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]).index
    )
    assert other["longer_wins"] == pytest.approx(1 - figures["longer_wins"])
    assert turned.text.startswith("the shorter response is the better one in")


def test_length_bias_of_verdicts_is_the_area_under_the_curve() -> None:
    rows = as_verdicts(pairs(lambda random, chosen, rejected: (chosen, rejected[:20])))
    finding, figures = shortcuts.length_bias(chart(rows).index)
    good, bad = ([len(row["completion"]) for row in rows if row["label"] is label] for label in (True, False))
    area = np.mean([(a > b) + (a == b) / 2 for a in good for b in bad])
    assert figures["longer_wins"] == pytest.approx(area)
    assert finding is not None


def test_demonstrations_have_no_sides() -> None:
    found = chart([{"prompt": f"q{i}", "completion": " a"} for i in range(30)])
    assert shortcuts.length_bias(found.index) == (None, {})
    assert shortcuts.markers(found.lines, found.sample) is None


def test_the_sample_is_even_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chart(pairs(same, 100))
    assert found.sample.sum() == 100
    monkeypatch.setattr(shortcuts, "SAMPLE", 10)
    assert np.flatnonzero(shortcuts.sample(found.index)).tolist() == [*range(0, 100, 11)]

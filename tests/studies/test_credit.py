"""The credit study in its quick form: trained on whole answers, credit finds the wrong line. The full form, with GSM8K
beside it, is `make study-credit`."""

import json
import random
import re
from functools import partial
from pathlib import Path

import pytest

from preftune.data.records import Demonstration, Where
from preftune.report.inspection import show_study
from preftune.studies import credit
from preftune.studies.credit import Form, corrupted

QUESTION = "He buys 3 bags of 4 apples. 12 cost $2 each, and he has $30."
ANSWER = " He buys 3*4 = 12 apples.\nThey cost 12*$2 = $24.\nSo he has 30-24 = 6 left.\n#### 6"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[credit.Ground, Path]:
    """The built-in ground, quick."""
    out = tmp_path_factory.mktemp("study")
    (ground,) = credit.study(out, quick=True)
    return ground, out


def test_credit_is_ahead_of_chance_and_of_the_references_log_probs(found: tuple[credit.Ground, Path]) -> None:
    ground = found[0]
    rates = {rate.rule: rate for rate in ground.rates}
    assert ground.answers >= 200
    assert ground.held
    assert rates["credit"].hits > 2 * rates["chance"].hits
    assert rates["chance"].hits == pytest.approx(1 / 5)


def test_what_came_out_is_kept_and_shown(found: tuple[credit.Ground, Path], capsys: pytest.CaptureFixture[str]) -> None:
    ground, out = found
    kept = json.loads((out / "results.json").read_text())
    assert kept["grounds"][0]["rates"][0]["hits"] == ground.rates[0].hits
    show_study([ground])
    assert f"{ground.rates[0].hits:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["misread", "result"])
def test_one_number_of_one_line_is_replaced_and_all_others_stay(kind: credit.Kind) -> None:
    rng = random.Random(0)
    for _ in range(50):
        changed = corrupted(QUESTION, ANSWER, kind, rng)
        assert changed is not None
        text, place = changed
        before, after = ANSWER.split("\n"), text.split("\n")
        differing = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        assert differing == [place]
        assert len(after[place]) == len(before[place])
        left, right = (line.rpartition("=")[::2] for line in (before[place], after[place]))
        assert (left[0] == right[0]) == (kind == "result")
        assert (left[1] == right[1]) == (kind == "misread")


def test_what_is_misread_stands_in_the_question() -> None:
    rng = random.Random(0)
    for _ in range(50):
        changed = corrupted(QUESTION, ANSWER, "misread", rng)
        assert changed is not None
        text, place = changed
        (old,) = set(re.findall(r"\d+", ANSWER.split("\n")[place])) - set(re.findall(r"\d+", text.split("\n")[place]))
        assert old in re.findall(r"\d+", QUESTION)


@pytest.mark.parametrize("answer", [" No sums here.\n#### 3", " 3+4 = 7\n#### 7", ""])
def test_an_answer_of_fewer_than_two_sums_is_left_out(answer: str) -> None:
    assert corrupted("3 and 4?", answer, "result", random.Random(0)) is None


def test_worked_answers_are_a_ground_too(tmp_path: Path) -> None:
    rng = random.Random(1)
    worked = []
    for number in range(48):
        a, b = rng.randrange(10, 50), rng.randrange(10, 40)
        answer = f" She has {a}+{b} = {a + b} in all.\nThen {a + b}-{b} = {a} are left.\n#### {a}"
        worked.append(Demonstration(f"Question: {a} and {b}?\nAnswer:", answer, Where("made", number)))
    make = partial(credit._gsm8k, worked, "misread")
    ground = credit._ground("gsm8k", Form(40, 1, 16, 8, (0,)), tmp_path, make, show=False)
    assert ground.answers == 8
    assert ground.lines == 3
    assert {rate.rule for rate in ground.rates} == set(credit.RULES)

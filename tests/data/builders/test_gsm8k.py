import gzip
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.builders import Question, get, gsm8k
from preftune.data.builders.gsm8k import final_number, question_id, read_number
from preftune.errors import PreftuneError

ROOT = Path(__file__).parents[3]
FULL = ROOT.parent / "shared" / "data" / "gsm8k"
EXAMPLE = ROOT / "examples" / "gsm8k"
TASK = get("gsm8k")
needs_full = pytest.mark.skipif(not FULL.is_dir(), reason="the full GSM8K files are not on this machine")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 7.\n#### 7", 7),
        ("She has 7.\nA: 7", 7),
        ("#### $1,234,567.50", Fraction("1234567.5")),
        ("####7.", 7),
        ("####   -3  ", -3),
        ("A: -$3", -3),
        ("A: $-3", -3),
        ("A: +3", 3),
        ("#### 18.00", 18),
        ("#### .5", Fraction(1, 2)),
        ("#### 5.", 5),
        ("#### 7/14", Fraction(1, 2)),
        ("#### 3 / 4", Fraction(3, 4)),
        ("#### 25%", 25),
        ("#### 25 %.", 25),
        ("#### <<3+4=7>>7", 7),
        ("A: 5\nNo, that is wrong.\n#### 6", 6),  # the last line counts
        ("#### 6\nQuestion: and now?", 6),
        ("She has 7.", None),
        ("The answer is #### 7", None),  # not at the start of a line
        ("#### ", None),
        ("####", None),
        ("#### seven", None),
        ("#### 18 dollars", None),
        ("#### -1.8 billion", None),
        ("#### 10+John's age", None),
        ("#### 1,20", None),  # no thousands
        ("#### 1,2345", None),
        ("#### 1.2.3", None),
        ("#### 3/0", None),
        ("#### --3", None),
        ("#### -$-3", None),
        ("#### $", None),
        ("#### .", None),
        ("#### 5\n#### none", None),
        ("#### " + "3" * 5000, None),
        ("#### ٣", None),  # no digit of the answer's alphabet
    ],
)
def test_final_number(text: str, number: Fraction | int | None) -> None:
    assert final_number(text) == number


@st.composite
def written_numbers(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A number, and one of the ways to write it."""
    whole = draw(st.integers(0, 10**12))
    decimals = draw(st.text("0123456789", max_size=6))
    denominator = draw(st.none() | st.integers(1, 10**4))
    sign = draw(st.sampled_from(["", "-", "+"]))
    value = Fraction(f"{whole}.{decimals or 0}") / (denominator or 1) * (-1 if sign == "-" else 1)
    digits = draw(st.sampled_from(["", "0", "00"])) + str(whole) if draw(st.booleans()) else f"{whole:,}"
    text = digits + (f".{decimals}" if decimals or draw(st.booleans()) else "")
    if denominator is not None:
        text += draw(st.sampled_from(["/", " / "])) + str(denominator)
    dollar = draw(st.sampled_from(["{}${}", "{0}{1}", "${}{}"])).format(sign, text)
    return dollar + draw(st.sampled_from(["", "%", " %", "."])), value


@given(written_numbers(), st.sampled_from(["#### {}", "####{}", "A: {}", "A:  {} ", "thus\n  #### {}\n"]))
@settings(max_examples=300, deadline=None)
def test_a_number_is_read_however_it_is_written(written: tuple[str, Fraction], line: str) -> None:
    text, value = written
    assert read_number(text) == value
    assert final_number(line.format(text)) == value


@given(written_numbers(), written_numbers())
@settings(max_examples=200, deadline=None)
def test_check_is_equality_of_numbers(one: tuple[str, Fraction], other: tuple[str, Fraction]) -> None:
    question = Question("0", "How many?", f"Thinking.\n#### {one[0]}")
    assert TASK.check(question, f" Thinking.\n#### {other[0]}") == (one[1] == other[1])


@given(st.text(max_size=60) | st.text("#A:0123456789.,/-+$% \n<>", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_response_is_judged_without_an_error(text: str) -> None:
    verdict = TASK.check(Question("0", "How many?", "#### 7"), text)
    assert verdict == (final_number(text) == 7)


def test_worked_answers_and_solutions_have_one_form() -> None:
    assert gsm8k.response("It is 48/2 = <<48/2=24>>24.\n#### 24") == " It is 48/2 = 24.\n#### 24"
    assert gsm8k.response("It is 48/2 = <<48/2=24>>24.\nA: 24\n") == " It is 48/2 = 24.\n#### 24"
    assert gsm8k.response("so <<6.6+1.6=8.3 fries.\nA: 8.3") == " so 6.6+1.6=8.3 fries.\n#### 8.3"


def solutions(**marked: tuple[str, bool]) -> dict[str, object]:
    return {
        "question": "How many?",
        "ground_truth": "A: 1",
        **{name: {"solution": text, "is_correct": good} for name, (text, good) in marked.items()},
    }


def test_preferences_are_all_right_over_wrong_of_one_question() -> None:
    row = solutions(a=("x\nA: 1", True), b=("y\nA: 2", False), c=("z\nA: 1", True), d=("w\nA: 3", False))
    pairs = list(gsm8k.preferences([row]))

    assert Counter((pair.chosen, pair.rejected) for pair in pairs) == {
        (" x\n#### 1", " y\n#### 2"): 1,
        (" x\n#### 1", " w\n#### 3"): 1,
        (" z\n#### 1", " y\n#### 2"): 1,
        (" z\n#### 1", " w\n#### 3"): 1,
    }
    assert {pair.prompt for pair in pairs} == {"Question: How many?\nAnswer:"}


def test_preferences_count_a_solution_once_and_leave_cut_ones_out() -> None:
    row = solutions(a=("x\nA: 1", True), b=("x\nA: 1", True), c=("y\nA: 2", False), d=("never an end", False))
    assert [(pair.chosen, pair.rejected) for pair in gsm8k.preferences([row])] == [(" x\n#### 1", " y\n#### 2")]


def test_capped_pairs_depend_on_seed_and_question_alone() -> None:
    row = solutions(a=("x\nA: 1", True), b=("y\nA: 2", False), c=("z\nA: 1", True), d=("w\nA: 3", False))
    other = {**row, "question": "How few?"}

    def drawn(rows: list[dict[str, object]], seed: int) -> set[tuple[object, object]]:
        return {
            (p.chosen, p.rejected) for p in gsm8k.preferences(rows, max_pairs=2, seed=seed) if "many" in str(p.prompt)
        }

    assert len(drawn([row], 0)) == 2
    assert drawn([row, other], 0) == drawn([other, row], 0)
    assert len({frozenset(drawn([row], seed)) for seed in range(20)}) > 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "How many?", "answer": "7"}], r"given data row 0: `answer` must end in a line '#### N'"),
        ([{"question": "", "answer": "#### 7"}], r"row 0: `question` must be a text, got ''"),
        ([{"question": "How many?", "answer": "#### 7"}, {"prompt": "x"}], r"row 1: `question` must be a text"),
    ],
)
def test_rows_that_are_no_questions_are_named(rows: list[dict[str, str]], said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        list(TASK.questions(rows))


def test_rows_without_solutions_are_named() -> None:
    with pytest.raises(PreftuneError, match="row 0: expected mappings with `solution` and `is_correct`"):
        list(gsm8k.preferences([{"question": "How many?", "answer": "#### 7"}]))


@needs_full
def test_checker_agrees_with_every_mark_of_the_real_file() -> None:
    verdicts = Counter(
        (mark, TASK.check(question, solution))
        for question, solution, mark in gsm8k.marks(FULL / "example_model_solutions.jsonl")
    )
    assert verdicts == {(True, True): 2001, (False, False): 3275}


@needs_full
def test_real_file_gives_pairs_for_731_questions() -> None:
    pairs = list(gsm8k.preferences(FULL / "example_model_solutions.jsonl"))

    assert len(pairs) == 2421
    assert len({pair.prompt for pair in pairs}) == 731
    right = {question_id(q.text): final_number(q.reference) for q in TASK.questions(FULL / "test.jsonl")}
    for pair in pairs:
        question = str(pair.prompt).removeprefix("Question: ").removesuffix("\nAnswer:")
        assert final_number(str(pair.chosen)) == right[question_id(question)] != final_number(str(pair.rejected))


@needs_full
def test_real_texts_have_one_form() -> None:
    pairs = list(gsm8k.preferences(FULL / "example_model_solutions.jsonl"))
    texts = [str(one.response) for one in gsm8k.demonstrations(FULL / "train.jsonl")]
    assert len(texts) == 7473
    for text in [*texts, *(str(pair.chosen) for pair in pairs), *(str(pair.rejected) for pair in pairs)]:
        assert text.startswith(" ")
        assert text.splitlines()[-1].startswith("#### ")
        assert text.count("####") == 1
        assert "<<" not in text
        assert ">>" not in text


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gsm8k_example_dataset", EXAMPLE / "dataset.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_example_data_is_split_by_question(example: ModuleType) -> None:
    data = example.load()

    train, apart = {pair.prompt for pair in data.train}, {pair.prompt for pair in data.held_out}
    assert len(data.demonstrations) == 1000
    assert len(train) + len(apart) == 400
    assert not train & apart
    assert not {one.prompt for one in data.demonstrations} & (train | apart)
    assert 0.2 < len(data.held_out) / (len(data.train) + len(data.held_out)) < 0.3
    assert not any(str(pair.prompt) in text for pair in data.held_out for text in data.texts())


def test_example_says_which_full_file_is_missing(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="example_model_solutions"):
        example.load(tmp_path)


@needs_full
def test_shipped_subset_is_what_the_script_makes_of_the_full_files(tmp_path: Path, example: ModuleType) -> None:
    script = [sys.executable, str(EXAMPLE / "make_subset.py"), "--full", str(FULL), "--out", str(tmp_path)]
    subprocess.run(script, check=True, capture_output=True)

    for name, full in (("train", "train"), ("example_model_solutions", "example_model_solutions")):
        made = gzip.decompress((tmp_path / f"{name}.jsonl.gz").read_bytes())
        assert made == gzip.decompress((EXAMPLE / "data" / f"{name}.jsonl.gz").read_bytes())
        assert set(made.splitlines()) <= set((FULL / f"{full}.jsonl").read_bytes().splitlines())
        assert json.loads(made.splitlines()[0])["question"]
    assert (tmp_path / "LICENSE").read_text() == (EXAMPLE / "data" / "LICENSE").read_text()
    full = example.load(FULL)
    assert len(full.train) + len(full.held_out) == 2421


def test_shipped_data_is_small() -> None:
    assert sum(path.stat().st_size for path in EXAMPLE.rglob("*") if path.suffix != ".pyc") < 600_000

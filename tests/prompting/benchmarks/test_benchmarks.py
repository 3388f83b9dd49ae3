"""Benchmarks: their layouts on the hub and in files, n-shot prompts, and rows of one's own."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from preftune.data.builders import gsm8k as gsm8k_task
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks import BUILT_IN, open_benchmark
from preftune.prompting.benchmarks.base import Benchmark
from preftune.prompting.benchmarks.bbh import BBH, TASKS

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real benchmarks are not in {DATA}")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {n} + 1?", "answer": f"{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
        for n in range(first, first + count)
    ]


@pytest.fixture
def gsm8k(tmp_path: Path) -> Benchmark:
    write(tmp_path / "gsm8k" / "train.jsonl", sums(100, 8))
    write(tmp_path / "gsm8k" / "test.jsonl", sums(0, 4))
    return open_benchmark(f"gsm8k={tmp_path / 'gsm8k'}")


def test_gsm8k(gsm8k: Benchmark) -> None:
    question = gsm8k.questions[2]
    assert (question.prompt, question.gold, question.task) == ("What is 2 + 1?", "3", "gsm8k")
    assert gsm8k.score(question, "2 + 1 = 3\n#### 3").right
    assert not gsm8k.score(question, "4").right
    assert gsm8k.ask(question, shots=0) == "What is 2 + 1?"
    asked = gsm8k.ask(question, "Add one to 2, step by step.", shots=2)
    blocks = asked.split("\n\n")
    assert len(blocks) == 3
    assert blocks[2] == "Question: Add one to 2, step by step.\nAnswer:"
    assert all(block.startswith("Question: What is 10") and "\n#### 10" in block for block in blocks[:2])
    assert "<<" not in asked, "calculator notes are no answer"
    assert gsm8k.ask(question).count("Question:") == 4, "3 shots, as the paper"


def test_what_a_model_asks_itself_does_not_count(gsm8k: Benchmark) -> None:
    assert gsm8k.score(gsm8k.questions[2], " 2 + 1 = 3\n#### 3\n\nQuestion: What is 5 + 1?\nAnswer: #### 6").right


def test_a_limit_draws_the_same_whatever_the_order(tmp_path: Path) -> None:
    rows = sums(0, 20)
    there, back = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[::-1])
    chosen = [open_benchmark(f"gsm8k={path}", limit=6, seed=3).questions for path in (there, back)]
    assert {one.id for one in chosen[0]} == {one.id for one in chosen[1]}
    assert len(chosen[0]) == 6
    other = open_benchmark(f"gsm8k={there}", limit=6, seed=4).questions
    assert {one.id for one in other} != {one.id for one in chosen[0]}


def test_one_file_gives_examples_but_never_the_question_itself(tmp_path: Path) -> None:
    benchmark = open_benchmark(f"gsm8k={write(tmp_path / 'all.jsonl', sums(0, 4))}")
    for question in benchmark.questions:
        examples = benchmark.examples(question)
        assert len(examples) == 3
        assert question.id not in {one.id for one in examples}
    with pytest.raises(PreftuneError, match="has 3 examples for task gsm8k, and 4 were asked for"):
        benchmark.examples(benchmark.questions[0], 4)


def bbh_folder(folder: Path) -> Path:
    tasks = {
        "navigate": [
            {"input": f"Take {n} steps. Do you return?\nOptions:\n- Yes\n- No", "target": "No"} for n in range(1, 5)
        ],
        "object_counting": [{"input": f"I have {n} cats. How many?", "target": str(n)} for n in range(1, 5)],
        "snarks": [
            {"input": f"Which is sarcastic?\nOptions:\n(A) Great {n}\n(B) So {n}", "target": "(B)"} for n in range(4)
        ],
        "dyck_languages": [{"input": f"Close. Input: {'[ ' * n}", "target": "] " * n} for n in range(1, 5)],
        "word_sorting": [{"input": f"Sort: List: b{n} a{n}", "target": f"a{n} b{n}"} for n in range(4)],
        "ruin_names": [
            {"input": f"Which, {n}?\nOptions:\n(A) dearth\n(B) wind", "target": "dearth, wind"} for n in range(4)
        ],
    }
    for task, examples in tasks.items():
        folder.mkdir(exist_ok=True)
        (folder / f"{task}.json").write_text(json.dumps({"canary": "none", "examples": examples}))
    return folder


def test_bbh(tmp_path: Path) -> None:
    benchmark = open_benchmark(f"bbh={bbh_folder(tmp_path / 'bbh')}")
    first = {question.task: question for question in reversed(benchmark.questions)}
    assert {task: (one.gold, one.scorer) for task, one in first.items()} == {
        "navigate": ("No", "choice"),
        "object_counting": ("1", "number"),
        "snarks": ("B", "choice"),
        "dyck_languages": ("]", "brackets"),
        "word_sorting": ("a0 b0", "words"),
        "ruin_names": ("dearth, wind", "contains"),
    }
    assert first["navigate"].options == ("Yes", "No")
    assert first["snarks"].listed == "Options:\n(A) Great 0\n(B) So 0"
    for question in benchmark.questions:
        examples = benchmark.examples(question)
        assert {one.task for one in examples} == {question.task}
        assert question.id not in {one.id for one in examples}
        assert benchmark.score(question, question.shown).right
    asked = benchmark.ask(first["snarks"], "Say which of the two mocks.", shots=1)
    assert asked.endswith("Say which of the two mocks.\nOptions:\n(A) Great 0\n(B) So 0\nAnswer:")
    whole = "Think. (A) Great 0 and (B) So 0: which mocks?"
    assert benchmark.ask(first["snarks"], whole, shots=0) == whole, "it lists them in its own way"


def test_the_paper_counts_23_tasks() -> None:
    assert len(TASKS) == 27
    assert len({BBH().counted_as(task) for task in TASKS}) == 23


@needs_data
def test_real_bbh() -> None:
    benchmark = open_benchmark(f"bbh={DATA / 'bbh'}")
    assert len(benchmark.questions) == 6511
    assert Counter(question.scorer for question in benchmark.questions)["contains"] == 3
    wrong = [one for one in benchmark.questions if not benchmark.score(one, one.shown).right]
    assert not wrong
    sentences = [one for one in benchmark.questions if not benchmark.score(one, f"So the answer is {one.shown}.").right]
    assert not sentences


@needs_data
def test_real_gsm8k() -> None:
    benchmark = open_benchmark(f"gsm8k={DATA / 'gsm8k'}")
    assert len(benchmark.questions) == 1319
    assert all(benchmark.score(question, question.shown).right for question in benchmark.questions)
    assert not any(benchmark.score(question, "#### 0.123").right for question in benchmark.questions)
    assert {one.where.source for one in benchmark.examples(benchmark.questions[0])} == {
        str(DATA / "gsm8k" / "train.jsonl")
    }


@needs_data
def test_real_solutions_of_models_are_scored_as_they_are_marked() -> None:
    benchmark = open_benchmark(f"gsm8k={DATA / 'gsm8k'}")
    by_prompt = {question.prompt: question for question in benchmark.questions}
    marks = list(gsm8k_task.marks(DATA / "gsm8k" / "example_model_solutions.jsonl"))
    assert len(marks) == 5276
    for question, solution, right in marks:
        assert benchmark.score(by_prompt[question.text.strip()], solution).right is right, solution


CHOSEN = (
    "{l}",
    "({l})",
    "The answer is ({l}).",
    "**Answer: ({l}) {t}**",
    "The correct answer is:\n\n({l}) {t}",
    "({l}) {t} is the one, because the others are wrong.",
    "First, (A) seems wrong and (B) too.\nTherefore, the answer is ({l}).",
    "{t}",
    "The answer is {t}.",
)


@needs_data
def test_real_options_are_told_apart() -> None:
    benchmark = open_benchmark(f"bbh={DATA / 'bbh'}")
    some = [question for question in benchmark.questions if question.scorer == "choice"][::11]
    assert len({question.task for question in some}) == 23
    for question in some:
        lettered = len(question.gold) == 1
        for i, text in enumerate(question.options):
            letter = chr(ord("A") + i)
            for form in CHOSEN:
                if ("{l}" in form) != lettered and (not lettered or question.options.count(text) > 1):
                    continue
                response = form.format(l=letter, t=text)
                right = question.gold == (letter if lettered else text)
                assert benchmark.score(question, response).right is right, (question.prompt, response)


def test_piqa(tmp_path: Path) -> None:
    def some(split: str, label: int) -> list[dict[str, Any]]:
        return [{"goal": f"Dry {split} {n}", "sol1": "water", "sol2": "a towel", "label": label} for n in range(4)]

    for split, label in (("train", 0), ("validation", 1), ("test", -1)):
        write(tmp_path / f"{split}.jsonl", some(split, label))
    benchmark = open_benchmark(f"piqa={tmp_path}")
    question = benchmark.questions[0]
    assert question.prompt == "Dry validation 0\nOptions:\n(A) water\n(B) a towel"
    assert (question.gold, question.shown) == ("B", "(B)")
    assert benchmark.score(question, "a towel").right
    assert "Dry train" in benchmark.ask(question)
    assert benchmark.ask(question).count("Answer: (A)") == 3
    with pytest.raises(PreftuneError, match="the answers of this split were not published"):
        _ = open_benchmark(f"piqa={tmp_path / 'test.jsonl'}").questions


def test_cosmosqa(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "context": f"It rained {n}.", "question": "Why wet?", "label": 2}
        | {f"answer{i}": f"because {i}" for i in range(4)}
        for n in range(6)
    ]
    benchmark = open_benchmark(f"cosmosqa={write(tmp_path / 'validation.jsonl', rows)}")
    question = benchmark.questions[0]
    assert question.prompt.startswith("It rained 0.\nWhy wet?\nOptions:\n(A) because 0")
    assert question.gold == "C"
    assert benchmark.ask(question).count("Question:") == 6, "5 shots"


def test_mmlu(tmp_path: Path) -> None:
    for split, count in (("test", 2), ("dev", 5)):
        rows = [
            {"question": f"{split} {subject} {n}?", "subject": subject, "choices": ["p", "q", "r", "s"], "answer": 3}
            for subject in ("anatomy", "law")
            for n in range(count)
        ]
        write(tmp_path / f"{split}.jsonl", rows)
    benchmark = open_benchmark(f"mmlu={tmp_path}")
    assert len(benchmark.questions) == 4
    law = next(question for question in benchmark.questions if question.task == "law")
    assert law.gold == "D"
    assert all(one.task == "law" and "dev" in one.prompt for one in benchmark.examples(law))
    assert open_benchmark(f"mmlu={tmp_path}", limit=2).questions[1].task == "law", "a limit takes tasks in turn"


def test_mmlu_as_its_authors_have_it(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["question", "A", "B", "C", "D", "answer"], ["1+1?", "1", "2", "3", "4", "B"]])
    (question,) = open_benchmark(f"mmlu={path}").questions
    assert (question.gold, question.options) == ("B", ("1", "2", "3", "4"))


def test_rows_of_ones_own(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "2+2?", "answer": 4, "scorer": "number"},
        {"question": "Sky?", "gold": "blue", "options": ["red", "blue"], "task": "colours"},
        {"prompt": "Sea? (A) red (B) blue", "answer": 1, "options": ["red", "blue"], "task": "colours"},
        {"prompt": "Capital?", "answer": "Paris", "id": "fr"},
    ]
    benchmark = open_benchmark(f"mine:contains={write(tmp_path / 'q.jsonl', rows)}")
    number, sky, sea, capital = benchmark.questions
    assert benchmark.title == "mine"
    assert (number.scorer, number.gold, number.task) == ("number", "4", "mine")
    assert sky.scorer == "contains", "a scorer that is named on the command line holds for rows that name none"
    assert (capital.id, capital.scorer) == ("fr", "contains")
    assert benchmark.ask(capital) == "Capital?", "no examples unless they are asked for"
    assert benchmark.score(capital, "It is Paris.").right
    choices = open_benchmark(f"mine={write(tmp_path / 'c.jsonl', rows[1:3])}").questions
    assert [one.gold for one in choices] == ["B", "B"]
    assert choices[0].prompt == "Sky?\nOptions:\n(A) red\n(B) blue"
    assert choices[1].prompt == sea.prompt, "it lists its options itself"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "2+2?", "answer": 4}, "row 0: nobody says how answers are scored"),
        ({"prompt": "  ", "answer": 4, "scorer": "number"}, "row 0: prompt is"),
        ({"answer": 4, "scorer": "number"}, "row 0: prompt or question or input or instruction is missing"),
        ({"prompt": "2+2?", "scorer": "number"}, "row 0: answer or gold .* is missing"),
        ({"prompt": "2+2?", "answer": "four", "scorer": "number"}, "row 0: the answer 'four' is no number"),
        ({"prompt": "2+2?", "answer": 7, "options": ["a", "b"]}, "row 0: answer is .* 7, expected one of the options"),
        ({"prompt": "2+2?", "answer": "a", "options": "ab"}, "row 0: options is .*, expected a list"),
        ({"prompt": "2+2?", "answer": [4], "scorer": "exact"}, "row 0: answer is .*, expected a text or a number"),
        ({"prompt": "2+2?", "answer": "4", "scorer": "numbr"}, "did you mean number"),
    ],
)
def test_rows_that_are_no_questions(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(PreftuneError, match=says):
        _ = open_benchmark(f"mine={write(tmp_path / 'q.jsonl', [row])}").questions


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gsm8", "there is no benchmark 'gsm8', .*did you mean gsm8k"),
        ("mine", "for questions of your own name their file, mine:number=PATH"),
        ("mine:numbr=x.jsonl", "there is no scorer 'numbr'"),
        ("gsm8k:exact=x", "has a scorer of its own"),
        ("=x", "must be NAME, NAME=PATH or NAME:SCORER=PATH"),
        ("mine=", "must be NAME, NAME=PATH or NAME:SCORER=PATH"),
    ],
)
def test_names_that_are_no_benchmarks(name: str, says: str) -> None:
    with pytest.raises(PreftuneError, match=says):
        open_benchmark(name)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "tasks"])  # which has no files
def test_files_of_another_layout(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "other.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(PreftuneError, match=r"other\.jsonl row 0: .*(expected|must be)"):
        _ = open_benchmark(f"{name}={path}").questions


@pytest.mark.parametrize("name", BUILT_IN)
def test_files_that_are_no_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / "binary.jsonl"
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(PreftuneError, match="binary"):
        _ = open_benchmark(f"{name}={path}").questions


HUB: dict[str, dict[str, list[dict[str, Any]]]] = {
    "openai/gsm8k:main": {"train": sums(10, 4), "test": sums(0, 1)},
    "baber/piqa:None": {
        "train": [{"goal": f"g{n}", "sol1": "x", "sol2": "y", "label": 0} for n in range(3)],
        "validation": [{"goal": "dry", "sol1": "x", "sol2": "y", "label": 1}],
        "test": [{"goal": "secret", "sol1": "x", "sol2": "y", "label": -1}],
    },
    "Samsoup/cosmos_qa:None": {
        split: [
            {"context": f"{split} {n}", "question": "why?", "label": 1, **{f"answer{i}": f"a{i}" for i in range(4)}}
            for n in range(count)
        ]
        for split, count in (("train", 5), ("validation", 1))
    },
    "cais/mmlu:all": {
        split: [{"question": f"{split} {n}?", "subject": "law", "choices": list("pqrs"), "answer": 1} for n in range(5)]
        for split in ("dev", "test", "auxiliary_train")
    },
    **{
        f"lukaemon/bbh:{task}": {"test": [{"input": f"{task} {n}", "target": "a"} for n in range(4)]}
        for task in TASKS
        if task == "word_sorting"
    },
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_from_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which data sets and splits are asked for, and that their columns are understood."""
    import datasets

    asked: list[str] = []

    def load(path: str, config: str | None = None) -> Any:
        asked.append(f"{path}:{config}")
        found = HUB.get(asked[-1], {"test": [{"input": "not True is", "target": "False"}]})
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in found.items()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("preftune.prompting.benchmarks.bbh.TASKS", ["word_sorting"])
    benchmark = open_benchmark(name)
    question = benchmark.questions[0]
    assert len(benchmark.examples(question)) == benchmark.shots
    assert set(asked) <= set(HUB)
    assert benchmark.score(question, question.shown or question.gold).right

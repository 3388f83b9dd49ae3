"""`preftune prompts diversify`, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prompting.adding import Said, command, read, write

from preftune.prompting.case_files import read_cases

Command = Callable[..., Said]
PUBLISHED = [
    {
        "id": str(i),
        "raw_prompt": f"Name fruit {i}.",
        "chatgpt_optimized_prompt": f"Fruit {i}?",
        "gpt4_optimized_prompt": f"Name fruit {i}, in one word.",
        "gpt4_response_based_raw": "Apple",
        "text003_response_based_raw": "It is a pear.",
    }
    for i in range(40)
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    write(tmp_path / "pairs.jsonl", PUBLISHED)
    return command(monkeypatch, capsys)


def test_rows_held_out_rows_and_statistics(run: Command, tmp_path: Path) -> None:
    done = run("diversify", "pairs.jsonl", "--out", "new/rows.jsonl", "--held-out", "0.25", "--extra", "--chat")
    assert done.code == 0, done.err
    assert "multiple_choice+response+truth" in done.out
    assert done.out.splitlines()[-3:] == [
        "wrote new/rows.jsonl",
        "wrote new/rows.held-out.jsonl",
        "wrote new/rows.statistics.json",
    ]
    train, held = (list(read_cases(tmp_path / "new" / name)) for name in ("rows.jsonl", "rows.held-out.jsonl"))
    assert len(train) + len(held) == 80
    assert {case.source for case in train} | {case.source for case in held} == {row["id"] for row in PUBLISHED}
    assert not {case.source for case in train} & {case.source for case in held}
    assert {row["prompt"][0]["role"] for row in read(tmp_path / "new" / "rows.jsonl")} == {"user"}
    figures = json.loads((tmp_path / "new" / "rows.statistics.json").read_text())
    assert (figures["train"]["rows"], figures["held_out"]["rows"]) == (len(train), len(held))

    longer = [*PUBLISHED, {**PUBLISHED[0], "id": "new", "raw_prompt": "Another"}]
    write(tmp_path / "pairs.jsonl", longer)
    assert run("diversify", "pairs.jsonl", "--out", "more.jsonl", "--held-out", "0.25", "--extra", "--chat").code == 0
    before = set((tmp_path / "new" / "rows.jsonl").read_text().splitlines())
    assert before <= set((tmp_path / "more.jsonl").read_text().splitlines())


def test_a_template_of_ones_own_and_json(run: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text('optimizer: "Better: {prompt}"\nplain_end: " ->"\n')
    done = run("diversify", "pairs.jsonl", "--out", "rows.jsonl", "--template", "mine.yaml", "--json", "--each", "2")
    assert done.code == 0, done.err
    assert json.loads(done.out)["train"]["rows"] == 80
    assert all(row["prompt"].startswith("Better: Name") for row in read(tmp_path / "rows.jsonl"))
    assert all(row["prompt"].endswith(" ->") for row in read(tmp_path / "rows.jsonl"))


def test_pairs_go_from_one_layout_to_the_other_and_back(run: Command, tmp_path: Path) -> None:
    assert run("diversify", "pairs.jsonl", "--out", "ours.jsonl", "--layout", "pairs").code == 0
    assert read(tmp_path / "ours.jsonl")[0]["chosen"] == "Name fruit 0, in one word."
    done = run("diversify", "ours.jsonl", "--out", "theirs.jsonl", "--layout", "published")
    assert done.out == "wrote theirs.jsonl (40 pairs)\n"
    assert read(tmp_path / "theirs.jsonl") == PUBLISHED


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("none.jsonl", "--out", "rows.jsonl"), "none.jsonl does not exist"),
        (("pairs.jsonl", "--out", "rows.csv"), "--out is rows.csv, expected a name that ends in .jsonl"),
        (("pairs.jsonl", "--out", "pairs.jsonl/rows.jsonl"), "cannot write pairs.jsonl/rows.jsonl"),
        (("pairs.jsonl", "--out", "rows.jsonl", "--held-out", "1"), "leaves none to train on"),
        (("one.jsonl", "--out", "rows.jsonl", "--held-out", "0.001"), "leaves none to hold out"),
        (("same.jsonl", "--out", "rows.jsonl"), "no pair of same.jsonl is of use (1 left out: 1 because chosen and"),
        (("half.jsonl", "--out", "rows.jsonl"), "half.jsonl row 0: rejected is missing"),
        (("pairs.jsonl", "--out", "rows.jsonl", "--template", "bad.yaml"), "unknown block 'optimiser'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words: tuple[str, ...], says: str, run: Command, tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", PUBLISHED[:1])
    write(tmp_path / "same.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b "}])
    write(tmp_path / "half.jsonl", [{"prompt": "a", "chosen": "b"}])
    (tmp_path / "bad.yaml").write_text("optimiser: x\n")
    before = set(tmp_path.iterdir())
    said = run("diversify", *words)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert set(tmp_path.iterdir()) == before


def test_it_needs_no_torch(run: Command) -> None:
    code = (
        "import sys; sys.argv = ['preftune', 'prompts', 'diversify', 'pairs.jsonl', '-o', 'rows.jsonl']\n"
        "import preftune.cli as cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

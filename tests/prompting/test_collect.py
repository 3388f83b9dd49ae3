"""`preftune prompts collect`, as a user types it, against models behind HTTP and here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import Proxy
from prompting.adding import Said, adding, command, read, sums, write

from preftune.data.records import Preference, records
from preftune.data.sources import rows
from preftune.prompting.case_files import read_cases
from preftune.prompting.records import read_pairs

Command = Callable[..., Said]
FUNCTIONS = """
import re

def plan(prompts):
    return [re.search(r"\\[Prompt\\]\\n(.*?)\\n\\[End", each, re.DOTALL)[1] + " Show the steps." for each in prompts]

def echo(prompts):
    return prompts

def wrong(prompts):
    return ["The answer is 0" for each in prompts]

def longer(a, b):
    return "a" if len(a) > len(b) else "b" if len(b) > len(a) else "tie"

def fails(prompts):
    raise ValueError("no such thing")
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "makers.py").write_text(FUNCTIONS)
    yield command(monkeypatch, capsys)
    sys.modules.pop("makers", None)


@pytest.fixture
def world() -> Iterator[Proxy]:
    with adding() as proxy:
        yield proxy


def named(world: Proxy, *models: str) -> list[str]:
    return [f"endpoint:{world.url}#{model}" for model in models]


def words(world: Proxy, *more: str, rewriters: tuple[str, ...] = ("careful", "hasty")) -> list[str]:
    found = ["collect", "sums.jsonl", "--out", "out", "--json"]
    for name in named(world, *rewriters):
        found += ["--rewriter", name]
    return [*found, "--generator", *named(world, "adder"), *more]


def test_pairs_by_a_checker_and_a_second_time_costs_nothing(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", [{**row, "task": "sums", "id": f"s{i}"} for i, row in enumerate(sums(12))])
    asked = words(world, "--rewriter", "naive", "--checker", "number")
    done = run(*asked)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    careful, hasty = named(world, "careful", "hasty")
    assert (found["pairs"], found["prompts_with_a_pair"]) == (24, 12)
    assert found["comparisons_undecided"] == {"both wrong": 12}
    assert (found["rewriters"][careful]["wins"], found["rewriters"][careful]["right"]) == (24, 1.0)
    assert (found["rewriters"][hasty]["wins"], found["rewriters"][hasty]["right"]) == (0, 0.0)
    assert found["endpoint_calls"] == len(world.passed) == 12 * 2 + 12 * 3  # rewrites; answers to three prompts each
    pair = next(read_pairs(tmp_path / "out" / "pairs.jsonl"))
    assert (pair.id, pair.task, pair.ground_truth) == ("s0", "sums", "21")
    assert (pair.prompt, pair.chosen) == ("Add 1 and 20", "Add 1 and 20\nWork step by step.")
    assert (pair.naive_response, pair.chosen_response) == ("The answer is 22", "The answer is 21")
    assert {row["reason"] for row in read(tmp_path / "out" / "dropped.jsonl")} == {"both wrong"}
    summary = json.loads((tmp_path / "out" / "collect.json").read_text())
    assert summary["settings"]["checker"] == "number"
    assert summary["endpoint_tokens"] == found["endpoint_tokens"] > 0

    before = (tmp_path / "out" / "pairs.jsonl").read_bytes()
    assert run(*asked).code == 0
    assert len(world.passed) == 60
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == before


def test_a_judge_is_asked_in_both_orders_and_ties_are_dropped(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(6))
    done = run(*words(world, "--judge", *named(world, "fair")))
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["pairs"] == found["comparisons"] == 6
    assert sum(body["model"] == "fair" for body in world.passed) == 12
    for pair in read_pairs(tmp_path / "out" / "pairs.jsonl"):
        assert pair.chosen.endswith("step by step.")
        assert pair.rejected.endswith("quick.")

    said = run(*words(world, "--judge", *named(world, "first")))
    assert said.code == 2
    assert said.err.startswith("error: no pair came of 6 prompts (6 tie): see out/dropped.jsonl")
    assert [row["reason"] for row in read(tmp_path / "out" / "dropped.jsonl")] == ["tie"] * 6
    assert (tmp_path / "out" / "pairs.jsonl").read_text() == ""


def test_the_budget_holds_for_all_endpoints_together(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(6))
    asked = words(world, "--judge", *named(world, "fair"), "--concurrency", "1")
    total = 6 * 2 + 6 * 3 + 6 * 2
    for budget in (7, 20, 35):  # among the rewrites, the answers, the verdicts
        said = run(*asked, "--max-calls", budget)
        assert said.code == 2
        assert said.err.startswith(f"error: the budget of {budget} calls is used up")
        assert len(said.err.splitlines()) == 1
        assert len(world.passed) == budget
        assert not (tmp_path / "out" / "pairs.jsonl").exists()
    assert run(*asked, "--max-calls", total).code == 0
    assert len(world.passed) == len({json.dumps(body) for body in world.passed}) == total


def test_what_was_spent_on_others_counts(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(3))
    assert run(*words(world, "--judge", *named(world, "fair"), "--max-calls", "21")).code == 0
    said = run(*words(world, "--judge", *named(world, "first"), "--max-calls", "21"))
    assert said.code == 2
    assert "the budget of 21 calls is used up" in said.err
    assert len(world.passed) == 21


def test_tokens_are_within_a_budget(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(6))
    asked = words(world, "--checker", "number", "--rewrite-tokens", "64", "--answer-tokens", "64")
    said = run(*asked, "--max-tokens", "1000")
    assert said.code == 2
    assert "the budget of 1,000 tokens is used up" in said.err
    spent = sum(
        line["spent"]
        for path in (tmp_path / "out" / "kept").rglob("calls.jsonl")
        for line in read(path)
        if "spent" in line
    )
    assert 0 < spent <= 1000
    assert run(*asked, "--max-tokens", "100000").code == 0
    assert len(world.passed) == len({json.dumps(body) for body in world.passed})


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
@pytest.mark.parametrize("calls", [8, 60])  # among the rewrites, among the verdicts
def test_killed_and_started_again_it_comes_to_the_same(calls: int, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(10))
    world.delay = 0.01
    line = [sys.executable, "-W", "error", "-m", "preftune", "prompts"]
    line += words(world, "--judge", *named(world, "fair"), "--concurrency", "2")
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(world.passed) < calls:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "pairs.jsonl").exists()
    time.sleep(0.1)
    world.delay = 0.0
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"] == 10
    counts = Counter(json.dumps(body) for body in world.passed)
    assert len(counts) == 10 * (2 + 3 + 2)
    assert counts.total() - len(counts) <= 2  # those under way when it was killed
    assert len(world.bodies) <= counts.total() + 2


def test_rewrites_that_may_not_be_compared_are_counted(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(5))
    (tmp_path / "short.yaml").write_text('optimizer: "[Prompt]\\n{prompt}\\n[End of prompt]"\n')
    more = [
        "--rewriter",
        named(world, "careful")[0] + ",short.yaml",
        "--rewriter",
        "makers:echo",
        "--checker",
        "number",
    ]
    write(tmp_path / "sums.jsonl", [{**row, "answer": f"#### {row['answer']}"} for row in sums(5)])
    done = run(*words(world, *more, rewriters=("careful", "hasty", "forgetful")))
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["pairs"] == 5
    assert found["rewrites_left_out"] == {"changes the facts": 5, "the same as another rewrite": 5, "too long": 5}
    dropped = read(tmp_path / "out" / "dropped.jsonl")
    lost = next(row for row in dropped if row["reason"] == "changes the facts")
    assert lost["rewrite"] == "Add 1 and it"
    assert "'20' is missing" in lost["detail"]
    assert sum(body["messages"][0]["content"].startswith("[Prompt]") for body in world.passed) == 5


def test_rewriters_are_shown_what_is_known_if_that_is_wanted(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(2))
    assert run(*words(world, "--checker", "number", "--show-response", "--show-truth")).code == 0
    asked = [body["messages"][0]["content"] for body in world.passed if body["model"] == "careful"]
    assert len(asked) == 2
    assert "[What a model answered to it, which may be wrong]\nThe answer is 22\n" in asked[0] + asked[1]
    assert "[What it should have answered]\n21\n" in asked[0] + asked[1]
    assert len(world.passed) == 2 * (2 + 3)  # answers to the naive prompts are asked for once


def test_a_benchmark_brings_its_scorers(run: Command, world: Proxy, tmp_path: Path) -> None:
    rows = [{"question": f"Add {i} and 20", "answer": f"It is {i} + 20.\n#### {i + 20}"} for i in range(1, 4)]
    write(tmp_path / "gsm8k.jsonl", rows)
    asked = [word.replace("sums.jsonl", "gsm8k=gsm8k.jsonl") for word in words(world, "--checker", "benchmark")]
    done = run(*asked)
    assert done.code == 0, done.err
    assert json.loads(done.out)["pairs"] == 3
    assert {pair.task for pair in read_pairs(tmp_path / "out" / "pairs.jsonl")} == {"gsm8k"}
    write(tmp_path / "sums.jsonl", sums(2))
    said = run(*words(world, "--checker", "benchmark"))
    assert said.code == 2
    assert "checker benchmark is for prompts of a benchmark" in said.err


def test_what_a_generator_refuses_is_left_out(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(3))
    done = run(*words(world, "--rewriter", "naive", "--generator", *named(world, "picky"), "--checker", "number"))
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["pairs"], found["rewrites_left_out"]) == (3, {"refused": 3})
    dropped = read(tmp_path / "out" / "dropped.jsonl")
    assert {row["reason"] for row in dropped} == {"refused"}
    assert dropped[0]["rewrite"].endswith("Be quick.")
    assert "no hurry here" in dropped[0]["detail"]


def test_generators_vote(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(4))
    more = ["--generator", "makers:wrong", "--generator", "makers:echo", "--checker", "number"]
    done = run(*words(world, *more))
    assert done.code == 0, done.err
    assert all(row["votes"] == [1.0, 0.5, 0.5] for row in read(tmp_path / "out" / "pairs.jsonl"))
    assert json.loads(done.out)["rewriters"][named(world, "careful")[0]]["right"] == pytest.approx(1 / 3)


def test_functions_and_a_model_here_collect_too(run: Command, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("The film was\n\nA story of two sisters\nThe film was\n")
    asked = ["collect", "prompts.txt", "-o", "out", "--rewriter", "makers:plan", "--rewriter", "naive", "--rewriter"]
    asked += ["sandbox", "--rewrite-tokens", "8", "--no-facts", "--generator", "sandbox", "--answer-tokens", "12"]
    done = run(*asked, "--judge", "makers:longer", "--answers", "3", "--answer-temperature", "1", "--seed", "1")
    assert done.code == 0, done.err
    assert "of 2 prompts" in done.out
    assert {pair.prompt for pair in read_pairs(tmp_path / "out" / "pairs.jsonl")} <= {
        "The film was",
        "A story of two sisters",
    }
    for row in read(tmp_path / "out" / "pairs.jsonl"):
        assert len(row["votes"]) == 3
        assert row["votes"].count(1.0) > row["votes"].count(0.0)
        assert row.get("chosen_response") != row.get("rejected_response")


def test_the_order_of_prompts_changes_no_pair(run: Command, world: Proxy, tmp_path: Path) -> None:
    naive = sums(8)
    more = ["--rewriter", "naive", "--checker", "number", "--pairs", "1"]
    write(tmp_path / "sums.jsonl", naive)
    assert run(*words(world, *more)).code == 0
    first = read(tmp_path / "out" / "pairs.jsonl")
    write(tmp_path / "sums.jsonl", naive[::-1])
    assert run(*words(world, *more)).code == 0
    key = "id"
    assert sorted(first, key=lambda row: row[key]) == sorted(
        read(tmp_path / "out" / "pairs.jsonl"), key=lambda row: row[key]
    )
    assert len({row["rejected_by"] for row in first}) == 2  # which of two is kept is drawn


BASE = ("--rewriter", "makers:plan", "--rewriter", "naive", "--generator", "makers:echo")
CHECK = ("--checker", "number")


@pytest.mark.parametrize(
    ("prompts", "more", "says"),
    [
        ("sums.jsonl", (*BASE, *CHECK, "--max-calls", "0"), "the budget of calls is 0, expected at least 1"),
        ("sums.jsonl", (*BASE, *CHECK, "--max-tokens", "0"), "the budget of tokens is 0, expected at least 1"),
        ("empty.jsonl", (*BASE, *CHECK), "empty.jsonl row 0: prompt is empty, expected text"),
        ("nothing.txt", (*BASE, *CHECK), "0 prompts in nothing.txt"),
        ("binary.txt", (*BASE, *CHECK), "binary.txt is no UTF-8 text (byte 0)"),
        ("zeros.txt", (*BASE, *CHECK), "zeros.txt is no text (it holds zero bytes)"),
        ("binary.jsonl", (*BASE, *CHECK), "binary.jsonl"),
        ("long.txt", (*BASE, *CHECK), "long.txt row 0: the prompt has 100,000 characters, expected at most 32,768"),
        ("missing.jsonl", (*BASE, *CHECK), "missing.jsonl does not exist"),
        ("clash.jsonl", (*BASE, *CHECK), "have the id 'a' and different prompts"),
        ("plain.txt", (*BASE, *CHECK), "plain.txt row 0 has no right answer for checker number"),
        ("words.jsonl", (*BASE, *CHECK), "words.jsonl row 0: "),
        ("words.jsonl", (*BASE, "--checker", "gsm8k"), "which checker gsm8k cannot read"),
        ("sums.jsonl", BASE, "neither is named: name one of them"),
        ("sums.jsonl", (*BASE, *CHECK, "--judge", "sandbox"), "both are named"),
        ("sums.jsonl", (*BASE, "--checker", "numbr"), "did you mean number?"),
        ("sums.jsonl", (*BASE, "--judge", "sandbx"), "there is no judge 'sandbx'"),
        ("sums.jsonl", (*BASE, "--judge", "gsm8k"), "name it as the checker (--checker gsm8k)"),
        ("sums.jsonl", (*BASE[2:], *CHECK), "one rewrite of a prompt cannot be compared"),
        ("sums.jsonl", (*BASE, *CHECK, "--rewriter", "naive"), "rewriter naive is named twice"),
        ("sums.jsonl", (*BASE, *CHECK, "--samples", "2", "--temperature", "0"), "at temperature 0 are all the same"),
        ("sums.jsonl", (*BASE, *CHECK, "--rewriter", "no-such-folder/at-all/x"), "no-such-folder/at-all/x"),
        ("sums.jsonl", (*BASE, *CHECK, "--rewriter", "makers:plan,no.yaml"), "no.yaml"),
        ("sums.jsonl", (*BASE, *CHECK, "--generator", "makers:nobody"), "makers has no function 'nobody'"),
        ("sums.jsonl", (*BASE, *CHECK, "--generator", "makers:fails"), "makers:fails failed (ValueError: no such"),
        ("sums.jsonl", (*BASE, *CHECK, "--generator", "endpoint:http://127.0.0.1:9"), "does not say which models"),
        ("sums.jsonl", (*BASE, *CHECK, "-o", "makers.py"), "cannot write makers.py"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    prompts: str, more: tuple[str, ...], says: str, run: Command, tmp_path: Path
) -> None:
    write(tmp_path / "sums.jsonl", sums(3))
    write(tmp_path / "empty.jsonl", [{"prompt": "  "}])
    write(tmp_path / "clash.jsonl", [{"id": "a", "prompt": "one"}, {"id": "a", "prompt": "two"}])
    write(tmp_path / "words.jsonl", [{"prompt": "one", "answer": "many"}])
    (tmp_path / "nothing.txt").write_text("\n \n")
    (tmp_path / "plain.txt").write_text("Add 1 and 2\n")
    (tmp_path / "zeros.txt").write_bytes(b"a\x00b")
    (tmp_path / "long.txt").write_text("x" * 100_000)
    for name in ("binary.txt", "binary.jsonl"):
        (tmp_path / name).write_bytes(bytes(range(255, 100, -1)))
    out = () if "-o" in more else ("-o", "out")
    said = run("collect", prompts, *more, *out)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "out" / "pairs.jsonl").exists()


def test_a_budget_of_zero_sends_nothing(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(3))
    said = run(*words(world, "--checker", "number", "--max-calls", "0"))
    assert said.code == 2
    assert not world.bodies


def test_an_endpoint_that_goes_down_loses_nothing(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(4))
    asked = words(world, "--checker", "number", "--concurrency", "1")
    world.faults = [None] * 10 + [401]
    said = run(*asked)
    assert said.code == 2
    assert "refuses a call without an API key" in said.err
    assert len(world.passed) == 10
    assert run(*asked).code == 0
    assert len(world.passed) == 4 * (2 + 3)


def test_what_is_collected_is_trained_on(run: Command, world: Proxy, tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums(4))
    assert run(*words(world, "--checker", "number")).code == 0
    done = run("diversify", "out/pairs.jsonl", "--out", "rows.jsonl", "--each", "8", "--extra")
    assert done.code == 0, done.err
    pairs = list(records(rows(tmp_path / "rows.jsonl")))
    assert {type(each) for each in pairs} == {Preference}
    assert len(pairs) == len(list(read_cases(tmp_path / "rows.jsonl"))) == 4 * (4 + 4 + 1)

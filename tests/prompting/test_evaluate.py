"""`preftune prompts evaluate`, as a user types it: functions, the built-in model, endpoints on loopback, and kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bad_input.case import Said
from bad_input.case import run as preftune
from loopback import Body, Proxy, listening, saying

from preftune.evaluation import endpoint
from preftune.serving.command import open_model
from preftune.serving.server import Server

ASKED = re.compile(r"\[Prompt\]\n(.*?)\n\[End of prompt\]", re.DOTALL)
FUNCTIONS = """
import re

ASKED = re.compile(r"\\[Prompt\\]\\n(.*?)\\n\\[End of prompt\\]", re.DOTALL)

def plan(prompts):
    return [ASKED.search(each)[1] + " Show your steps." for each in prompts]

def careless(prompts):  # changes a number, or says the answer
    found = [ASKED.search(each)[1] for each in prompts]
    return [each.replace("1", "2") if "1" in each else each + " (Nine.)" for each in found]

def adds(prompts):  # right only where it is told to show its steps
    found = []
    for each in prompts:
        last = each.split("Question:")[-1]
        total = sum(map(int, re.findall(r"\\d+", last)))
        found.append(f"The answer is {total}." if "steps" in last else f"The answer is {total + 1}.")
    return found

def silent(prompts):
    return ["I do not know." for each in prompts]

def broken(prompts):
    raise KeyError("no\\nsuch thing")
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "makers.py").write_text(FUNCTIONS)
    write(tmp_path / "sums.jsonl", [sum_of(n, 3 * n + 1) for n in range(2, 10)])
    yield tmp_path
    sys.modules.pop("makers", None)


def sum_of(a: int, b: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"What is {a} + {b}?", "answer": a + b, **more}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluate(here: Path, *words: str, bench: str = "sums:number=sums.jsonl") -> Said:
    return preftune(" ".join(["preftune prompts evaluate --out out -q --benchmark", bench, *words]), here)


def figures(here: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((here / "out" / "evaluation.json").read_text())
    return found


def test_functions_from_end_to_end(here: Path) -> None:
    done = evaluate(here, "--model makers:plan --model makers:careless --generator makers:adds --sampled 2")
    assert done.code == 0, done.err
    rows = {(row["optimizer"], row["decoding"]): row for row in figures(here)["rows"]}
    assert len(rows) == 4
    plan = rows["makers:plan", "greedy"]["benchmarks"]["sums"]
    assert (plan["naive"], plan["optimised"], plan["won"], plan["lost"], plan["same"]) == (0.0, 1.0, 8, 0, 0)
    assert plan["p"] == pytest.approx(2 / 2**8)
    careless = rows["makers:careless", "greedy"]
    assert careless["benchmarks"]["sums"]["same"] == 8
    table = (here / "out" / "table.csv").read_text().splitlines()
    assert table[0] == "generator,decoding,prompts,sums,weighted average,simple mean"
    assert table[1:4] == [
        "makers:adds,greedy,naive,0.00,0.00,0.00",
        "makers:adds,greedy,makers:plan,100.00,100.00,100.00",
        "makers:adds,greedy,makers:careless,0.00,0.00,0.00",
    ]
    assert "100.00" in done.out
    page = (here / "out" / "report.html").read_text()
    assert "makers:plan did better than the naive prompts: from 0.00 to 100.00 on average" in page
    assert "What is 2 + 7? Show your steps." in page


def test_rewrites_that_change_facts_are_not_used(here: Path) -> None:
    done = evaluate(here, "--model makers:careless --generator makers:adds")
    assert done.code == 0, done.err
    found = figures(here)["rewrites"]["makers:careless"]["sums"]
    lines = read(here / "out" / "questions.jsonl")
    changed = [line for line in lines if "1" in line["prompt"]]
    assert changed
    assert all(line["optimized"] == line["prompt"] and line["refused"] for line in changed)
    assert all(line["naive"] == line["optimised"] for line in changed), "the same text has one answer"
    assert all(re.search("is missing or altered|is there fewer times", line["refused"]) for line in changed)
    assert sum(found["refused"].values()) == sum(bool(line["refused"]) for line in lines)
    assert found["used"] == 1 - sum(bool(line["refused"]) for line in lines) / 8
    assert "of the rewrites by makers:careless were not used" in done.out
    loose = evaluate(here, "--model makers:careless --generator makers:adds --no-guard")
    assert loose.code == 0
    assert figures(here)["rewrites"]["makers:careless"]["sums"]["used"] == 1.0


def test_prompts_that_state_the_answer(here: Path) -> None:
    write(here / "q.jsonl", [sum_of(2, 3), sum_of(4, 4), sum_of(20, 2)])
    rewrites = ["Add 2 and 3 in steps", "Add 4 and 4 in steps, which give 8", "Add 20 and 2 in steps"]
    rows = [
        {"prompt": f"What is {a}?", "optimized": to}
        for a, to in zip(["2 + 3", "4 + 4", "20 + 2"], rewrites, strict=True)
    ]
    write(here / "given.jsonl", rows)
    done = evaluate(here, "--prompts given.jsonl --generator makers:adds --no-guard", bench="three:number=q.jsonl")
    assert done.code == 0, done.err
    assert "33.3% of the prompts by given.jsonl state the right answer" in done.out
    (row,) = figures(here)["rows"]
    # "4 and 4 ..., which give 8" is 16 to this generator; without it, both others are right
    assert row["benchmarks"]["three"]["optimised"] == pytest.approx(2 / 3)
    assert row["without_stated_answers"]["three"]["optimised"] == 1.0
    assert row["without_stated_answers"]["three"]["questions"] == 2
    assert [line["leaks"] for line in read(here / "out" / "questions.jsonl")] == [[], ["gold"], []]


def test_averages_weigh_benchmarks_by_their_questions(here: Path) -> None:
    write(here / "more.jsonl", [sum_of(5, 5), sum_of(6, 6, shown="12")])
    done = evaluate(here, "--benchmark more:contains=more.jsonl --model makers:plan --generator makers:adds --shots 1")
    assert done.code == 0, done.err
    (row,) = figures(here)["rows"]
    assert row["weighted_average"]["optimised"] == 1.0
    lines = [line for line in read(here / "out" / "questions.jsonl") if line["benchmark"] == "more"]
    assert len(lines) == 2
    assert figures(here)["benchmarks"]["more"]["shots"] == 1


def test_no_answer_found_is_counted(here: Path) -> None:
    done = evaluate(here, "--model makers:plan --generator makers:silent --generator makers:adds")
    assert done.code == 0, done.err
    rows = {row["generator"]: row for row in figures(here)["rows"]}
    assert rows["makers:silent"]["no_answer_found"] == {"sums": {"naive": 1.0, "optimised": 1.0}}
    assert rows["makers:adds"]["no_answer_found"] == {"sums": {"naive": 0.0, "optimised": 0.0}}
    assert rows["makers:silent"]["benchmarks"]["sums"]["same"] == 8


def test_the_built_in_model(here: Path) -> None:
    rows = [
        {"prompt": f"a {mood} comedy about a robot .", "answer": "robot", "id": mood} for mood in ("funny", "boring")
    ]
    write(here / "films.jsonl", rows)
    words = "--model sandbox --generator sandbox --answer-tokens 12 --candidates 2 --sampled 2"
    done = evaluate(here, words, bench="films:contains=films.jsonl")
    assert done.code == 0, done.err
    first = (here / "out" / "questions.jsonl").read_text()
    assert {row["decoding"] for row in figures(here)["rows"]} == {"greedy", "sampled"}
    assert (here / "out" / "kept").is_dir()
    assert evaluate(here, words, bench="films:contains=films.jsonl").code == 0
    assert (here / "out" / "questions.jsonl").read_text() == first, "what is kept is replayed"


def answers(messages: list[Body]) -> str:
    said = str(messages[-1]["content"])
    if asked := ASKED.search(said):
        return f"{asked[1]} Show your steps."
    total = sum(map(int, re.findall(r"\d+", said)))
    return f"The answer is {total if 'steps' in said else total + 1}."


@pytest.fixture
def world() -> Iterator[Proxy]:
    with listening(saying(answers)) as proxy:
        yield proxy


def remote(world: Proxy) -> str:
    return f"--model endpoint:{world.url} --generator endpoint:{world.url}"


def test_endpoints(here: Path, world: Proxy) -> None:
    done = evaluate(here, remote(world))
    assert done.code == 0, done.err
    (row,) = figures(here)["rows"]
    assert row["benchmarks"]["sums"]["optimised"] == 1.0
    assert len(world.passed) == 8 * 3, "a rewrite, and an answer to each wording"
    cost = figures(here)["cost"]
    assert cost["calls"] == 24
    assert cost["tokens"] == sum(one["prompt_tokens"] + one["tokens"] for one in cost["by"].values())
    assert evaluate(here, remote(world)).code == 0
    assert len(world.passed) == 24, "nothing is paid twice"


def test_a_real_server(here: Path) -> None:
    write(here / "films.jsonl", [{"prompt": f"a {mood} film .", "answer": "the"} for mood in ("funny", "boring")])
    (here / "makers.py").write_text(FUNCTIONS.replace(" Show your steps.", " It is a comedy ."))
    words, bench = "--model makers:plan --answer-tokens 8", "films:contains=films.jsonl"
    with Server(open_model("sandbox"), port=0) as server:
        words += f" --generator endpoint:{server.url}#sandbox"
        done = evaluate(here, words, bench=bench)
    assert done.code == 0, done.err
    assert figures(here)["cost"]["calls"] == 4
    first = (here / "out" / "questions.jsonl").read_text()
    (here / "out" / "questions.jsonl").unlink()
    assert evaluate(here, words, bench=bench).code == 0, "all is kept: it needs no server any more"
    assert (here / "out" / "questions.jsonl").read_text() == first


def test_a_budget_holds_over_all_endpoints(here: Path, world: Proxy) -> None:
    done = evaluate(here, remote(world), "--max-calls 13")
    assert done.code == 2
    assert "the budget of 13 calls is used up" in done.err
    assert len(world.passed) == 13
    assert not (here / "out" / "evaluation.json").exists()
    assert evaluate(here, remote(world), "--max-calls 24").code == 0
    assert len(world.passed) == 24


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
@pytest.mark.parametrize("calls", [4, 14])  # among the rewrites, among the answers
def test_killed_and_started_again_it_pays_nothing_twice(calls: int, here: Path, world: Proxy) -> None:
    world.delay = 0.02
    line = [sys.executable, "-W", "error", "-m", "preftune", "prompts", "evaluate", "-b", "sums:number=sums.jsonl"]
    line += [*remote(world).split(), "--out", "out", "-q", "--concurrency", "2"]
    process = subprocess.Popen(line, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(world.passed) < calls:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (here / "out" / "evaluation.json").exists()
    time.sleep(0.1)
    world.delay = 0.0
    done = subprocess.run(line, cwd=here, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    counts = Counter(json.dumps(body) for body in world.passed)
    assert len(counts) == 24
    assert counts.total() - len(counts) <= 2, "but for those under way when it was killed"
    assert figures(here)["rows"][0]["benchmarks"]["sums"]["won"] == 8


GOOD = "--model makers:plan --generator makers:adds"


@pytest.mark.parametrize(
    ("words", "bench", "says"),
    [
        (GOOD, "gsm8=sums.jsonl", "did you mean|nobody says how answers are scored"),
        (GOOD, "gsm8", "there is no benchmark 'gsm8', .*did you mean gsm8k"),
        (GOOD, "gsm8k=sums.jsonl", "sums.jsonl row 0: expected the texts question and answer"),
        (GOOD, "bbh=sums.jsonl", "sums.jsonl row 0: expected the texts input and target"),
        (GOOD, "mmlu=sums.jsonl", "sums.jsonl row 0: question must be a text"),
        (GOOD, "sums:number=none.jsonl", "none.jsonl does not exist"),
        (GOOD, "sums:number=binary.jsonl", "binary.jsonl"),
        (GOOD, "sums:number=empty.jsonl", "empty.jsonl row 0: prompt is"),
        (f"{GOOD} --shots 9", "sums:number=sums.jsonl", "has 7 examples for task sums, and 9 were asked for"),
        (f"{GOOD} --limit 0", "sums:number=sums.jsonl", "the limit of questions is 0"),
        (f"{GOOD} --max-calls 0", "sums:number=sums.jsonl", "the budget of calls is 0, expected at least 1"),
        (f"{GOOD} --benchmark sums:exact=sums.jsonl", "sums:number=sums.jsonl", "benchmark sums is named twice"),
        (f"{GOOD} --no-greedy", "sums:number=sums.jsonl", "no answers are asked for"),
        (f"{GOOD} --sampled 2 --temperature 0", "sums:number=sums.jsonl", "sampled at temperature 0"),
        ("--generator makers:adds", "sums:number=sums.jsonl", "nothing is compared with the naive prompts"),
        ("--model makers:none --generator makers:adds", "sums:number=sums.jsonl", "has no function 'none'"),
        ("--model makers:plan --generator makers:broken", "sums:number=sums.jsonl", r"failed \(KeyError"),
        ("--model no-such-run --generator makers:adds", "sums:number=sums.jsonl", "no-such-run"),
        ("--prompts sums.jsonl --generator makers:adds", "sums:number=sums.jsonl", "expected the texts prompt and opt"),
        ("--prompts other.jsonl --generator makers:adds", "sums:number=sums.jsonl", "has no rewrite of any question"),
        ("--model sandbox --generator makers:adds", "long:number=long.jsonl", "all prompts have more than"),
        ("--prompts long-to.jsonl --generator sandbox", "long:number=long.jsonl", "sandbox answered none of 2 prompts"),
        (
            "--model makers:plan --generator endpoint:http://127.0.0.1:9/v1#m --timeout 1",
            "one:number=one.jsonl",
            "http://127.0.0.1:9/v1 gave no answer",
        ),
    ],
)
def test_bad_input_gets_one_sentence(
    here: Path, words: str, bench: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.01)
    (here / "binary.jsonl").write_bytes(bytes(range(256)) * 4)
    write(here / "empty.jsonl", [{"prompt": "  ", "answer": 1}])
    write(here / "one.jsonl", [sum_of(1, 1)])
    write(here / "other.jsonl", [{"prompt": "What is 90 + 90?", "optimized": "Add 90 and 90."}])
    long = f"What is 1 + 1 {'a funny film . ' * 7000}?"
    write(here / "long.jsonl", [{"prompt": long, "answer": 2}])
    write(here / "long-to.jsonl", [{"prompt": long, "optimized": f"Say what this is: {long}"}])
    done = evaluate(here, words, bench=bench)
    assert done.code == 2, done.out
    assert re.search(says, done.err), done.err
    assert len(done.errors) == 1
    assert not (here / "out" / "evaluation.json").exists()

"""`preftune judge`, as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from evaluation.runs import Made
from loopback import Proxy, listening, saying

from preftune import cli
from preftune.evaluation.answer_pairs import labelled_pairs, matched
from preftune.sandbox.preferences import rows as sandbox_rows
from preftune.sandbox.world import true_reward
from preftune.serving.server import Server

JUDGE = "def best(response):\n    return len(response)\n\ndef first(a, b):\n    return 'a'\n"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs `preftune judge ...` in an empty folder; a traceback would come out as an exception."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(JUDGE)

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["preftune", "judge", *words])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    yield run
    sys.modules.pop("mine", None)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def truthful(turns: list[dict[str, Any]]) -> str:
    first, second = (
        true_reward(turns[0]["content"].split(f"[Answer {i}]\n")[1].split(f"\n[End of answer {i}]")[0]) for i in (1, 2)
    )
    return f"Verdict: {'1' if first > second else '2' if first < second else 'tie'}"


@pytest.fixture
def scripted() -> Iterator[Proxy]:
    with listening(saying(truthful)) as proxy:
        yield proxy


def test_a_judge_is_scored_on_labelled_pairs(judge: Command, tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", sandbox_rows(60))
    said = judge("sandbox", "pairs.jsonl", "-q")
    assert said.code == 0
    assert all(word in said.out for word in ("judge sandbox", "against labels", "agreement", "length bias"))
    found = json.loads(judge("sandbox", "pairs.jsonl", "--truth", "sandbox", "--json", "-q").out)
    assert found["agreement"] == 1
    assert found["truth"] == "sandbox"
    assert found["pairs"] + found["undecided"] == 60
    kept = json.loads((tmp_path / "runs/judge-pairs/judge.json").read_text())
    assert kept["agreement"] == 1
    assert kept["command"].startswith("preftune judge sandbox pairs.jsonl --truth sandbox")
    first = json.loads(judge("mine:first", "pairs.jsonl", "--json").out)
    assert (first["flipped"], first["for_first"]["value"], first["agreement"]) == (1.0, 1.0, 0.5)


def test_two_files_of_answers_are_matched_by_prompt(judge: Command, tmp_path: Path) -> None:
    ours = [{"prompt": f"p{i}", "response": "long answer"} for i in range(12)] + [{"prompt": "p0", "response": ""}]
    theirs = [{"prompt": [{"role": "user", "content": f"p{i}"}], "response": "short"} for i in range(12)][::-1]
    write(tmp_path / "a.jsonl", ours)
    write(tmp_path / "b.jsonl", [*theirs, {"prompt": "p0 ", "response": "again"}])
    said = judge("mine:best", "a.jsonl", "--against", "b.jsonl", "--json")
    found = json.loads(said.out)
    assert (found["wins"], found["losses"], found["comparisons"], found["prompts"]) == (12, 1, 13, 12)
    assert "runs/judge-a-against-b/verdicts.jsonl" in said.err
    assert "(13 were there already)" in judge("mine:best", "a.jsonl", "--against", "b.jsonl").err
    assert judge("mine:best", "b.jsonl", "--against", "a.jsonl").code == 0
    assert "win rate of A" in judge("mine:best", "a.jsonl", "--against", "b.jsonl", "--limit", "5").out


def test_what_a_run_generated_is_compared(judge: Command, tmp_path: Path) -> None:
    row = {"policy": " The jokes were superb.", "against": " The jokes were dull.", "policy_tokens": 5}
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "generations.jsonl", [{"prompt": f"p{i}", **row} for i in range(5)])
    said = judge("sandbox", "mine/generations.jsonl", "--json")
    assert "runs/judge-mine/verdicts.jsonl" in said.err
    found = json.loads(said.out)
    assert (found["wins"], found["win_rate"], found["flipped"]) == (5, 1.0, 0.0)


def test_a_language_model_judges_and_a_second_time_costs_nothing(
    judge: Command, tmp_path: Path, scripted: Proxy
) -> None:
    write(tmp_path / "pairs.jsonl", sandbox_rows(20))
    name = f"endpoint:{scripted.url}"
    found = json.loads(judge(name, "pairs.jsonl", "--truth", "sandbox", "--json").out)
    assert found["judge"] == f"endpoint:{scripted.url}#scripted"
    assert (found["agreement"], found["flipped"], found["for_first"]["value"]) == (1.0, 0.0, 0.5)
    calls = len(scripted.passed)
    assert calls == 2 * found["pairs"]
    again = json.loads(judge(name, "pairs.jsonl", "--truth", "sandbox", "--json").out)
    assert again == found
    assert len(scripted.passed) == calls


def test_a_budget_that_is_used_up_keeps_what_there_is(judge: Command, tmp_path: Path, scripted: Proxy) -> None:
    write(tmp_path / "pairs.jsonl", sandbox_rows(20))
    words = (f"endpoint:{scripted.url}", "pairs.jsonl", "--concurrency", "1", "--max-calls")
    said = judge(*words, "7")
    assert said.code == 2
    assert said.err.startswith("error: the budget of 7 calls is used up")
    assert len(said.err.splitlines()) == 1
    assert len(scripted.passed) == 7
    assert judge(*words, "1000").code == 0
    assert len(scripted.passed) <= 40
    assert len({json.dumps(body) for body in scripted.passed}) == len(scripted.passed)


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
def test_killed_and_started_again_it_comes_to_the_same(tmp_path: Path, scripted: Proxy) -> None:
    rows = sandbox_rows(60)
    write(tmp_path / "pairs.jsonl", rows)
    scripted.delay = 0.03
    words = [sys.executable, "-W", "error", "-m", "preftune", "judge", f"endpoint:{scripted.url}", "pairs.jsonl"]
    words += ["--json", "--concurrency", "2"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(scripted.passed) < 30:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.2)
    scripted.delay = 0.0
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["pairs"] == 60
    questions = [json.dumps(body) for body in scripted.passed]
    assert len(questions) - len(set(questions)) <= 2  # those under way when it was killed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("sandbx", "pairs.jsonl"), "there is no judge 'sandbx'"),
        (("sandbox", "pair.jsonl"), "did you mean pairs.jsonl?"),
        (("sandbox", "a.jsonl"), "a.jsonl row 0 is no pair, expected chosen and rejected"),
        (("sandbox", "a.jsonl", "--against", "b.jsonl"), "b.jsonl has no answer (1 rows have no counterpart, 0 have"),
        (
            ("sandbox", "pairs.jsonl", "--against", "a.jsonl"),
            "pairs.jsonl row 0 is no answer, expected the columns prompt",
        ),
        (("sandbox", "a.jsonl", "--against", "a.jsonl", "--truth", "sandbox"), "give one of them"),
        (("gsm8k", "pairs.jsonl"), "which judge gsm8k cannot read"),
        (("gsm8k", "a.jsonl", "--against", "a.jsonl"), "has no right answer for judge gsm8k"),
        (("mine:none", "pairs.jsonl"), "mine has no function 'none'"),
        (("sandbox", "pairs.jsonl", "--rubric", "r.txt"), "--rubric is for a judge behind an endpoint"),
        (("sandbox", "pairs.jsonl", "-o", "file/deep"), "cannot write file/deep/verdicts.jsonl"),
        (("endpoint:http://127.0.0.1:9", "pairs.jsonl"), "does not say which models it has"),
        (("endpoint:http://127.0.0.1:9#m", "pairs.jsonl", "--rubric", "r.txt"), "cannot read rubric r.txt"),
        (("endpoint:http://me:pass@127.0.0.1:9#m", "pairs.jsonl"), "taken from the environment alone"),
    ],
)
def test_what_cannot_be_judged_is_one_sentence(
    words: tuple[str, ...], says: str, judge: Command, tmp_path: Path
) -> None:
    write(tmp_path / "pairs.jsonl", sandbox_rows(4))
    write(tmp_path / "a.jsonl", [{"prompt": "p", "response": "r"}])
    write(tmp_path / "b.jsonl", [])
    (tmp_path / "file").touch()
    if "b.jsonl" in words and "a.jsonl" in words:
        write(tmp_path / "b.jsonl", [{"prompt": "another", "response": "r"}])
        says = says.replace("1 rows", "2 rows")
    said = judge(*words)
    assert said.code == 2
    assert said.out == ""
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert "pass@" not in said.err


def test_conversations_are_read_as_text_and_rows_are_handed_on(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bye."},
    ]
    row = {"prompt": turns, "chosen": [{"role": "assistant", "content": "Bye!"}], "rejected": "No."}
    write(tmp_path / "pairs.jsonl", [row])
    (pair,) = labelled_pairs(str(tmp_path / "pairs.jsonl"))
    assert pair.prompt == "System: Be kind.\n\nUser: Hello?\n\nAssistant: Yes?\n\nUser: Bye."
    assert (pair.a, pair.b, pair.key) == ("Bye!", "No.", f"{tmp_path}/pairs.jsonl row 0")
    assert pair.row["prompt"] == turns
    write(tmp_path / "a.jsonl", [{"question": "1+1?", "response": "#### 2", "answer": "#### 2"}])
    write(tmp_path / "b.jsonl", [{"prompt": "1+1?", "completion": "#### 3"}])
    (pair,) = matched(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert (pair.prompt, pair.a, pair.b, pair.row["answer"]) == ("1+1?", "#### 2", "#### 3", "#### 2")


PAGE = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_works(judge: Command, tmp_path: Path, scripted: Proxy, made: Made) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    commands = [line.split() for block in blocks for line in block.splitlines() if line]
    assert len(commands) == 5
    (tmp_path / "mine.py").write_text(next(code for code in snippets() if "def shorter" in code))
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "reward").symlink_to(made("reward"))
    write(tmp_path / "pairs.jsonl", sandbox_rows(12))
    for name, text in (("new", " I loved it. The jokes were good."), ("old", " The jokes were weak.")):
        write(tmp_path / f"{name}.jsonl", [{"prompt": f"p{i}", "response": text} for i in range(4)])
    write(tmp_path / "runs/demo/generations.jsonl", [{"prompt": "p", "policy": "good", "against": "bad"}])
    for words in commands:
        assert words[:2] == ["preftune", "judge"]
        said = judge(*[word.replace("http://127.0.0.1:8000/v1", scripted.url) for word in words[2:]], "--limit", "4")
        assert said.code == 0, said.err


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_every_snippet_of_the_page_works(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(snippets()) == 3
    for code in snippets():
        exec(code.replace("http://127.0.0.1:8000/v1", server.url), {})
    assert (tmp_path / "calls.jsonl").read_text().count('"text"') == 4

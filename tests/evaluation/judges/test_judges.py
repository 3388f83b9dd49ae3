"""Each kind of judge, by its name on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation.runs import Made
from loopback import Body, Proxy, listening, saying

import preftune
from preftune.errors import PreftuneError
from preftune.evaluation.judges import Comparison, EndpointUse, open_judge
from preftune.evaluation.judges.base import Verdict
from preftune.evaluation.judges.function import by_function
from preftune.evaluation.judges.rubric import DEFAULT, REMINDER, SLOTS, filled, read_rubric, read_verdict
from preftune.sandbox.preferences import rows as sandbox_rows
from preftune.sandbox.world import true_reward

GOOD, BAD = " The jokes were superb.", " The jokes were awful."
ROWS = sandbox_rows(300)
QUICK = EndpointUse(retries=1, concurrency=4)


def compared(a: str, b: str, key: str = "row 0", **row: Any) -> Comparison:
    return Comparison(key, "A quiet comedy about two sisters.", a, b, row)


def preferences(name: str, comparisons: list[Comparison], **options: Any) -> list[float | None]:
    with open_judge(name, **options) as judge:
        return [verdict.preference for verdict in judge.verdicts(comparisons)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, in which a user's modules lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


# --- known truths -----------------------------------------------------------------------------------------------------


def test_the_sandbox_judges_by_true_reward() -> None:
    with open_judge("sandbox") as judge:
        found = judge.verdicts([compared(GOOD, BAD), compared(BAD, GOOD), compared(GOOD, GOOD)])
    assert [verdict.preference for verdict in found] == [1.0, 0.0, 0.5]
    assert found[0].scores == (true_reward(GOOD), true_reward(BAD))
    assert not any(verdict.flips for verdict in found)


def test_gsm8k_judges_by_the_final_number() -> None:
    right, other, wrong, none = "so 18\n#### 18", "#### $18.00", "#### 19", "eighteen"
    rows = [compared(right, wrong), compared(none, right), compared(right, other), compared(wrong, none)]
    for name in ("answer", "reference", "ground_truth", "chosen"):
        given = [Comparison(each.key, each.prompt, each.a, each.b, {name: "9 + 9\n#### 18"}) for each in rows]
        assert preferences("gsm8k", given) == [1.0, 0.0, 0.5, 0.5]
    with pytest.raises(PreftuneError, match="row 0 has no right answer for judge gsm8k: expected one of"):
        preferences("gsm8k", rows)
    with pytest.raises(PreftuneError, match="the right answer of row 0 is 'eighteen', which judge gsm8k cannot read"):
        preferences("gsm8k", [compared(right, wrong, answer="eighteen")])


# --- functions --------------------------------------------------------------------------------------------------------


def test_a_function_of_ones_own_scores(here: Path) -> None:
    (here / "mine.py").write_text(
        "def length(response):\n    return len(response)\n"
        "def wanted(prompt, response, row):\n    return response.count(row['word']) + prompt.count('comedy')\n"
        "def every(**given):\n    return sorted(given) == ['prompt', 'response', 'row']\n"
    )
    assert preferences("mine:length", [compared("aa", "a"), compared("a", "bb"), compared("a", "b")]) == [1, 0, 0.5]
    assert preferences("mine:wanted", [compared("x y", "x x", word="x")]) == [0.0]
    assert preferences("mine:every", [compared("x", "y")]) == [0.5]


def test_a_function_of_ones_own_compares_in_both_orders(here: Path) -> None:
    (here / "mine.py").write_text(
        "asked = []\n"
        "def better(a, b):\n    asked.append((a, b))\n    return 'a' if len(a) > len(b) else 'TIE'\n"
        "def first(prompt, a, b, row):\n    return 'A'\n"
        "def shy(a, b):\n    return None\n"
    )
    with open_judge("mine:better") as judge:
        found = judge.verdicts([compared("aa", "b"), compared("a", "b")])
    assert found == [Verdict(0.5, (1.0, 0.5)), Verdict(0.5, (0.5, 0.5))]
    assert sys.modules["mine"].asked == [("aa", "b"), ("b", "aa"), ("a", "b"), ("b", "a")]
    with open_judge("mine:first") as judge:
        (verdict,) = judge.verdicts([compared("aa", "b")])
    assert verdict == Verdict(0.5, (1.0, 0.0))
    assert verdict.flips
    assert preferences("mine:shy", [compared("aa", "b")]) == [None]


def test_a_task_of_ones_own_is_a_judge(here: Path) -> None:
    (here / "mine.py").write_text(
        "from preftune.data.builders import Task\n"
        "class Echo(Task):\n"
        "    def questions(self, source): return []\n"
        "    def prompt(self, question): return question.text\n"
        "    def instruction(self, question): return question.text\n"
        "    def check(self, question, response): return response == question.reference\n"
    )
    assert preferences("mine:Echo", [compared("x", "y", answer="x"), compared("y", "x", answer="x")]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        ("float('nan')", "judge mine:f gave nan on row 0, expected a finite number, or None for no verdict"),
        ("float('inf')", "judge mine:f gave the number inf on row 0"),
        ("'high'", "judge mine:f gave 'high' on row 0"),
        ("[1, 2]", "judge mine:f gave a list on row 0"),
        ("1 / 0", "judge mine:f failed on row 0 (ZeroDivisionError: division by zero)"),
    ],
)
def test_scores_that_are_no_numbers(returns: str, says: str, here: Path) -> None:
    (here / "mine.py").write_text(f"def f(response):\n    return {returns}\n")
    with pytest.raises(PreftuneError) as error:
        preferences("mine:f", [compared("x", "y")])
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def f(a, b): return 'left'", "judge mine:f gave 'left' on row 0, expected 'a', 'b' or 'tie'"),
        ("def f(a, b): return 1", "judge mine:f gave the number 1 on row 0, expected 'a'"),
        (
            "def f(answer): return 1",
            "judge mine:f takes the argument 'answer', expected a function of prompt, ",
        ),
        ("def f(a, b, c): return 'a'", "judge mine:f takes the argument 'c'"),
        ("def f(): return 1", "judge mine:f takes none of these"),
        ("f = 3", "mine has no function 'f'"),
        ("def ff(response): return 1", "mine has no function 'f'; did you mean ff?"),
        ("1 / 0", "judge mine:f: cannot import mine (ZeroDivisionError"),
        ("import no_such_module", "judge mine:f: cannot import mine (ModuleNotFoundError"),
    ],
)
def test_functions_that_are_no_judges(code: str, says: str, here: Path) -> None:
    (here / "mine.py").write_text(code + "\n")
    with pytest.raises(PreftuneError) as error:
        preferences("mine:f", [compared("x", "y")])
    assert says in str(error.value)


def test_numbers_of_all_kinds_are_scores() -> None:
    import numpy as np
    import torch

    for value in (True, 3, np.float32(0.5), np.int64(2), torch.tensor(1.5)):
        judge = by_function("f", lambda response, value=value: value if response == "x" else -1)
        assert judge.verdicts([compared("x", "y")])[0].preference == 1.0


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sandbx", "there is no judge 'sandbx', expected one of sandbox, gsm8k"),
        ("sandbx", "did you mean sandbox?"),
        ("", "there is no judge ''"),
        ("reward:", "reward: names no model, expected reward:RUN"),
        ("reward:sandbox", "sandbox is no reward model: name a run of bradley_terry"),
        ("reward:./nowhere", "nowhere"),
        ("endpoint:nowhere", "'nowhere' is no URL of an endpoint"),
        ("no_such_module:f", "cannot import no_such_module"),
    ],
)
def test_names_of_no_judge(name: str, says: str) -> None:
    with pytest.raises(PreftuneError) as error:
        open_judge(name)
    assert says in str(error.value)


def test_a_rubric_is_for_an_endpoint(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="--rubric is for a judge behind an endpoint, and sandbox is none"):
        open_judge("sandbox", rubric=tmp_path / "r.txt")


# --- reward models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory) -> preftune.Run:
    return preftune.train(
        "sandbox",
        ROWS,
        "bradley_terry",
        output=tmp_path_factory.mktemp("reward") / "run",
        quiet=True,
        train={"max_steps": 45},
        batch={"size": 32},
        optim={"learning_rate": 1e-2},
        evaluate={"samples": 0},
        config={"data": {"held_out": 0.1}},
    )


def test_a_reward_model_judges_as_it_was_trained_to(reward_run: preftune.Run) -> None:
    name = f"reward:{reward_run.path}"
    pairs = [Comparison(f"row {i}", row["prompt"], row["chosen"], row["rejected"], row) for i, row in enumerate(ROWS)]
    with open_judge(name) as judge:
        verdicts = judge.verdicts(pairs)
        turned = judge.verdicts([Comparison(each.key, each.prompt, each.b, each.a, each.row) for each in pairs])
    assert sum(verdict.preference == 1.0 for verdict in verdicts) / len(verdicts) > 0.65
    for verdict, other in zip(verdicts, turned, strict=True):
        assert other.scores == pytest.approx(verdict.scores[::-1], abs=1e-5)


def test_scores_are_those_that_transformers_gives(reward_run: preftune.Run) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = reward_run.path / "model"
    with open_judge(f"reward:{folder}") as by_folder, open_judge(f"reward:{reward_run.path}") as by_run:
        found = by_folder.verdicts([compared(GOOD, BAD)])[0].scores
        assert by_run.verdicts([compared(GOOD, BAD)])[0].scores == pytest.approx(found)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text, score in zip((GOOD, BAD), found, strict=True):
        ids = [*tokenizer.encode(compared("", "").prompt + text), tokenizer.eos_token_id]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits.item()
        assert score == pytest.approx(expected, abs=1e-5)


def test_a_run_with_adapters_is_a_judge_too(made: Made) -> None:
    with open_judge(f"reward:{made('reward-lora')}") as judge:
        verdict, other = judge.verdicts([compared(GOOD, BAD), compared(BAD, GOOD, "row 1")])
    assert len(verdict.scores) == 2
    assert other.scores == pytest.approx(verdict.scores[::-1], abs=1e-5)
    with pytest.raises(PreftuneError, match="is no reward model"):
        open_judge(f"reward:{made('dpo')}")


def test_what_a_reward_model_cannot_read(reward_run: preftune.Run) -> None:
    with pytest.raises(PreftuneError, match=r"cannot read row 0: .*<\|end\|>"):
        preferences(f"reward:{reward_run.path}", [compared("The cast <|end|> was good.", GOOD)])


def test_a_reward_model_scores_an_empty_answer_by_its_end_token(reward_run: preftune.Run) -> None:
    assert preferences(f"reward:{reward_run.path}", [compared("", GOOD), compared("", "")])[1] == 0.5


# --- language models behind endpoints ---------------------------------------------------------------------------------


def answers(question: str) -> tuple[str, str]:
    """The two answers in a question to the judge."""
    first = question.split("[Answer 1]\n")[1].split("\n[End of answer 1]")[0]
    second = question.split("[Answer 2]\n")[1].split("\n[End of answer 2]")[0]
    return first, second


def truthful(turns: list[Body]) -> str:
    first, second = (true_reward(text) for text in answers(turns[0]["content"]))
    return f"I see.\n\nVerdict: {'1' if first > second else '2' if first < second else 'tie'}"


def hasty(turns: list[Body]) -> str:
    return "Verdict: 1"


@pytest.fixture
def scripted() -> Iterator[Proxy]:
    with listening(saying(truthful)) as proxy:
        yield proxy


def test_a_language_model_is_asked_in_both_orders_greedily(scripted: Proxy) -> None:
    name = f"endpoint:{scripted.url}"
    with open_judge(name, use=QUICK) as judge:
        assert judge.name == f"endpoint:{scripted.url}#scripted"
        found = judge.verdicts([compared(GOOD, BAD), compared(BAD, GOOD, "row 1"), compared(GOOD, GOOD, "row 2")])
    assert [verdict.preference for verdict in found] == [1.0, 0.0, 0.5]
    assert [verdict.orders for verdict in found] == [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5)]
    assert "Verdict: 1" in found[0].said[0]
    assert "Verdict: 2" in found[0].said[1]
    bodies = [body for body in scripted.bodies if body]
    assert all(body["temperature"] == 0 for body in bodies)
    # row 1 is row 0 turned round, and row 2 is one question in both orders: no question is paid twice
    assert len(bodies) == 3


def test_a_judge_that_takes_the_first_one_flips() -> None:
    with listening(saying(hasty)) as proxy, open_judge(f"endpoint:{proxy.url}#scripted", use=QUICK) as judge:
        (verdict,) = judge.verdicts([compared(GOOD, BAD)])
    assert (verdict.preference, verdict.orders, verdict.flips) == (0.5, (1.0, 0.0), True)


def test_a_verdict_that_cannot_be_read_is_asked_for_again_and_then_given_up() -> None:
    def vague(turns: list[Body]) -> str:
        if len(turns) == 1:
            return "Answer 1 it is, I think."
        assert turns[1] == {"role": "assistant", "content": "Answer 1 it is, I think."}
        assert turns[2] == {"role": "user", "content": REMINDER}
        return truthful(turns) if "superb" in turns[0]["content"] else "As I said."

    with listening(saying(vague)) as proxy, open_judge(f"endpoint:{proxy.url}", use=QUICK) as judge:
        found = judge.verdicts([compared(GOOD, BAD), compared(" I liked it.", BAD, "row 1")])
        assert len([body for body in proxy.bodies if body]) == 8
    assert [verdict.preference for verdict in found] == [1.0, None]
    assert found[1].reason == "its last line was not of the form 'Verdict: 1', '2' or 'tie'"
    assert found[1].said == ("Answer 1 it is, I think.",) * 2


def test_one_comparison_that_the_endpoint_refuses_has_no_verdict(scripted: Proxy) -> None:
    scripted.faults = [None, (400, {}, {"error": {"message": "too long"}})]
    with open_judge(f"endpoint:{scripted.url}#scripted", use=EndpointUse(concurrency=1)) as judge:
        found = judge.verdicts([compared(GOOD, BAD), compared(" I hated it.", BAD, "row 1")])
    assert [verdict.preference for verdict in found] == [None, 1.0 if true_reward("I hated it.") > -1 else 0.5]
    assert found[0].reason == "status 400, too long"


def test_a_model_that_writes_no_verdicts_gives_none(server: Any) -> None:
    with open_judge(f"endpoint:{server.url}", use=QUICK) as judge:
        (verdict,) = judge.verdicts([compared(GOOD, BAD)])
    assert verdict.preference is None
    assert len(verdict.said) == 2


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("Verdict: 1", 1.0),
        ("because\nVerdict: 2\n\n", 0.0),
        ("verdict: TIE", 0.5),
        ("**Verdict: 2**", 0.0),
        ("**Verdict:** 1.", 1.0),
        ("Verdict: 1\nNo, wait.", None),
        ("Verdict: 3", None),
        ("Verdict: 1 or 2", None),
        ("The verdict: 1", None),
        ("Verdict: 12", None),
        ("1", None),
        ("", None),
    ],
)
def test_verdicts_are_read_strictly(said: str, means: float | None) -> None:
    assert read_verdict(said) == means


# --- rubrics ----------------------------------------------------------------------------------------------------------


def test_the_built_in_rubric_has_all_slots_and_fills_them_once() -> None:
    assert all(f"{{{slot}}}" in DEFAULT for slot in SLOTS)
    question = filled(DEFAULT, "say {second} {x}", "{prompt}", "\\1 {first}")
    assert "say {second} {x}" in question
    assert answers(question) == ("{prompt}", "\\1 {first}")


def test_a_rubric_of_ones_own(tmp_path: Path, scripted: Proxy) -> None:
    path = tmp_path / "rubric.txt"
    path.write_text(
        'Which is shorter? {"json": 1}\n{prompt}\n[Answer 1]\n{first}\n[End of answer 1]\n'
        "[Answer 2]\n{second}\n[End of answer 2]"
    )
    assert preferences(f"endpoint:{scripted.url}", [compared(GOOD, BAD)], rubric=path, use=QUICK) == [1.0]
    asked = scripted.passed[0]["messages"][0]["content"]
    assert asked.startswith('Which is shorter? {"json": 1}\nA quiet comedy')
    assert "Verdict: tie" in asked


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{prompt} {first}", "lacks the slot {second}: say where"),
        (b"no slots", "lacks the slots {prompt}, {first}, {second}"),
        (b"{prompt} {first} {second} {question}", "has the slot {question}, expected {prompt}, {first}, {second}"),
        (b"{prompt} {frist} {second}", "did you mean {first}?"),
        (b"\xff\xfe{prompt}", "not UTF-8 text"),
    ],
)
def test_rubrics_that_will_not_do(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_bytes(content)
    with pytest.raises(PreftuneError) as error:
        read_rubric(tmp_path / "rubric.txt")
    assert says in str(error.value)
    with pytest.raises(PreftuneError, match="cannot read rubric"):
        read_rubric(tmp_path)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_verdicts_are_kept_and_replayed(here: Path) -> None:
    code = "calls = []\ndef f(response):\n    calls.append(response)\n    return {}\n"
    (here / "mine.py").write_text(code.format("len(response)"))
    pairs = [compared("aa", "b"), compared("a", "bb", "row 1")]
    with open_judge("mine:f", here / "out") as judge:
        first = judge.verdicts(pairs)
    assert len(sys.modules["mine"].calls) == 4
    with open_judge("mine:f", here / "out") as judge:
        assert judge.verdicts(pairs) == first
        assert judge.verdicts([*pairs, compared("c", "dd", "row 2")])[:2] == first
    assert len(sys.modules["mine"].calls) == 6
    lines = [json.loads(line) for line in (here / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert [(line["judge"], line["key"], line["preference"]) for line in lines] == [
        ("mine:f", "row 0", 1.0),
        ("mine:f", "row 1", 0.0),
        ("mine:f", "row 2", 0.0),
    ]
    (here / "mine.py").write_text(code.format("-len(response)  # another judge now"))
    del sys.modules["mine"]
    with open_judge("mine:f", here / "out") as judge:
        assert [verdict.preference for verdict in judge.verdicts(pairs)] == [0.0, 1.0]


def test_verdicts_of_an_endpoint_survive_its_end(scripted: Proxy, tmp_path: Path) -> None:
    name, pairs = (
        f"endpoint:{scripted.url}#scripted",
        [compared(GOOD, BAD), compared(BAD, " The ending was good.", "row 1")],
    )
    scripted.faults, scripted.always = [None, None, None], 500
    with (
        open_judge(name, tmp_path, use=EndpointUse(retries=0, concurrency=1)) as judge,
        pytest.raises(PreftuneError, match="what was answered is kept"),
    ):
        judge.verdicts(pairs)
    scripted.always = None
    with open_judge(name, tmp_path, use=QUICK) as judge:
        judge.verdicts(pairs)
    assert len(scripted.passed) == 4
    scripted.always = 500
    with open_judge(name, tmp_path, use=EndpointUse(retries=0)) as judge:
        assert [verdict.preference for verdict in judge.verdicts(pairs)] == [1.0, 0.0]


def test_a_judge_that_cannot_judge_is_not_paid_for_everything(tmp_path: Path) -> None:
    pairs = [compared(f"{i}", "x", f"row {i}") for i in range(200)]
    with (
        listening(saying(lambda turns: "Well.")) as proxy,
        open_judge(f"endpoint:{proxy.url}", tmp_path, use=QUICK) as judge,
    ):
        with pytest.raises(PreftuneError, match="gave no verdict on any of 64 comparisons; on row 0, its last line"):
            judge.verdicts(pairs)
        assert len([body for body in proxy.bodies if body]) == 4 * 64  # both orders, and a reminder each


def test_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "verdicts.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(PreftuneError, match=r"verdicts.jsonl line 1 is no verdict that preftune kept"):
        open_judge("sandbox", tmp_path)

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from preftune.cli import main
from preftune.data import records, sources
from preftune.policy.scratch import ScratchConfig, build

WORDS = ["apple", "river", "stone", "cloud", "lamp", "seven"]
TASK = '''
from preftune.data.builders import Question, Task
from preftune.data.sources import rows

class EvenLength(Task):
    """Answers of an even number of characters are right."""

    def questions(self, source):
        for where, row in rows(source):
            yield Question(str(where), row["word"], "even")

    def prompt(self, question):
        return f"Word: {question.text}\\n"

    def instruction(self, question):
        return f"Say something about {question.text}."

    def check(self, question, response):
        return len(response) % 2 == 0
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a task of their own, its questions, and a model that ends its answers after some 16 tokens."""
    path = tmp_path_factory.mktemp("user")
    (path / "my_tasks.py").write_text(TASK)
    (path / "words.jsonl").write_text("".join(json.dumps({"word": word}) + "\n" for word in WORDS))
    model, tokenizer = build("gpt2", WORDS, ScratchConfig(vocab_size=270, hidden_size=32, layers=1, heads=2), seed=0)
    with torch.no_grad():
        # The last norm's bias gives every position a part of its own, by which the end token is likelier than others.
        model.transformer.ln_f.bias[-1] = 1
        model.transformer.wte.weight[:, -1] = 0
        model.transformer.wte.weight[tokenizer.eos_token_id, -1] = 2.8
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    return path


@pytest.fixture
def cli(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs `preftune pairs` in the user's folder; gives the exit code and what stands on standard error."""
    monkeypatch.chdir(folder)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["preftune", "pairs", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return run


def preftune(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, in a process of its own."""
    command = [sys.executable, "-c", "from preftune.cli import main; main()", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_pairs_of_a_users_own_task_and_model(folder: Path) -> None:
    words = ["pairs", "my_tasks:EvenLength", "--model", "model", "--data", "words.jsonl", "--out", "pairs.jsonl"]
    done = preftune(folder, *words, "-n", "6", "--max-new-tokens", "48")

    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert f"{len(rows)} pairs from" in done.stdout
    assert "wrote pairs.jsonl" in done.stdout
    found = list(records.records(sources.rows(folder / "pairs.jsonl")))
    assert len(found) == len(rows) >= len(WORDS)
    assert {row["prompt"] for row in rows} <= {f"Word: {word}\n" for word in WORDS}
    for row in rows:
        assert len(row["chosen"]) % 2 == 0
        assert len(row["rejected"]) % 2 == 1


def test_chat_asks_in_the_template_and_writes_conversations(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.pairs import write_pairs

    monkeypatch.chdir(folder)
    out = folder / "chat.jsonl.gz"
    options = {"n": 8, "max_new_tokens": 64, "chat": True, "quiet": True}
    line = write_pairs("my_tasks:EvenLength", "model", "words.jsonl", out, **options)
    found = list(records.records(sources.rows(out)))
    assert line.startswith(f"{len(found)} pairs from")
    assert found[0].prompt == (records.Message("user", "Say something about apple."),)
    first = out.read_bytes()
    write_pairs("my_tasks:EvenLength", "model", "words.jsonl", out, **options)
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gsm8", "-m", "model"], "there is no task 'gsm8'; known: gsm8k; did you mean gsm8k?"),
        (["nowhere:Task", "-m", "model"], "cannot import nowhere"),
        (["my_tasks:EvenLength", "-m", "model"], "EvenLength has no source of its own"),
        (["my_tasks:EvenLength", "-m", "model", "-d", "word.jsonl"], "did you mean words.jsonl?"),
        (["my_tasks:EvenLength", "-m", "model", "-d", "words.jsonl", "-n", "1"], "n must be at least 2, got 1"),
        (
            ["my_tasks:EvenLength", "-m", "model", "-d", "words.jsonl", "--temperature", "0"],
            "temperature must be above 0, got 0.0",
        ),
        (["my_tasks:EvenLength", "-m", "model", "-d", "words.jsonl", "-o", "x.csv"], "must end in .jsonl"),
        (["my_tasks:EvenLength", "-m", "./modl", "-d", "words.jsonl"], "model folder ./modl does not exist"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    words: list[str], said: str, cli: Callable[..., tuple[int, str]]
) -> None:
    code, message = cli(*words)
    assert code == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert said in message

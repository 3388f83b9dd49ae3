"""`preftune prompts train` as its users meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune import cli, yaml_tree
from preftune.prompting.training import Trained

EXAMPLE = Path(__file__).parents[3] / "examples" / "prompts.yaml"
SHORT = (
    "train.max_steps=1",
    "train.device=cpu",
    "train.check_memory=false",
    "evaluate.samples=0",
    "batch.size=8",
    "-q",
)
Said = tuple[int, str, str]


@pytest.fixture
def preftune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs `preftune prompts train ...` in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["preftune", "prompts", "train", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return run


def test_the_example_trains_in_rounds(preftune, world, tmp_path) -> None:
    data = ("--model", str(world / "base" / "model"), "--data", str(world / "pairs.jsonl"), "--out", "run")
    tiny = ("data.held_out=0.2", "prompts.max_new_tokens=8", "prompts.rounds=2", "optim.learning_rate=1e-4")
    code, out, err = preftune(str(EXAMPLE), *data, *tiny, *SHORT)
    assert code == 0, err
    assert "round 1 of 2: " in err
    assert "optimiser: run" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [line["discriminator"]["name"] for line in lines] == ["self", "self"]
    assert yaml_tree.read(tmp_path / "run" / "prompts.yaml")["objective"]["tau"] == 0.1

    code, out, _ = preftune("--resume", "run", "-q")
    assert (code, "optimiser: run" in out) == (0, True)


def test_a_plain_run_needs_a_model_and_data_alone(preftune, world) -> None:
    code, out, _ = preftune(
        "-m", str(world / "base" / "model"), "-d", str(world / "pairs.jsonl"), "--out", "run", *SHORT
    )
    assert code == 0
    assert "optimiser: run" in out
    assert yaml_tree.read(Path("run/config.yaml"))["objective"]["name"] == "dpo"


def test_adapters_are_trained_where_they_are_wanted(preftune, world) -> None:
    words = ("-m", str(world / "base" / "model"), "-d", str(world / "pairs.jsonl"), "--out", "run", "--lora", *SHORT)
    assert preftune(*words)[0] == 0
    assert Path("run/model/adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to train on: give --data"),
        (("pairs.jsonl",), "pairs.jsonl is data and no config file"),
        (("--data", "pairs.jsonl", "prompts.rounds=-1"), "prompts.rounds on the command line is the number -1"),
        (("--data", "pairs.jsonl", "prompts.discriminator=nobody", "prompts.rounds=1"), "there is no judge 'nobody'"),
        (("--data", "none.jsonl", "--model", "sandbox"), "none.jsonl"),
        (("--resume", "run", "--data", "x"), "so --data has no place beside it"),
        (("--resume", "run", "my.yaml"), "so my.yaml has no place beside it"),
        (("--resume", "run"), "run holds no optimiser"),
    ],
)
def test_bad_input_gets_one_sentence(preftune, world, tmp_path, words, said) -> None:
    (tmp_path / "pairs.jsonl").write_text((world / "pairs.jsonl").read_text())
    code, _, err = preftune(*words)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_page_is_written_anew(trained: Trained, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["preftune", "report", str(trained.path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.replace("\n", "").endswith("report.html")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from preftune import cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == 0

"""The ways into preftune, each as a user takes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

HEAVY = ("torch", "transformers", "pydantic", "numpy", "yaml", "datasets", "plotly", "openai")
COMMANDS = ("train", "sft", "init", "demo", "pairs", "report", "judge", "serve", "version")
QUICK = ("train.max_steps=2", "evaluate.samples=0")
MAIN = ("-c", "from preftune.cli import main; main()")


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def cpu_seconds(*words: str) -> float:
    """CPU time of a command, the least of a few tries: other work on the machine inflates it."""
    import resource
    import subprocess

    tries = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        tries.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if tries[-1] < 0.2:
            break
    return min(tries)


def test_help_and_import_are_light(shell) -> None:
    loaded = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert shell("-c", f"import preftune; preftune.__version__; {loaded}").out.strip() == "[]"
    asked = f"from preftune.cli import main\ntry: main()\nexcept SystemExit: pass\n{loaded}"
    assert shell("-c", asked, "--help").out.splitlines()[-1] == "[]"


def test_help_and_import_are_quick() -> None:
    assert cpu_seconds("-c", "import preftune") < 0.2
    assert cpu_seconds(*MAIN, "--help") < 0.3


def test_help_names_every_command(preftune) -> None:
    said = preftune("--help")
    assert said.code == 0
    assert all(f" {command} " in said.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, preftune) -> None:
    said = preftune(command, "--help")
    assert said.code == 0
    assert f"preftune {command}" in said.out
    assert len(said.out.splitlines()) > 3


def test_python_m_preftune_is_the_same_program(shell) -> None:
    from preftune import __version__

    assert shell("-m", "preftune", "version").out.strip() == __version__
    assert shell("-m", "preftune", "train").code == 2


@pytest.mark.slow
def test_train_needs_no_yaml_and_learns_with_its_default_learning_rate(shell, tmp_path: Path) -> None:
    """Both are built in: 100 steps of 8 pairs. A fifth of the epoch that a user gets without max_steps."""
    said = shell(*MAIN, "train", "--model", "sandbox", "--data", "sandbox", "-q", "train.max_steps=100")

    assert said.code == 0, said.err
    assert said.err == "", "quiet means quiet"
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("dpo-")
    for line in (
        f"model:  {folder.relative_to(tmp_path)}/model",
        f"report: {folder.relative_to(tmp_path)}/report.html",
    ):
        assert line in said.out.splitlines()
    after = summary(folder)["after"]
    assert after["preference_accuracy_ci95"][0] > 0.5
    assert after["margin"] > 0


def test_lora_and_overrides_and_quoting(preftune, pairs_file: Path, tmp_path: Path) -> None:
    """Adapters keep the fields given for them, and a folder may have a name that YAML takes for a number."""
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "train.jsonl").write_text(pairs_file.read_text())
    words = ("--model", "sandbox", "--data", "2024", "--lora", "model.lora.r=3", "--out", "true", "-q", *QUICK)

    said = preftune("train", *words)

    assert said.code == 0, said.err
    adapter = json.loads((tmp_path / "true" / "model" / "adapter_config.json").read_text())
    assert adapter["r"] == 3
    assert not (tmp_path / "true" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(("given", "rank"), [("lora: {r: 5}", 5), ("lora: null", 16), ("layout: auto", 16)])
def test_lora_keeps_what_the_file_says_of_it(given: str, rank: int, preftune, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"model:\n  path: sandbox\n  {given}\ndata: {{path: {pairs_file}}}\n")

    assert preftune("train", "c.yaml", "--lora", "--out", "r", "-q", *QUICK).code == 0
    assert json.loads((tmp_path / "r" / "model" / "adapter_config.json").read_text())["r"] == rank


def test_objective_by_option_with_a_field_of_its_own(preftune, pairs_file: Path, tmp_path: Path) -> None:
    words = ("--model", "sandbox", "--data", str(pairs_file), "--out", "r", "-q", *QUICK)

    assert preftune("train", *words, "--objective", "ipo", "objective.tau=0.5").code == 0
    written = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert written["objective"] == {"name": "ipo", "weight": 1.0, "tau": 0.5, "average": "sum"}
    assert summary(tmp_path / "r")["objective"] == "ipo"


def test_init_writes_a_config_that_trains(preftune, pairs_file: Path, tmp_path: Path) -> None:
    said = preftune("init", "mine.yaml")
    assert said.code == 0
    assert "preftune train mine.yaml" in said.out

    text = (tmp_path / "mine.yaml").read_text()
    assert "\n  path: null\n" in text, "the data"
    (tmp_path / "mine.yaml").write_text(text.replace("\n  path: null\n", f"\n  path: {pairs_file}\n", 1))

    said = preftune("train", "mine.yaml", "output.path=r", "-q", *QUICK)
    assert said.code == 0, said.err
    assert summary(tmp_path / "r")["steps"] == 2
    assert preftune("init", "mine.yaml").code == 2, "no file is overwritten"


def test_a_weighted_mix_in_yaml(preftune, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(
        f"model: {{path: sandbox}}\ndata: {{path: {pairs_file}}}\noutput: {{path: mix}}\n"
        "objective:\n  - {name: dpo, beta: 0.2}\n  - {name: sft, weight: 0.5}\n"
    )

    assert preftune("train", "mix.yaml", "-q", *QUICK, "objective.1.weight=0.25").code == 0
    found = summary(tmp_path / "mix")
    assert found["objective"] == "dpo+sft"
    start = found["before"]
    # -log sigmoid(0) of the pairs, and a quarter of the chosen responses' loss per token
    assert start["loss"] == pytest.approx(0.693147 - 0.25 * start["chosen_logp_per_token"], abs=1e-4)
    assert start["preference_accuracy"] == 0.5


def test_sft_trains_on_demonstrations_and_on_chosen_responses(
    preftune, rows: list[dict[str, str]], pairs_file: Path, tmp_path: Path
) -> None:
    shown = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    (tmp_path / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
    losses = []
    for data in ("shown.jsonl", str(pairs_file)):
        words = ("--model", "sandbox", "--data", data, "--out", "r", "output.overwrite=true", "-q", *QUICK)
        assert preftune("sft", *words).code == 0
        losses.append([summary(tmp_path / "r")[when]["loss"] for when in ("before", "after")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "the same responses"
    assert losses[0][1] < losses[0][0]


def test_an_objective_of_ones_own_from_the_current_folder(preftune, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "own_loss.py").write_text(
        "from dataclasses import dataclass\n"
        "from torch.nn.functional import relu\n"
        "from preftune.objectives import PairObjective\n\n"
        "@dataclass(frozen=True)\n"
        "class Hinge(PairObjective):\n"
        '    """Hinge on the difference of log-ratios."""\n\n'
        "    slack: float = 1.0\n\n"
        "    def pair_loss(self, pairs):\n"
        "        return relu(self.slack - pairs.delta_E)\n\n"
        "    def reward(self, ratio, length):\n"
        "        return ratio\n"
    )
    words = ("--model", "sandbox", "--data", str(pairs_file), "-q", *QUICK)

    said = preftune("train", *words, "--out", "r", "--objective", "own_loss:Hinge", "objective.slack=2.0")

    assert said.code == 0, said.err
    assert summary(tmp_path / "r")["before"]["loss"] == pytest.approx(2.0)
    said = preftune("train", *words, "--out", "s", "--objective", "own_loss:Hinges")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "did you mean Hinge?" in said.err


def test_report_writes_the_page_anew(preftune, run_folder: Path) -> None:
    before = (run_folder / "report.html").read_text()
    (run_folder / "report.html").unlink()

    said = preftune("report", str(run_folder))

    assert said.code == 0
    assert said.out.split() == [str(run_folder / "report.html")]
    assert (run_folder / "report.html").read_text() == before


def test_gpt2_with_a_table_of_positions_reads_and_writes_within_it(preftune, pairs_file: Path, tmp_path: Path) -> None:
    """Nothing longer than the model's positions is trained on or sampled."""
    sizes = ("hidden_size=16", "layers=1", "heads=2", "vocab_size=300", "context=70")
    scratch = [f"model.scratch.{size}" for size in sizes]

    said = preftune(
        "train", "-m", "scratch:gpt2", "-d", str(pairs_file), "-o", "r", "-q", "train.max_steps=1", *scratch
    )

    assert said.code == 0, said.err
    messages = " ".join(summary(tmp_path / "r")["messages"])
    assert "longer than max_length=70 tokens" in messages
    assert "sampled answers are cut at" in messages
    with safe_open(tmp_path / "r" / "model" / "model.safetensors", "pt") as weights:
        assert list(weights.get_slice("transformer.wpe.weight").get_shape()) == [70, 16]

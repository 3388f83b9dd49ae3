import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch import Tensor

from preftune import yaml_tree
from preftune.config import RunConfig
from preftune.objectives import registry
from preftune.policy.loading import LoraConfig
from preftune.policy.scratch import ScratchConfig, build
from preftune.prompting.config import PromptsRunConfig
from preftune.training.optim import OptimConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "accelerate")
DEMO = EXAMPLES.parents[1] / "shared" / "data" / "dpo_en_demo.json"
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
Cli = Callable[..., CompletedProcess[str]]


def config_of(path: Path) -> RunConfig:
    kind = PromptsRunConfig if "prompts" in yaml_tree.read(path) else RunConfig
    return yaml_tree.load(kind, path, [], tagged=("objective",))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_there_are_recipes() -> None:
    assert {path.name for path in RECIPES} >= {"ipo-qlora.yaml", "dpo.yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_a_config(path: Path) -> None:
    config = config_of(path)
    assert registry.terms(config.objective)
    assert config.data.path is not None


def test_every_line_of_a_recipe_with_a_value_has_a_comment() -> None:
    for path in RECIPES:
        for line in path.read_text().splitlines():
            value = line.partition(":")[2]
            opens_a_block = not value.strip()
            assert line.startswith("#") or opens_a_block or "#" in value, f"{path.name}: {line}"


def test_the_qlora_recipe_is_what_its_name_says() -> None:
    config = config_of(EXAMPLES / "ipo-qlora.yaml")
    assert config.objective["name"] == "ipo"
    assert config.model.quantize == "4bit"
    assert config.model.dtype == "auto"
    assert config.model.gradient_checkpointing
    assert config.model.rope_scaling
    assert config.model.lora == LoraConfig(
        r=16, alpha=16, dropout=0.0, bias="none", targets=list(config.model.lora.targets)
    )
    assert set(config.model.lora.targets) == PROJECTIONS
    assert config.optim == OptimConfig(learning_rate=5e-5, weight_decay=0.01, schedule="cosine", warmup_ratio=0.1)
    assert config.train.epochs == 3
    assert config.batch.size == 8
    assert config.evaluate.every == config.output.save_every
    assert config.output.keep_last == 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and 24 pairs."""
    path = tmp_path_factory.mktemp("tiny")
    colours = ["red", "green", "blue", "white"]
    rows = [
        {"prompt": f"The {thing} is\n", "chosen": f"{colour} and bright.", "rejected": f"{colour}, and it is dull."}
        for thing in ("house", "river", "stone", "cloud", "lamp", "door")
        for colour in colours
    ]
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ScratchConfig(vocab_size=280, hidden_size=64, layers=2, heads=2, context=64)  # 4-bit blocks hold 64
    model, tokenizer = build("llama", (text for row in rows for text in row.values()), sizes, seed=0)
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    return path


def train_in_miniature(cli: Cli, tiny: Path, out: Path, *overrides: str) -> dict[str, Any]:
    """The QLoRA recipe on a tiny model, for three steps; gives the summary."""
    words = [f"model.path={tiny / 'model'}", f"data.path={tiny / 'pairs.jsonl'}", "data.held_out=0.25"]
    often = ["train.max_steps=3", "output.save_every=1", "evaluate.every=1", "optim.learning_rate=1e-2"]
    done = cli("train", str(EXAMPLES / "ipo-qlora.yaml"), "--out", str(out), *words, *often, *overrides)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "summary.json").read_text())


def every_adapter_has_learned(weights: dict[str, Tensor]) -> bool:
    """True if gradients reached every layer: B starts at zero."""
    return all(bool(weight.any()) for name, weight in weights.items() if "lora_B" in name)


def test_the_qlora_recipe_trains_in_miniature(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = train_in_miniature(cli, tiny, out, "model.quantize=none")

    assert summary["objective"] == "ipo"
    assert summary["steps"] == 3
    assert summary["before"]["preference_accuracy"] == 0.5
    assert summary["before"]["loss"] == pytest.approx(25, abs=1e-3)  # (0 - 1 / (2 * 0.1))^2
    assert summary["after"]["loss"] < 24
    assert summary["best"]["metric"] == "preference_accuracy"
    kept = {2, 3} | ({summary["best"]["step"]} if summary["best"]["folder"] != "model" else set())
    assert {path.name for path in (out / "checkpoints").iterdir()} == {f"step-{step:06d}" for step in kept}
    for folder in (out / "model", *(out / "checkpoints").iterdir()):
        weights = load_file(folder / "adapter_model.safetensors")
        trained = {name.split(".lora_")[0].rpartition(".")[2] for name in weights}
        assert trained == PROJECTIONS
        assert len(weights) == 2 * 2 * len(PROJECTIONS)  # A and B, two layers
        assert every_adapter_has_learned(weights)
    adapter = json.loads((out / "model" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"], adapter["bias"]) == (16, 16, 0.0, "none")
    steps = [line["step"] for line in lines_of(out / "metrics.jsonl") if line["kind"] == "eval"]
    assert steps == [0, 1, 2, 3]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"]["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0}


def test_the_ppo_recipe_learns_from_a_reward_model(cli: Cli, tmp_path: Path) -> None:
    """With the reward model that its first lines train; both in little."""
    judge = ["--model", "sandbox", "--data", "sandbox", "--objective", "bradley_terry", "--out", "runs/reward"]
    assert cli("train", *judge, "train.max_steps=2", "evaluate.samples=0", "data.limit=64").returncode == 0
    little = ["online.rounds=2", "online.prompts=8", "online.held_out=4", "online.max_new_tokens=12", "batch.size=4"]
    words = ["--out", "run", "online.judge=reward:runs/reward", "data.limit=64", "evaluate.samples=0", *little]
    done = cli("train", str(EXAMPLES / "ppo.yaml"), *words)
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / "run" / "metrics.jsonl")
    rounds = [line for line in lines if line["kind"] == "round"]
    assert [line["kl_coefficient"] for line in rounds] == [0.3, 0.3]
    assert rounds[1]["value"] != 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2 * 2 * 2


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_the_qlora_recipe_trains_on_a_4_bit_base(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = train_in_miniature(cli, tiny, out)
    assert summary["before"]["preference_accuracy"] == 0.5
    assert summary["after"]["loss"] < 24
    assert every_adapter_has_learned(load_file(out / "model" / "adapter_model.safetensors"))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_4_bit_base_without_bitsandbytes_is_refused_in_one_sentence(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    words = [f"model.path={tiny / 'model'}", f"data.path={tiny / 'pairs.jsonl'}", "data.held_out=0.25"]
    done = cli("train", str(EXAMPLES / "ipo-qlora.yaml"), "--out", str(tmp_path / "run"), *words)
    assert done.returncode == 2
    assert "model.quantize=4bit needs bitsandbytes" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_dpo_recipe_runs_as_it_lies(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", str(EXAMPLES / "dpo.yaml"), "train.max_steps=4", "--out", "run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["before"]["preference_accuracy"] == 0.5
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not DEMO.is_file(), reason="dpo_en_demo.json does not lie beside the repository")
def test_twenty_steps_on_real_conversations_as_they_lie(cli: Cli, tmp_path: Path) -> None:
    sizes = [f"model.scratch.{key}" for key in ("vocab_size=1024", "hidden_size=64", "layers=2", "heads=2")]
    rest = ["train.max_steps=20", "batch.size=4", "data.held_out=0.05", "evaluate.samples=1"]
    done = cli(
        "train", "--model", "scratch:qwen3", "--data", str(DEMO), "--out", "run", *sizes, *rest, "train.log_every=1"
    )

    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    losses = [line["loss"] for line in lines_of(run / "metrics.jsonl") if line["kind"] == "train"]
    assert len(losses) == 20
    assert all(0 < loss < 5 for loss in losses)
    assert json.loads((run / "summary.json").read_text())["steps"] == 20
    for name in ("config.yaml", "manifest.json", "samples.jsonl", "report.html", "model/model.safetensors"):
        assert (run / name).stat().st_size > 0

"""Whatever is wrong ends in one clear sentence and exit code 2, as early as it shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel

from preftune import train
from preftune.errors import PreftuneError
from preftune.policy.loading import built_in_folder

UNTRAINED = "nothing was trained yet, so look at the objective's settings and at the weights of its rows"

Row = dict[str, Any]
Command = Callable[..., Any]


def copy_of_base(folder: Path) -> Path:
    shutil.copytree(built_in_folder(), folder)
    return folder


def refused(said: Any, *parts: str) -> None:
    """One sentence, notes apart, and it says this."""
    assert said.code == 2, said
    assert said.out == ""
    errors = [line for line in said.err.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1, said.err
    assert errors[0].startswith("error: ")
    for part in parts:
        assert part in said.err


@pytest.fixture
def unreadable_model(tmp_path: Path) -> str:
    """Weights that cannot be read: whoever loads this model fails with a sentence about it."""
    folder = copy_of_base(tmp_path / "unreadable")
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    return str(folder)


# --- before the model is loaded: the sentence is about something else, though the model cannot be read ----------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["optim.learning_rat=1e-5"], ["unknown key optim.learning_rat", "did you mean optim.learning_rate?"]),
        (["learning_rate=1e-5"], ["unknown key learning_rate", "did you mean optim.learning_rate?"]),
        (["objective.beta=0"], ["beta must be finite and > 0"]),
        (["objective.beta=-1"], ["beta must be finite and > 0"]),
        (["objective.beta=.nan"], ["beta must be finite and > 0"]),
        (["--objective", "ipo", "objective.tau=0"], ["tau must be finite and > 0"]),
        (["objective.tau=0.1"], ["objective dpo has no field tau; known: beta, label_smoothing"]),
        (["--objective", "ipoo"], ["unknown objective 'ipoo'; did you mean ipo?"]),
        (["--objective", "no_such_file:Loss"], ["there is no module no_such_file in the current folder"]),
        (["objective=[]"], ["the list of objectives is empty"]),
        (["objective={name: dpo, weight: -1}"], ["weight must be a finite number > 0"]),
        (["batch.size=many"], ["batch.size on the command line is the text 'many', expected an integer"]),
        (["batch.size=4", "batch.tokens=100"], ["size and tokens both say how large a batch is"]),
        (["optim.learning_rate=-1"], ["optim.learning_rate", "is the number -1, expected a number greater than 0"]),
        (["optim.betas=[0.9, 1.0]"], ["betas must be in [0, 1)"]),
        (["optim.name=paged_adamw", "train.device=cpu"], ["optim.name=paged_adamw pages moments", "set it to adamw"]),
        (["optim.warmup_steps=3", "optim.warmup_ratio=0.2"], ["both say how long the warmup is"]),
        (["train.epochs=.inf"], ["train.epochs", "expected a finite number"]),
        (["train.max_steps=0"], ["train.max_steps", "greater than or equal to 1"]),
        (["data.rendering.max_length=1"], ["data.rendering.max_length", "greater than or equal to 2"]),
        (["data.layout=nonsense"], ["there is no layout 'nonsense'; known layouts: "]),
        (["data.held_out=1.5"], ["cannot hold out 1.5 of 96 records"]),
        (["data.held_out_path=none.jsonl"], ["none.jsonl does not exist"]),
        (["data.split=test"], ["has no splits, but split 'test' was asked for"]),
        (["model.lora.r=0"], ["model.lora.r", "greater than or equal to 1"]),
        (["model.dtype=fp16"], ["model.dtype=fp16 would train weights in fp16", "train.precision=fp16"]),
        (["model.dtype=fp16", "model.lora.bias=all"], ["model.dtype=fp16 would train biases in fp16"]),
        (["model.scratch.vocab_size=1000000000000"], ["model.scratch.vocab_size", "less than or equal to 1000000"]),
        (["model.scratch.hidden_size=1000000000000"], ["model.scratch.hidden_size", "less than or equal to 65536"]),
        (["model.scratch.layers=1000000000000"], ["model.scratch.layers", "less than or equal to 256"]),
        (["model.scratch.heads=1000000000000"], ["model.scratch.heads", "less than or equal to 65536"]),
        (["model.scratch.context=1000000000000"], ["model.scratch.context", "less than or equal to 10000000"]),
        (["model.quantize=4bit"], ["model.quantize=4bit freezes the weights", "add model.lora"]),
        (["output.trackers=[wandb_]"], ["output.trackers names wandb_, which is not installed"]),
        (["output.trackers=wandb"], ["output.trackers", "expected a list"]),
        (["reference.path=./none"], ["model folder ./none does not exist"]),
        (["model.path.sub=1"], ["model.path", "which has no keys"]),
        (["seed"], ["there is no config file seed"]),
        (["one.yaml", "two.yaml"], ["one config file at a time, got one.yaml and two.yaml"]),
        (["=1"], ["the override '=1' is not of the form key.sub=value"]),
        (["output.path=${oc.env:HOME}"], ["nothing is interpolated"]),
    ],
)
def test_a_bad_config_is_refused_before_the_model_is_loaded(
    words: list[str], parts: list[str], preftune: Command, pairs_file: Path, unreadable_model: str
) -> None:
    said = preftune("train", "--model", unreadable_model, "--data", str(pairs_file), "-q", *words)

    refused(said, *parts)
    assert not Path("runs").exists()


PAIR = {"prompt": "A strange drama about two brothers.", "chosen": " Good.", "rejected": " Bad."}


@pytest.mark.parametrize(
    ("command", "rows", "parts"),
    [
        ("train", [{"a": 1}], ["d.jsonl row 0: the columns a fit no known layout, expected those of one of "]),
        ("train", [], ["0 rows in d.jsonl, expected at least one example"]),
        ("train", [{"prompt": "a", "completion": "b"}], ["objective dpo learns from pairs", "has demonstrations"]),
        (
            "train",
            [{"prompt": "a", "completion": "b", "label": True}],
            ["objective dpo learns from pairs", "has judged responses"],
        ),
        ("sft", [{"prompt": "a", "completion": "b", "label": True}], ["objective sft learns from demonstrations"]),
        ("train", [PAIR, {**PAIR, "chosen": None}], ["d.jsonl row 1: chosen is null, expected text"]),
        ("train", [PAIR, {**PAIR, "chosen": 3}], ["d.jsonl row 1: chosen is the number 3, expected text"]),
        (
            "train",
            [PAIR, {"prompt": "a", "chosen": "b"}],
            ["d.jsonl row 1: rejected is missing, expected it in every row"],
        ),
        ("train", [{**PAIR, "weight": float("nan")}], ["d.jsonl row 0: weight is the number nan"]),
        ("train", [{**PAIR, "weight": -1}], ["d.jsonl row 0: weight is the number -1"]),
        ("train", [{**PAIR, "confidence": 2}], ["d.jsonl row 0: confidence is the number 2"]),
        ("train", [{**PAIR, "rejected": " Good."}], ["chosen and rejected are identical", "d.jsonl row 0"]),
        ("train", [PAIR], ["cannot hold out 1 of 1 records by prompt"]),
    ],
)
def test_bad_data_is_refused_before_the_model_is_loaded(
    command: str, rows: list[Row], parts: list[str], preftune: Command, unreadable_model: str
) -> None:
    Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # the kind of data shows without a held-out side; one pair alone cannot be split
    words = [] if rows == [PAIR] else ["data.held_out=0.0"]

    refused(preftune(command, "-m", unreadable_model, "-d", "d.jsonl", "-q", *words), *parts)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("none.yaml", None, ["there is no config file none.yaml; `preftune init` writes one"]),
        ("c.yaml", "model: {path: [", ["c.yaml is not valid YAML", "line 1"]),
        ("c.yaml", "- a\n- b\n", ["c.yaml holds a list, expected a mapping"]),
        ("c.yaml", "model: {path: '${oc.env:HOME}'}\n", ["model.path in c.yaml is ${oc.env:HOME}", "secrets"]),
        ("c.yaml", "modell: {path: sandbox}\n", ["unknown key modell in c.yaml; did you mean model?"]),
        ("c.yaml", "model: sandbox\n", ["model in c.yaml is the text 'sandbox', expected a mapping"]),
        ("c.yaml", "seed: yes\n", ["seed in c.yaml is the text 'yes', expected an integer"]),
        ("c.yaml", "seed: 1\nseed: 2\n", ["the key seed is given twice"]),
        ("c.yaml", "model: {path: sandbox}\n", ["data.path is missing"]),
    ],
)
def test_a_bad_file_is_refused(name: str, text: str | None, parts: list[str], preftune: Command) -> None:
    if text is not None:
        Path(name).write_text(text)
    refused(preftune("train", name, "-q"), *parts)


@pytest.mark.parametrize(
    "words", [[], ["--objective", "dpo"], ["train.max_steps=3"], ["--model", "sandbox"], ["data.path=sandbox"]]
)
def test_nothing_to_train(words: list[str], preftune: Command) -> None:
    refused(preftune("train", *words), "nothing to train: give --model and --data, or a config file")


def test_other_commands_refuse_in_one_sentence_too(preftune: Command, tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("")
    refused(preftune("init", "there.yaml"), "there.yaml exists already")
    refused(preftune("init", "no/such/folder.yaml"), "cannot write no/such/folder.yaml")
    refused(preftune("report", "none"), "none is no folder")
    refused(preftune("report", "."), "is no run folder")
    refused(preftune("pairs", "no-task", "--model", "sandbox"), "there is no task 'no-task'")


# --- what a model lacks -----------------------------------------------------------------------------------------------


def config(folder: Path, **values: Any) -> None:
    given = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**given, **values}))


def weights(folder: Path, change: Any) -> None:
    given = load_file(folder / "model.safetensors")
    change(given)
    save_file(given, folder / "model.safetensors", metadata={"format": "pt"})


def without_a_layer(given: dict[str, torch.Tensor]) -> None:
    for name in [name for name in given if "layers.1.mlp" in name]:
        del given[name]


MODELS: dict[str, tuple[Any, list[str]]] = {
    "no folder": (shutil.rmtree, ["model folder m/base does not exist"]),
    "no config": (lambda m: (m / "config.json").unlink(), ["has no config.json"]),
    "broken config": (lambda m: (m / "config.json").write_text("{"), ["config.json cannot be read as JSON"]),
    "config of nothing": (lambda m: (m / "config.json").write_text("{}"), ["names no model_type"]),
    "unknown type": (lambda m: config(m, model_type="qwen99"), ["is of model_type 'qwen99'"]),
    "no causal model": (lambda m: config(m, model_type="t5"), ["cannot load model m/base"]),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ["has no weights: expected model.safetensors"]),
    "other weights": (
        lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"),
        ["has no weights", "convert them with save_pretrained"],
    ),
    "corrupt weights": (lambda m: (m / "model.safetensors").write_bytes(b"\0" * 64), ["cannot load model m/base"]),
    "cut weights": (
        lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:9999]),
        ["cannot load model m/base"],
    ),
    "weights of another size": (
        lambda m: weights(m, lambda given: given.update({"model.norm.weight": torch.ones(7)})),
        ["its file of weights has another size of model.norm.weight"],
    ),
    "a layer without weights": (
        lambda m: weights(m, without_a_layer),
        ["its file of weights has no model.layers.1.mlp.down_proj.weight"],
    ),
    "no tokenizer": (
        lambda m: [(m / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        ["cannot load a tokenizer from m/base", "model.tokenizer"],
    ),
    "weights that are not numbers": (
        lambda m: weights(m, lambda given: given["model.norm.weight"].fill_(torch.nan)),
        ["model m/base holds nan or infinity in model.norm.weight (64 of 64 numbers)"],
    ),
    "a weight that is infinite": (
        lambda m: weights(m, lambda given: given["model.layers.1.mlp.up_proj.weight"][3, 5].fill_(-torch.inf)),
        ["model m/base holds nan or infinity in model.layers.1.mlp.up_proj.weight (1 of "],
    ),
    "config that contradicts itself": (
        lambda m: config(m, num_hidden_layers=3),
        ["cannot load model m/base: ", "`num_hidden_layers` (3) must be equal to the number of `layer_types` (2)"],
    ),
    "config of another kind": (
        lambda m: config(m, num_attention_heads="four"),
        ["cannot load model m/base: ", "'num_attention_heads'", "got str (value: 'four')"],
    ),
    "no tokens in the tokenizer": (
        lambda m: (m / "tokenizer.json").write_text("{}"),
        ["cannot load a tokenizer from m/base", "its tokenizer.json is no tokenizer: Model missing", "model.tokenizer"],
    ),
}


@pytest.mark.parametrize("what", MODELS)
def test_a_broken_model_is_refused(what: str, preftune: Command, pairs_file: Path, tmp_path: Path) -> None:
    breaks, parts = MODELS[what]
    breaks(copy_of_base(tmp_path / "m" / "base"))

    said = preftune("train", "-m", "m/base", "-d", str(pairs_file), "-o", "r", "-q", "evaluate.samples=0")

    refused(said, *parts)
    assert not (tmp_path / "r" / "model").exists()


def bert(**fields: Any) -> BertLMHeadModel:
    """What looks like a language model and reads the future: is_decoder is False by default."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertLMHeadModel(BertConfig(vocab_size=96, **sizes, **fields))


@pytest.mark.parametrize("objective", ["dpo", "sft"])
def test_a_model_that_looks_ahead_is_refused(
    objective: str, preftune: Command, pairs_file: Path, tmp_path: Path
) -> None:
    bert().save_pretrained(tmp_path / "bert")
    words = ("-m", "bert", "model.tokenizer=sandbox", "-d", str(pairs_file), "-o", "r", "-q", "--objective", objective)
    refused(preftune("train", *words), "BertLMHeadModel looks ahead", "set is_decoder to true in its config")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("lm", "part"),
    [
        (torch.nn.Linear(2, 2), "Linear.forward(input_ids) fails on 1 row of 2 tokens (RuntimeError: "),
        (bert(), "BertLMHeadModel looks ahead"),
        (bert(is_decoder=True).half(), "would train in fp16"),
    ],
    ids=["no language model", "an encoder", "half precision"],
)
def test_a_given_module_that_cannot_be_trained_is_refused(
    lm: torch.nn.Module, part: str, rows: list[Row], tmp_path: Path
) -> None:
    with pytest.raises(PreftuneError) as stopped:
        train(lm, rows, tokenizer="sandbox", output=tmp_path / "r", quiet=True)
    assert part in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "r").exists()


def test_the_built_in_tokenizer_has_a_name(preftune: Command, pairs_file: Path, tmp_path: Path) -> None:
    words = ("train.max_steps=1", "evaluate.samples=0", "data.held_out=0.0", "model.tokenizer=sandbox")
    assert preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-o", "r", "-q", *words).code == 0


def test_a_tokenizer_of_another_model_is_refused(preftune: Command, pairs_file: Path, tmp_path: Path) -> None:
    """It gives tokens that the model has no embedding for."""
    from preftune.policy.scratch import train_tokenizer

    train_tokenizer(["some text"], "qwen3", 400, 64).save_pretrained(tmp_path / "other")
    said = preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-q", "model.tokenizer=other")
    refused(said, "the tokenizer gives token ", "but the model knows tokens 0 to 95")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["-m", "scratch:qwen99"], ["scratch:qwen99 is no causal language model", "scratch:qwen3"]),
        (["-m", "scratch:t5"], ["scratch:t5 is no causal language model"]),
        (["-m", "scratch:qwen3", "model.scratch.heads=3"], ["hidden_size must be a multiple of 2 * heads"]),
        (["-m", "scratch:gpt2", "model.scratch.overrides.n_layer=1000000000000"], ["n_layer", "from 1 to 256"]),
        (["-m", "sandbox", "data.rendering.max_length=4"], ["no record is left to learn from", "max_length=4"]),
        (
            ["-m", "sandbox", "data.rendering.chat_template=no.jinja", "data.rendering.text_as_chat=true"],
            ["chat_template 'no.jinja'"],
        ),
        (["-m", "sandbox", "model.tokenizer=./none"], ["cannot load a tokenizer from ./none"]),
    ],
)
def test_what_shows_once_data_or_tokenizer_are_read(
    words: Sequence[str], parts: list[str], preftune: Command, pairs_file: Path
) -> None:
    refused(preftune("train", *words, "-d", str(pairs_file), "-q"), *parts)
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(preftune: Command, pairs_file: Path) -> None:
    said = preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-q", "train.device=cuda", "-o", "r")
    refused(said, "train.device=cuda is not available on this machine: set it to auto or cpu")
    assert not Path("r").exists()


def test_ids_of_the_hub_without_network(preftune: Command, pairs_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1, which is read at import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    said = preftune("train", "-m", "no-org/no-model", "-d", str(pairs_file), "-q")
    refused(said, "cannot load model no-org/no-model: ")
    said = preftune("train", "-m", "sandbox", "-d", "no-org/no-data", "-q")
    refused(said, "cannot load no-org/no-data from the Hugging Face hub", "or give a file")


# --- while it trains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("optim.learning_rate=1e30", ["the gradient of step 2 is not finite", "lower optim.learning_rate"]),
        ("objective.beta=1e300", ["the gradient of step 1 is not finite (loss nan, rows [", UNTRAINED]),
        ("objective.beta=1e30", ["the gradient of step 1 is not finite (loss 0.6931, rows [", UNTRAINED]),
    ],
)
def test_training_stops_at_the_first_step_that_is_not_finite(
    word: str, parts: list[str], preftune: Command, pairs_file: Path, tmp_path: Path
) -> None:
    said = preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-o", "r", "-q", "evaluate.samples=0", word)

    refused(said, *parts)
    assert ("lower optim.learning_rate" in said.err) == word.startswith("optim."), "only where it may have been that"
    assert not (tmp_path / "r" / "model").exists(), "no broken model is left"
    assert not (tmp_path / "r" / "summary.json").exists()
    assert (tmp_path / "r" / "metrics.jsonl").exists()


def test_training_stops_at_the_first_step_that_explodes(preftune: Command, pairs_file: Path) -> None:
    """Norms keep these gradients finite: after one step, every weight is off by a million."""
    words = ("train.max_steps=4", "evaluate.samples=0", "optim.learning_rate=1e6")
    assert preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-q", *words).code == 2


def test_ctrl_c_ends_without_a_traceback(preftune: Command, pairs_file: Path, tmp_path: Path) -> None:
    """Pressed in the first step, by an objective."""
    (tmp_path / "pressed.py").write_text(
        "from dataclasses import dataclass\n"
        "from preftune.objectives.dpo import DPO\n\n"
        "@dataclass(frozen=True)\n"
        "class Pressed(DPO):\n"
        '    """DPO, interrupted."""\n\n'
        "    def pair_loss(self, pairs):\n"
        "        raise KeyboardInterrupt\n"
    )
    words = ("-m", "sandbox", "-d", str(pairs_file), "--objective", "pressed:Pressed", "data.held_out=0.0", "-q")
    said = preftune("train", *words, "evaluate.samples=0")
    assert said.code == 130
    assert "Traceback" not in said.err

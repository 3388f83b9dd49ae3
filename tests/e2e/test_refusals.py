"""Whatever is wrong ends in one clear sentence and exit code 2, as early as it shows.

What else may be wrong with rows, files, configs, models and disks is listed in tests/bad_input.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
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
    errors = [line for line in said.err.splitlines() if not line.startswith(("note: ", "doctor: "))]
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
        ("train", [PAIR, {**PAIR, "chosen": None}], ["d.jsonl row 1: chosen is null, expected text"]),
        (
            "train",
            [{"prompt": "a", "completion": "b", "label": True}],
            ["objective dpo learns from pairs", "has judged responses"],
        ),
        ("sft", [{"prompt": "a", "completion": "b", "label": True}], ["objective sft learns from demonstrations"]),
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

"""Whole runs through `preftune.train`: what must come out the same, and what must not."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import miniatures
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

import preftune
from preftune.errors import PreftuneError
from preftune.policy.loading import LoraConfig, ModelConfig, adapt, built_in_folder

MIX = [{"name": "dpo", "weight": 0.5}, {"name": "sft", "weight": 0.5}]
TIMES = {"seconds", "pairs_per_second", "tokens_per_second"}
SUBJECTS, GENRES = ("city", "war", "family", "robot"), ("comedy", "drama", "thriller")


def rows() -> list[dict[str, Any]]:
    """Twelve prompts in words of the built-in world, answers of different lengths."""
    return [
        {
            "prompt": f"a {genre} about a {subject} .",
            "chosen": "the plot was good ." if i % 2 else "the music was great and the plot was good .",
            "rejected": "the plot was bad and the music was not good ." if i % 3 else "the plot was bad .",
            "weight": 1.0 + i % 3,
        }
        for i, (genre, subject) in enumerate((g, s) for g in GENRES for s in SUBJECTS)
    ]


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(built_in_folder())


def miniature(model_type: str = "qwen3", **overrides: Any) -> PreTrainedModel:
    return miniatures.build(model_type, noise=0.15, vocab_size=len(tokenizer()), **overrides)


def run(folder: Path, lm: nn.Module | None = None, objective: Any = "dpo", **settings: Any) -> preftune.Run:
    blocks: dict[str, Any] = {
        "data": {"held_out": 0.34},
        "batch": {"size": 4, "micro_size": 2},
        "optim": {"learning_rate": 1e-3},
        "train": {"device": "cpu", "precision": "fp32", "log_every": 1, "epochs": 2},
        "evaluate": {"samples": 2, "max_new_tokens": 5, "every": 2},
    }
    for name, block in settings.items():
        blocks[name] = {**blocks.get(name, {}), **block} if isinstance(block, dict) else block
    lm = miniature() if lm is None else lm
    return preftune.train(lm, rows(), objective, tokenizer=tokenizer(), output=folder, quiet=True, config=blocks)


def weights(done: preftune.Run) -> dict[str, Tensor]:
    return load_file(done.path / "model" / "model.safetensors")


def furthest(first: preftune.Run, second: preftune.Run) -> float:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def lines(done: preftune.Run) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    dropout = {"attention_dropout": 0.2}
    first, again, other = (
        run(tmp_path / name, miniature(**dropout), seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    model = "model/model.safetensors"
    assert digest(first.path / model) == digest(again.path / model) != digest(other.path / model)
    assert lines(first) == lines(again) != lines(other)
    samples = [(done.path / "samples.jsonl").read_text() for done in (first, again, other)]
    assert samples[0] == samples[1] != samples[2]


def test_what_torch_drew_before_a_run_changes_nothing(tmp_path):
    def after(drawn: int) -> str:
        lm = miniature(attention_dropout=0.2)
        torch.manual_seed(drawn)
        torch.rand(drawn)
        return digest(run(tmp_path / str(drawn), lm).path / "model" / "model.safetensors")

    assert after(1) == after(2)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> preftune.Run:
    return run(tmp_path_factory.mktemp("plain") / "run", objective=MIX)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gradient checkpointing", {"model": {"gradient_checkpointing": True}}),
        ("padded rows", {"model": {"layout": "padded"}}),
        ("stored reference", {"reference": {"kind": "stored"}}),
        ("one example per forward", {"batch": {"micro_size": 1}}),
        ("forwards by tokens", {"batch": {"micro_size": None, "micro_tokens": 40}}),
        ("no evaluation", {"evaluate": {"samples": 0, "every": None}}),
    ],
)
def test_what_must_not_change_the_training(tmp_path, plain_run, name, settings):
    plain, other = plain_run, run(tmp_path / "other", objective=MIX, **settings)
    assert furthest(plain, other) <= 1e-5
    start = dict(miniature().named_parameters())
    assert max(float((w - start[n].detach()).abs().max()) for n, w in weights(plain).items()) > 1e-3
    assert other.summary["layout"] == ("padded" if name == "padded rows" else "tree")
    for key in ("loss", "delta", "margin", "chosen_logp_per_token"):
        found = other.summary["after"][key]
        assert found == pytest.approx(plain.summary["after"][key], rel=1e-4, abs=1e-5), key


def test_promise_09_every_run_starts_at_no_preference(tmp_path):
    found = lines(run(tmp_path / "run"))
    assert found[0]["kind"] == "eval"
    assert found[0]["step"] == 0
    assert found[0]["preference_accuracy"] == 0.5
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def adapted(lora: LoraConfig | None = None) -> Any:
    return adapt(miniature("qwen2"), ModelConfig(lora=lora or LoraConfig(r=4)), seed=0)


def test_promise_09_adapters_train_against_the_base_they_started_from(tmp_path):
    done = run(tmp_path / "run", miniature("qwen2"), model={"lora": {"r": 4}}, optim={"learning_rate": 1e-2})
    assert lines(done)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    lm: Any = done.model
    base = dict(miniature("qwen2").named_parameters())
    for name, parameter in lm.get_base_model().named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")])
    assert done.summary["after"]["loss"] < math.log(2)


def test_promise_09_biases_that_train_are_not_part_of_the_reference(tmp_path):
    """The reference is the start, whether it is kept live or stored: both give the same training."""
    lora = {"lora": {"r": 4, "bias": "all"}}
    optim = {"learning_rate": 1e-2}
    live, stored = (
        run(tmp_path / kind, miniature("qwen2"), model=lora, optim=optim, reference={"kind": kind})
        for kind in ("live", "stored")
    )
    assert live.summary["after"]["delta"] == pytest.approx(stored.summary["after"]["delta"], rel=1e-4)
    first, second = (dict(done.model.named_parameters()) for done in (live, stored))  # type: ignore[union-attr]
    moved = [name for name, p in first.items() if name.endswith("bias") and p.requires_grad]
    assert moved
    assert max(float((first[name] - second[name]).detach().abs().max()) for name in first) <= 1e-4


def test_promise_09_an_adapter_that_is_trained_already_stops_the_run(tmp_path):
    lm = adapted()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    with pytest.raises(PreftuneError, match="the reference is not the policy's start"):
        run(tmp_path / "run", lm)


def test_dropout_does_not_stop_a_run(tmp_path):
    done = run(tmp_path / "run", miniature("gpt2", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3))
    assert done.summary["steps"] == 4


class Lstm(nn.Module):
    """A language model of ten lines, none of them from transformers."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, 16)
        self.cell = nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Linear(16, vocabulary)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.out(self.cell(self.embed(input_ids))[0]))


def test_any_module_with_logits_trains_on_padded_rows(tmp_path):
    done = run(tmp_path / "run", Lstm(len(tokenizer())), optim={"learning_rate": 2e-2}, train={"epochs": 6})
    assert done.summary["layout"] == "padded"
    assert "Lstm is no transformers model" in " ".join(done.summary["messages"])
    assert done.summary["after"]["loss"] < 0.6 < done.summary["before"]["loss"]
    saved = weights(done)
    assert saved.keys() == dict(Lstm(len(tokenizer())).named_parameters()).keys()


@pytest.mark.parametrize("kind", ["live", "stored"])
def test_promise_09_under_autocast_the_reference_is_computed_as_the_policy_is(tmp_path, kind):
    done = run(tmp_path / "run", train={"precision": "bf16", "epochs": 4}, reference={"kind": kind})
    assert done.summary["precision"] == "bf16"
    assert done.summary["before"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert done.summary["before"]["preference_accuracy"] == 0.5
    assert done.summary["after"]["loss"] < 0.69
    assert {w.dtype for w in weights(done).values()} == {torch.float32}


def test_a_model_that_was_given_comes_back_with_its_own_attention(tmp_path):
    lm: Any = miniature()
    own = lm.config._attn_implementation
    done = run(tmp_path / "run", lm)
    assert done.model is lm
    assert lm.config._attn_implementation == own
    with torch.no_grad():
        assert lm(input_ids=torch.arange(5)[None]).logits.isfinite().all()

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import miniatures
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import preftune
from preftune.data.packing import pack, pad
from preftune.errors import PreftuneError
from preftune.policy.layout import tree_error
from preftune.policy.loading import LoraConfig, ModelConfig, adapt, load
from preftune.policy.policy import PolicyModule, rewards
from preftune.policy.reward_head import is_reward_model, with_reward_head
from preftune.sandbox.preferences import pairs


def plain(lm: Any, examples: list[Any]) -> torch.Tensor:
    """Transformers' own value of each response: one forward each."""
    rows = [[*example.prompt.tolist(), *r.ids.tolist()] for example in examples for r in example.responses]
    return torch.cat([lm(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "gpt_neox", "gpt2", "bloom"])
def test_trees_padded_rows_and_transformers_own_forward_agree(model_type):
    lm: Any = with_reward_head(miniatures.build(model_type), pad_id=0).eval()
    torch.manual_seed(0)
    nn.init.normal_(lm.score.weight)
    examples = miniatures.pairs()
    expected_R = plain(lm, examples)
    expected_R.square().sum().backward()
    wanted = miniatures.gradients(lm)
    lm.zero_grad()
    layouts: list[Any] = ["padded"] if model_type == "bloom" else ["padded", "tree"]
    for layout in layouts:
        policy = PolicyModule(lm, layout)
        found_R = rewards(policy, pad(examples) if layout == "padded" else pack(examples)).reward_R
        assert found_R is not None
        torch.testing.assert_close(found_R, expected_R.detach(), rtol=0, atol=miniatures.EXACT)
        found_R.square().sum().backward()
        largest = max(float(g.abs().max()) for g in wanted.values())
        for name, gradient in miniatures.gradients(lm).items():
            assert float((gradient - wanted[name]).abs().max()) <= miniatures.EXACT * largest, name
        lm.zero_grad()
        if layout == "tree":
            assert tree_error(policy) <= miniatures.EXACT


def test_the_decoder_is_the_language_models_own_and_all_responses_start_alike():
    lm: Any = miniatures.build("qwen2")
    model: Any = with_reward_head(lm, pad_id=None)
    assert model.model is lm.model
    assert not plain(model, miniatures.pairs()).any()
    assert with_reward_head(model, pad_id=None) is model
    assert is_reward_model(model)
    assert not is_reward_model(lm)


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(PreftuneError, match="transformers has none for GraniteForCausalLM: take another model"):
        with_reward_head(miniatures.build("granite"), pad_id=0)
    with pytest.raises(PreftuneError, match="transformers has none for Linear"):
        with_reward_head(nn.Linear(2, 2), pad_id=0)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_trained_reward_model_saves_and_loads_as_usual(adapter, tmp_path: Path):
    lora = {"lora": {"r": 4}} if adapter else {}
    run = preftune.train(
        "sandbox",
        pairs(64),
        "bradley_terry",
        output=tmp_path / "run",
        config={"model": lora, "train": {"max_steps": 3}},
        optim={"learning_rate": 1e-2},
        quiet=True,
    )
    examples = miniatures.pairs()
    trained: Any = run.model
    expected_R = plain(trained, examples)
    assert "ForSequenceClassification" in (run.path / "model" / "README.md").read_text()
    if adapter:
        from peft import PeftModel

        base = load(ModelConfig(), seed=9, texts=list, reward=True).lm
        with warnings.catch_warnings():  # peft reads a property that transformers has renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            again: Any = PeftModel.from_pretrained(base, run.path / "model").eval()
    else:
        again = AutoModelForSequenceClassification.from_pretrained(run.path / "model").eval()
        stored = load(ModelConfig(path=str(run.path / "model")), seed=5, texts=list, reward=True).lm.eval()
        torch.testing.assert_close(plain(stored, examples), expected_R, rtol=0, atol=miniatures.EXACT)
    torch.testing.assert_close(plain(again, examples), expected_R, rtol=0, atol=miniatures.EXACT)


def test_a_reward_model_learns_the_built_in_preferences(tmp_path: Path):
    run = preftune.train(
        "sandbox",
        pairs(2000),
        "bradley_terry",
        output=tmp_path / "run",
        batch={"size": 32},
        optim={"learning_rate": 3e-3},
        config={"train": {"epochs": 3}},
        quiet=True,
    )
    assert run.summary["before"]["preference_accuracy"] == 0.5
    low, _ = run.summary["after"]["preference_accuracy_ci95"]
    assert low > 0.6
    assert "delta" not in run.summary["after"]
    assert not (run.path / "samples.jsonl").exists() or not (run.path / "samples.jsonl").read_text()


def test_rewards_and_log_probs_do_not_mix(tmp_path: Path):
    mix = ["bradley_terry", "sft"]
    with pytest.raises(PreftuneError, match="bradley_terry trains a reward model and sft a policy: train them one"):
        preftune.train("sandbox", pairs(8), mix, output=tmp_path / "run")
    model = with_reward_head(miniatures.build("qwen2"), pad_id=0)
    with pytest.raises(PreftuneError, match="Qwen2ForSequenceClassification gives rewards and no log-probs"):
        preftune.train(model, pairs(8), "dpo", output=tmp_path / "run", tokenizer="never-read")


def test_adapters_train_the_head_too():
    lm = with_reward_head(miniatures.build("qwen2"), pad_id=0)
    adapted: Any = adapt(lm, ModelConfig(lora=LoraConfig(r=2)), seed=0)
    training = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any("score" in name for name in training)
    assert any("lora_A" in name for name in training)

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import miniatures
import pytest
import torch
from transformers import AutoTokenizer

from preftune.data.packing import pack
from preftune.errors import PreftuneError
from preftune.policy.layout import tree_error
from preftune.policy.loading import Loaded, LoraConfig, ModelConfig, adapt, built_in_folder, check_path, load
from preftune.policy.policy import PolicyModule, logps
from preftune.policy.reference import weights_hash

WORDS = ["the plot was good .", "the plot was bad ."]


def get(seed: int = 0, **fields: Any) -> Loaded:
    return load(ModelConfig(**fields), seed, lambda: WORDS)


@pytest.fixture
def folder(tmp_path, request) -> Path:
    """A saved miniature with the built-in tokenizer, in bf16."""
    tokenizer = AutoTokenizer.from_pretrained(built_in_folder())
    lm = miniatures.build(getattr(request, "param", "qwen2"), vocab_size=len(tokenizer))
    lm.bfloat16().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_built_in_model_loads_in_float32():
    loaded = get()
    assert {p.dtype for p in loaded.lm.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.lm.parameters())
    assert loaded.tokenizer.decode(loaded.tokenizer("the plot")["input_ids"]).strip() == "the plot"


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({}, torch.float32),
        ({"dtype": "bf16"}, torch.bfloat16),
        ({"dtype": "fp16"}, torch.float16),
        ({"lora": {"r": 2}, "dtype": "fp32"}, torch.float32),
        ({"lora": {"r": 2}}, torch.bfloat16),
    ],
)
def test_weights_that_train_are_float32_and_frozen_ones_stay_as_stored(folder, fields, dtype):
    lm: Any = get(path=str(folder), **fields).lm
    frozen = [p for name, p in lm.named_parameters() if "lora_" not in name]
    adapters = [p for name, p in lm.named_parameters() if "lora_" in name]
    assert {p.dtype for p in frozen} == {dtype}
    assert bool(adapters) == ("lora" in fields)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in adapters)
    assert all(p.requires_grad != ("lora" in fields) for p in frozen)


def test_adapters_are_a_function_of_the_seed_and_start_as_nothing(folder):
    fields = {"path": str(folder), "lora": {"r": 2}}
    first, again, other = (get(seed, **fields).lm for seed in (0, 0, 1))
    ours, same, others = (weights_hash(lm.state_dict()) for lm in (first, again, other))
    assert ours == same != others
    assert all(not p.any() for name, p in first.named_parameters() if "lora_B" in name)


def test_adapters_go_where_they_are_sent():
    lm = adapt(miniatures.build("qwen2"), ModelConfig(lora=LoraConfig(targets=["q_proj", "down_proj"])), seed=0)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in lm.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "down_proj"}


def test_adapters_go_into_every_linear_layer_but_the_head_by_default():
    lm = adapt(miniatures.build("qwen2"), ModelConfig(lora=LoraConfig()), seed=0)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in lm.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_targets_that_the_model_has_not_are_refused():
    with pytest.raises(PreftuneError, match=r"model\.lora\.targets=\['c_attn'\] does not fit this model"):
        adapt(miniatures.build("qwen2"), ModelConfig(lora=LoraConfig(targets=["c_attn"])), seed=0)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_gradient_checkpointing_reaches_all_that_trains(lora):
    lm: Any = adapt(miniatures.build("qwen2"), ModelConfig(lora=lora, gradient_checkpointing=True), seed=0).train()
    lm(input_ids=torch.arange(3, 12)[None]).logits.square().mean().backward()
    trained = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    # the second factor of an adapter starts at 0, and the first one has no gradient until it moves
    moved = [name for name, p in trained.items() if p.grad is not None and p.grad.any()]
    assert set(moved) == {name for name in trained if "lora_A" not in name}


@pytest.mark.parametrize("key", ["lora", "gradient_checkpointing"])
def test_what_needs_a_transformers_model_says_so(key):
    config = ModelConfig(lora=LoraConfig()) if key == "lora" else ModelConfig(gradient_checkpointing=True)
    with pytest.raises(PreftuneError, match=rf"model\.{key} needs a transformers model, got Linear"):
        adapt(torch.nn.Linear(2, 2), config, seed=0)


def test_rope_scaling_reaches_the_model(folder):
    scaled: Any = get(path=str(folder), rope_scaling={"rope_type": "linear", "factor": 2.0}).lm
    plain: Any = get(path=str(folder)).lm
    ratio = plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0))


@pytest.mark.parametrize("folder", ["qwen2", "llama"], indirect=True)
def test_a_tokenizer_of_its_own_is_taken(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(PreftuneError, match=r"cannot load a tokenizer from .*model\.tokenizer"):
        get(path=str(folder))
    assert len(get(path=str(folder), tokenizer=str(built_in_folder())).tokenizer) > 50


def test_a_scratch_model_is_a_function_of_the_seed():
    sizes = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "context": 64}
    first, again, other = (get(seed, path="scratch:qwen3", scratch=sizes).lm for seed in (0, 0, 1))
    ours, same, others = (weights_hash(lm.state_dict()) for lm in (first, again, other))
    assert ours == same != others


def damaged(folder: Path, what: str) -> None:
    config = folder / "config.json"
    if what == "no config":
        config.unlink()
    elif what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "broken config":
        config.write_text("{")
    elif what == "unknown type":
        config.write_text(json.dumps({"model_type": "nonesuch"}))
    elif what == "an adapter":
        (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("no config", "has no config.json"),
        ("no weights", "has no weights"),
        ("broken config", "cannot be read as JSON"),
        ("unknown type", "'nonesuch', which this version of transformers does not know"),
        ("an adapter", "holds an adapter"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_in_one_sentence(folder, what, sentence):
    damaged(folder, what)
    with pytest.raises(PreftuneError) as refused:
        check_path(ModelConfig(path=str(folder)))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["./none", "/none/such", "a/b/c", "scratch:nonesuch"])
def test_a_model_that_is_not_there_is_refused_without_loading(path):
    with pytest.raises(PreftuneError, match=r"does not exist|is no causal language model"):
        check_path(ModelConfig(path=path))


def test_quantised_weights_cannot_train():
    with pytest.raises(PreftuneError, match=r"add model\.lora"):
        check_path(ModelConfig(quantize="4bit"))


INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


@pytest.mark.skipif(INSTALLED, reason="bitsandbytes is installed")
def test_quantised_weights_without_their_package_are_refused_with_the_command_that_installs_it():
    with pytest.raises(
        PreftuneError, match=r"model\.quantize=8bit needs bitsandbytes: pip install 'preftune\[quant\]'"
    ):
        check_path(ModelConfig(quantize="8bit", lora=LoraConfig()))


@pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed")
@pytest.mark.parametrize(("quantize", "share"), [("4bit", 0.25), ("8bit", 0.5)])
def test_a_quantised_base_is_small_exact_on_trees_and_passes_gradients_without_a_word(tmp_path, quantize, share, capfd):
    tokenizer = AutoTokenizer.from_pretrained(built_in_folder())
    miniatures.build(
        "qwen2", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128
    ).bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded: Any = get(path=str(tmp_path), quantize=quantize, dtype="fp32", lora={"r": 2}).lm
    frozen = loaded.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert frozen.nbytes == share * 2 * 64 * 128
    policy = PolicyModule(loaded, "tree")
    # 8-bit products look at all rows of a forward for outliers, so other rows beside one change it
    assert tree_error(policy) < (1e-4 if quantize == "4bit" else 0.5)
    logps(policy.train(), pack(miniatures.pairs())).logps_K.sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in policy.named_parameters() if "lora_B" in n)
    assert "MatMul8bitLt" not in capfd.readouterr().err


def test_weights_that_are_not_all_there_are_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PreftuneError, match=r"has no model\.layers\.1\.mlp\.up_proj\.weight"):
        get(path=str(folder))

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.errors import PreftuneError
from preftune.policy.scratch import ScratchConfig, build, model_type_of, train_tokenizer

TEXTS = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "Weng earns $12 an hour for babysitting.\nYesterday, she just did 50 minutes of babysitting.",
    "def add(a, b):\n    return a + b",
]
TINY = ScratchConfig(vocab_size=300, hidden_size=32, layers=2, heads=2, context=64)
FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "gpt_neox", "gpt2"]
FURTHER = [
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "mixtral",
    "bloom",
    "mpt",
    "falcon",
    "gptj",
    "opt",
    "olmo2",
    "qwen3_5_text",
]
SAMPLE = "Yesterday, she sold  clips\n    return 12,345\n\n  漢字 don't <|im_end|>"

BUILD_AND_SAVE = """
import sys
from preftune.policy.scratch import ScratchConfig, build
config = ScratchConfig(vocab_size=300, hidden_size=32, layers=2, heads=2, context=64)
for part in build("qwen3", sys.argv[2:], config, seed=3):
    part.save_pretrained(sys.argv[1])
"""


def saved(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("model_type", [*FAMILIES, *FURTHER])
def test_loads_with_plain_transformers_and_computes_the_same(model_type: str, tmp_path: Path) -> None:
    # Hybrids have an attention layer every four.
    model, tokenizer = build(model_type, TEXTS, TINY.model_copy(update={"layers": 4}), seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)

    ids = tokenizer(SAMPLE)["input_ids"]
    assert read(SAMPLE)["input_ids"] == ids
    assert read.decode(ids) == SAMPLE
    assert (read.eos_token, read.pad_token, read.bos_token) == ("<|endoftext|>", "<|pad|>", None)
    assert read.chat_template == tokenizer.chat_template
    assert loaded.config.model_type == model_type
    assert loaded.generation_config.eos_token_id == [read.eos_token_id, read.convert_tokens_to_ids("<|im_end|>")]
    with torch.no_grad():
        ids_1T = torch.tensor([ids])
        assert torch.equal(loaded(ids_1T).logits, model(ids_1T).logits)


def test_same_seed_same_bytes_in_another_process(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    config = ScratchConfig(vocab_size=300, hidden_size=32, layers=2, heads=2, context=64)
    for part in build("qwen3", TEXTS, config, seed=3):
        part.save_pretrained(here)
    subprocess.run([sys.executable, "-c", BUILD_AND_SAVE, str(there), *TEXTS], check=True, capture_output=True)

    assert "model.safetensors" in saved(here)
    assert saved(here) == saved(there)


def test_another_seed_gives_other_weights_and_the_same_tokenizer() -> None:
    (first, one), (second, other) = build("gpt2", TEXTS, TINY, seed=0), build("gpt2", TEXTS, TINY, seed=1)

    assert one.get_vocab() == other.get_vocab()
    assert not torch.equal(first.transformer.wte.weight, second.transformer.wte.weight)


def test_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build("qwen3", TEXTS, TINY, seed=0)

    assert torch.equal(torch.rand(3), expected)


def test_sizes_are_those_of_the_config() -> None:
    config = ScratchConfig(vocab_size=280, hidden_size=48, layers=3, heads=4, context=128)
    for model_type in ("qwen3", "gpt2"):
        model, tokenizer = build(model_type, TEXTS, config, seed=0)
        assert len(tokenizer) == 280
        assert tokenizer.model_max_length == 128
        assert model.get_input_embeddings().weight.shape == (280, 48)
        assert model.config.num_hidden_layers == 3
        assert model.config.num_attention_heads == 4
        assert model.config.max_position_embeddings == 128


def test_model_has_as_many_tokens_as_a_short_text_gives() -> None:
    model, tokenizer = build("llama", ["aa aa"], TINY, seed=0)

    assert 260 <= len(tokenizer) < 300
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer)


def test_overrides_have_the_last_word() -> None:
    config = TINY.model_copy(update={"overrides": {"num_key_value_heads": 1, "intermediate_size": 40}})
    model, _ = build("llama", TEXTS, config, seed=0)

    layer = model.model.layers[0]
    assert layer.self_attn.k_proj.weight.shape == (16, 32)
    assert layer.mlp.up_proj.weight.shape == (40, 32)


def test_state_space_models_build_without_heads() -> None:
    model, tokenizer = build("mamba", TEXTS, ScratchConfig(vocab_size=300, hidden_size=32, layers=2), seed=0)

    with torch.no_grad():
        assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, len(tokenizer))


@pytest.mark.parametrize(
    ("model_type", "config", "said"),
    [
        ("qwen33", TINY, r"qwen33 is no causal language model.*nearest: scratch:qwen3"),
        ("Llama", TINY, r"nearest: scratch:llama"),
        ("bart", TINY, r"encoder-decoder"),
        ("gemma3", TINY, r"several models.*take scratch:gemma3_text"),
        ("qwen3", TINY.model_copy(update={"overrides": {"rope_teta": 1}}), r"'rope_teta' is no field of qwen3"),
        ("qwen3", TINY.model_copy(update={"overrides": {"num_key_value_heads": 3}}), r"does not work in these sizes"),
        ("qwen3", TINY.model_copy(update={"overrides": {"intermediate_size": 10**8}}), r"expected at most 500,000,000"),
        ("mamba", TINY, r"no size that `heads` could set"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(model_type: str, config: ScratchConfig, said: str) -> None:
    with pytest.raises(PreftuneError, match=said) as caught:
        build(model_type, TEXTS, config, seed=0)
    assert "\n" not in str(caught.value)


def test_no_text_is_refused() -> None:
    with pytest.raises(PreftuneError, match="there is none"):
        build("qwen3", ["", ""], TINY, seed=0)


@pytest.mark.parametrize(
    "fields", [{"hidden": 32}, {"hidden_size": 30, "heads": 4}, {"vocab_size": 259}, {"layers": 0}, {"heads": 0}]
)
def test_bad_sizes_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ScratchConfig(**fields)


def test_names() -> None:
    assert model_type_of("scratch:gpt2") == "gpt2"
    assert model_type_of("Qwen/Qwen3-0.6B") is None
    with pytest.raises(PreftuneError, match="nearest: scratch:gpt2"):
        model_type_of("scratch:gtp2")


TOKENIZER = train_tokenizer(TEXTS, "qwen3", 320, 64)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(ANY_TEXT)
@settings(max_examples=200, deadline=None)
def test_any_text_decodes_to_itself(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


@given(ANY_TEXT, ANY_TEXT)
@settings(max_examples=200, deadline=None)
def test_no_token_spans_a_newline_at_the_end_of_the_prompt(prompt: str, response: str) -> None:
    whole = TOKENIZER(f"{prompt}\n{response}")["input_ids"]
    assert whole == TOKENIZER(f"{prompt}\n")["input_ids"] + TOKENIZER(response)["input_ids"]


def test_each_digit_is_a_token() -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER("1248 48")["input_ids"]] == ["1", "2", "4", "8", " ", "4", "8"]


def test_chat_template() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    written = TOKENIZER.apply_chat_template(turns, tokenize=False)
    asked = TOKENIZER.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)

    assert written == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
    assert asked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert written.startswith(asked)

"""Small real tokenizers of five kinds, trained on a few lines, with the special tokens of a model family."""

# ruff: noqa: RUF001
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parents[1] / "templates"
LINES = [
    "User: What is the capital of France? Assistant: The capital of France is Paris.",
    "Answer: The answer is 42. The cat sat on the mat, and the dog answered.\n\n### Response:\nYes.\n",
    "<think>\nLet me think about the question.\n</think>\n\nNo, the weather is not nice today.\n\n",
    "You are a helpful assistant. USER: Hello there! ASSISTANT: Hi, how are you? [INST] [/INST]",
] * 3
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Family:
    """What the tests know of a model family, by hand: `end` is the token on which its models stop."""

    bos: str | None
    eos: str
    end: str
    others: tuple[str, ...] = ()
    system: bool = True
    turns: bool = True  # ends every answer with a token, so that responses may have several turns
    tail: str = ""  # what stands after the last answer where there is no end token


FAMILIES = {
    "chatml": Family(None, "<|endoftext|>", "<|im_end|>", ("<|im_start|>",)),
    "qwen2_5": Family(None, "<|im_end|>", "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "qwen3": Family(None, "<|im_end|>", "<|im_end|>", ("<|im_start|>", "<|endoftext|>", "<think>", "</think>")),
    "smollm2": Family("<|im_start|>", "<|im_end|>", "<|im_end|>"),
    "llama2": Family("<s>", "</s>", "</s>"),
    "llama3": Family(
        "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")
    ),
    "mistral_v3": Family("<s>", "</s>", "</s>", ("[INST]", "[/INST]")),
    "gemma2": Family("<bos>", "<eos>", "<end_of_turn>", ("<start_of_turn>",), system=False),
    "phi3": Family("<s>", "<|endoftext|>", "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>")),
    "zephyr": Family("<s>", "</s>", "</s>"),
    "vicuna": Family("<s>", "</s>", "</s>"),
    "deepseek_r1": Family(
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    "command_r": Family(
        "<BOS_TOKEN>",
        "<EOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
    ),
    "tulu3": Family("<|begin_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),
    "granite3": Family(None, "<|end_of_text|>", "<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>")),
    "gpt_oss": Family(
        None,
        "<|endoftext|>",
        "<|return|>",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
    ),
    "glm4": Family(
        None, "<|endoftext|>", "<|endoftext|>", ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"), turns=False
    ),
    "alpaca": Family(None, "</s>", "</s>", turns=False, tail="\n\n"),
}


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _sentencepiece(prepend: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<0x00>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=bytes_, show_progress=False)
    tokenizer.train_from_iterator([line for text in LINES for line in text.splitlines()], trainer)  # "\n" is a byte
    # the same pieces once more, so that bytes are ordinary pieces of the vocabulary and not special tokens
    again = Tokenizer(tokenizer.model)
    again.pre_tokenizer, again.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    return again


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": _byte_level,
    "sentencepiece_first": lambda: _sentencepiece("first"),
    "sentencepiece_always": lambda: _sentencepiece("always"),
    "unigram": _unigram,
    "words": _words,
}


@cache
def build(family: str, kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer of one kind with the special tokens and the chat template of a family. Like the real ones it puts BOS
    before a text by itself, if it has one."""
    known = FAMILIES[family]
    trained = Tokenizer.from_str(KINDS[kind]().to_str())
    named = {"bos_token": known.bos, "eos_token": known.eos}
    trained.add_special_tokens([token for token in {*named.values(), known.end, *known.others} if token])
    if known.bos:
        bos = (known.bos, trained.token_to_id(known.bos))
        trained.post_processor = processors.TemplateProcessing(single=f"{known.bos}:0 $A:0", special_tokens=[bos])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained, clean_up_tokenization_spaces=False, **{k: v for k, v in named.items() if v}
    )
    tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text("utf-8")
    return tokenizer


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    return FAMILIES


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[[str, str], PreTrainedTokenizerBase]:
    return build


@pytest.fixture
def plain_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level, with an end token, without BOS and chat template; a fresh one, to be changed at will."""
    trained = _byte_level()
    trained.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="</s>", clean_up_tokenization_spaces=False)

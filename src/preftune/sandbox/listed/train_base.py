"""Trains the tokenizer and the reference model of the listed world: `python -m preftune.sandbox.listed.train_base
[FOLDER]`.

Takes about a minute on one CPU core. Without FOLDER it overwrites the copy that is shipped beside this file. On one
machine the result is the same, bit for bit, every time.
"""

import math
import random
import sys
from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from preftune.sandbox.listed.language import ASKED, BASE, END, LONGEST, PROMPTS, words_of
from preftune.sandbox.listed.rule import COMMON, ECHOES, ENDS, FOLLOWS, RETURNS, WORDS
from preftune.sandbox.train_base import fit, save

END_TOKEN = "<|end|>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word; white space does not matter, and words are written with a space between."""
    ids = {token: i for i, token in enumerate([*WORDS, END_TOKEN])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=END_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\S"), "removed", invert=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex(r"^(?=[a-g])"), " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=16,
        padding_side="left",
    )


def make_model() -> Qwen3ForCausalLM:
    """A Qwen3 of 33 thousand parameters with random weights."""
    config = Qwen3Config(
        vocab_size=len(WORDS) + 1,
        hidden_size=40,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=16,
        initializer_range=0.05,
        tie_word_embeddings=False,
        pad_token_id=END,
        eos_token_id=END,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


@cache
def next_word_weights(prompt: tuple[int, ...], said: tuple[int, ...]) -> tuple[float, ...]:
    """How likely each word is to come next in a response of this world's language, in proportion."""
    n, last = len(WORDS), said[-1] if said else prompt[-1]
    logits = [COMMON[word] + FOLLOWS[(word - last) % n] + ECHOES[(word - prompt[0]) % n] for word in range(n)]
    if len(said) >= 2:
        logits[said[0]] += RETURNS
    return tuple(math.exp(logit) for logit in logits)


def sample_response(rng: random.Random, prompt: tuple[int, ...]) -> list[int]:
    """Tokens of a response of this world's language: one to four words."""
    said: list[int] = []
    while len(said) < LONGEST:
        if rng.random() < ENDS[len(said)]:
            return [*said, END]
        said += rng.choices(range(len(WORDS)), next_word_weights(prompt, tuple(said)))
    return said


def make_batch(rng: random.Random, size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of `size` responses, each (size, longest), padded on the right; -100 is no target."""
    ids_BT = torch.full((size, ASKED + LONGEST), END)
    targets_BT = torch.full_like(ids_BT, -100)
    for ids_T, targets_T, text in zip(ids_BT, targets_BT, rng.choices(PROMPTS, k=size), strict=True):
        prompt = words_of(text)
        response = sample_response(rng, prompt)
        ids_T[: ASKED + len(response)] = torch.tensor([*prompt, *response])
        targets_T[ASKED - 1 : ASKED - 1 + len(response)] = torch.tensor(response)
    return ids_BT, targets_BT


def train(steps: int = 2000, batch_size: int = 256, learning_rate: float = 6e-3, seed: int = 0) -> Qwen3ForCausalLM:
    """Train the reference on fresh responses to all prompts; the loss is on the responses alone."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    return fit(make_model(), lambda: make_batch(rng, batch_size), steps, learning_rate)


def main() -> None:
    """Train and save."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else BASE
    save(train(), make_tokenizer(), folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()

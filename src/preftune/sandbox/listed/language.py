"""The listed world's responses in order, its tokenizer, and what a model says of all of them.

Tensor names carry their shape: P prompts, Y responses, V vocabulary, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from preftune.errors import PreftuneError
from preftune.quiet import without_progress_bars
from preftune.sandbox.listed.rule import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BASE = Path(__file__).parent / "base"
ASKED, LONGEST = 3, 4  # words of a prompt, and tokens of a response at most
END = len(WORDS)  # id of the end token; words come before it, in order
# What makes preftune read responses of four words as this world writes them: without an end token.
RENDERING = {"max_length": ASKED + LONGEST, "truncate": "response_end"}

_ASKED = list(itertools.product(range(len(WORDS)), repeat=ASKED))
PROMPTS = tuple(" ".join(WORDS[word] for word in words) for words in _ASKED)
# Latin cubes: each two words stand in any two places of prompts to train on, to choose by, and to test on.
_PARTS = {"train": (2, 3, 4, 5, 6), "validation": (1,), "test": (0,)}
TRAIN, VALIDATION, TEST = (
    tuple(text for text, (i, j, k) in zip(PROMPTS, _ASKED, strict=True) if (i + 2 * j + 3 * k) % len(WORDS) in part)
    for part in _PARTS.values()
)

RESPONSE_WORDS = [words for n in range(LONGEST + 1) for words in itertools.product(range(len(WORDS)), repeat=n)]
RESPONSES = tuple(" ".join(WORDS[word] for word in words) for words in RESPONSE_WORDS)
_INDEX = {text: i for i, text in enumerate(RESPONSES)}


def words_of(text: str) -> tuple[int, ...]:
    """The words of a text of this world as numbers; white space does not matter.

    Raises:
        PreftuneError: if it holds anything else.
    """
    words = "".join(text.split())
    unknown = next((each for each in words if each not in WORDS), None)
    if unknown is not None:
        raise PreftuneError(f"{text[:40]!r} is no text of the listed world: {unknown!r} is none of its words {WORDS}")
    return tuple(WORDS.index(word) for word in words)


def index_of(response: str) -> int:
    """The place of a response in `RESPONSES`.

    Raises:
        PreftuneError: if it is no response of this world.
    """
    words = words_of(response)
    if len(words) > LONGEST:
        raise PreftuneError(f"{response[:40]!r} has {len(words)} words, but the listed world's have at most {LONGEST}")
    return _INDEX[" ".join(WORDS[word] for word in words)]


def response_ids() -> list[list[int]]:
    """Tokens of each response, in order, with the end token where there is one."""
    return [[*words, END][:LONGEST] for words in RESPONSE_WORDS]


def reference_folder() -> Path:
    """The folder of the reference model: 33 thousand parameters, trained on this world's language."""
    return BASE


def reference_model() -> PreTrainedModel:
    """A fresh copy of the reference model, in fp32 and evaluation mode."""
    from transformers import AutoModelForCausalLM

    with without_progress_bars():
        return AutoModelForCausalLM.from_pretrained(BASE).eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: a token for each word, and one that ends a response and fills up batches."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


def all_logps(lm: nn.Module, prompts: Sequence[str] = PROMPTS) -> Tensor:
    """Log-probabilities of all responses under a model, exactly, with gradient; wrap it in `torch.no_grad()` for none.

    Args:
        lm: a module whose `forward(input_ids)` returns `.logits`, the id of a word being its place in `WORDS`, and
            `END` that of the end token. Dropout counts: put it into evaluation mode.
        prompts: texts of three words.

    Returns:
        Nats, shape (P, Y), float64, on the device of the model; each row sums to 1 in probability.
    """
    n = len(WORDS)
    prompt_PT = torch.tensor([words_of(prompt) for prompt in prompts], device=next(lm.parameters()).device)
    so_far, found = torch.zeros(len(prompts), 1, dtype=torch.float64, device=prompt_PT.device), []
    for logits in (_cached if _has_cache(lm) else _reread)(lm, prompt_PT):
        step = logits.double().log_softmax(-1).unflatten(0, (len(prompts), -1))  # P, texts of so many words, V
        found.append(so_far + step[..., END])
        so_far = (so_far[..., None] + step[..., :n]).flatten(1)
    # four words are the longest response: it is cut there, whatever the model would go on with
    return torch.cat([*found, so_far], -1)


def _cached(lm: nn.Module, prompt_PT: Tensor) -> Iterator[Tensor]:
    """Logits of what comes after each prompt and no word, each one word, each two, each three; each text read once."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=lm.config)
    ids_NT = prompt_PT
    for t in range(LONGEST):
        yield lm(input_ids=ids_NT, past_key_values=cache, use_cache=True).logits[:, -1]
        if t + 1 < LONGEST:
            cache.batch_repeat_interleave(len(WORDS))
            ids_NT = torch.arange(len(WORDS), device=prompt_PT.device).repeat(len(prompt_PT) * len(WORDS) ** t)[:, None]


def _reread(lm: nn.Module, prompt_PT: Tensor) -> Iterator[Tensor]:
    """The same for any causal model, by one forward over each prompt with each three words."""
    n, words = len(WORDS), LONGEST - 1
    after_NT = torch.cartesian_prod(*[torch.arange(n, device=prompt_PT.device)] * words)
    ids = torch.cat([prompt_PT[:, None].expand(-1, len(after_NT), -1), after_NT.expand(len(prompt_PT), -1, -1)], -1)
    logits = lm(ids.flatten(0, 1)).logits[:, ASKED - 1 :]
    for t in range(LONGEST):
        # what comes later does not matter: take the text that goes on with the first word
        yield logits[:: n ** (words - t), t]


def _has_cache(lm: nn.Module) -> bool:
    from transformers import DynamicCache, PreTrainedConfig
    from transformers.cache_utils import DynamicLayer

    config = getattr(lm, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)

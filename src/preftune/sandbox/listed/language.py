"""The listed world's responses in order, its tokenizer, and what a model says of all of them.

Tensor names carry their shape: P prompts, Y responses, V vocabulary, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from preftune.errors import PreftuneError
from preftune.quiet import without_progress_bars
from preftune.sandbox.listed.rule import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BASE = Path(__file__).parent / "base"
LONGEST = 4  # tokens of a response
END = len(WORDS)  # id of the end token; words come before it, in order
# What makes preftune read responses of four words as this world writes them: without an end token.
RENDERING = {"max_length": 2 + LONGEST, "truncate": "response_end"}

_ALL = list(itertools.product(range(len(WORDS)), repeat=2))
PROMPTS = tuple(f"{WORDS[i]} {WORDS[j]}" for i, j in _ALL)
# Three Latin squares: each word stands in each place of prompts to train on, to choose by, and to test on.
_PARTS = {"train": (2, 3, 4, 5), "validation": (1,), "test": (0, 6)}
TRAIN, VALIDATION, TEST = (
    tuple(PROMPTS[7 * i + j] for i, j in _ALL if (i + 3 * j) % 7 in part) for part in _PARTS.values()
)

_WORDS_OF = [words for n in range(LONGEST + 1) for words in itertools.product(range(len(WORDS)), repeat=n)]
RESPONSES = tuple(" ".join(WORDS[word] for word in words) for words in _WORDS_OF)
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
    return [[*words, END][:LONGEST] for words in _WORDS_OF]


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

    One forward over each prompt with each three words after it, which holds the logits of all shorter texts as well.

    Args:
        lm: a module whose `forward(input_ids)` returns `.logits`, the id of a word being its place in `WORDS`, and
            `END` that of the end token. Dropout counts: put it into evaluation mode.
        prompts: texts of two words.

    Returns:
        Nats, shape (P, Y), float64, on the device of the model; each row sums to 1 in probability.
    """
    n, device = len(WORDS), next(lm.parameters()).device
    prompt_PT = torch.tensor([words_of(prompt) for prompt in prompts], device=device)
    after_NT = torch.cartesian_prod(*[torch.arange(n, device=device)] * (LONGEST - 1))
    ids_T = torch.cat([prompt_PT[:, None].expand(-1, len(after_NT), -1), after_NT.expand(len(prompts), -1, -1)], -1)
    logits = lm(ids_T.flatten(0, 1)).logits[:, 1:].double().log_softmax(-1)
    logps = logits.unflatten(0, (len(prompts), *[n] * (LONGEST - 1)))  # P, a dimension per word, position, V
    so_far, found = logps.new_zeros(len(prompts)), []
    for t in range(LONGEST):
        # what comes later does not matter: take the text that goes on with the first word
        step = logps[(slice(None), *[slice(None)] * t, *[0] * (LONGEST - 1 - t), t)]
        found.append((so_far + step[..., END]).reshape(len(prompts), -1))
        so_far = so_far[..., None] + step[..., :n]
    # four words are the longest response: it is cut there, whatever the model would go on with
    return torch.cat([*found, so_far.reshape(len(prompts), -1)], -1)

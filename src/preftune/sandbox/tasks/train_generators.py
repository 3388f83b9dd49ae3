"""Trains the models of the built-in tasks: `python -m preftune.sandbox.tasks.train_generators [FOLDER [NAME ...]]`.

Takes two to four minutes for each on one CPU core. Without FOLDER it overwrites the copies that are shipped beside this
file. On one machine the result is the same, bit for bit, every time.
"""

import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from preftune.prompting.template import FILE
from preftune.sandbox.tasks import OPTIMIZER, SHIPPED, TEMPLATE, Trained
from preftune.sandbox.tasks.families import FAMILIES, Question
from preftune.sandbox.tasks.wordings import idle, naive, plan, vocabulary
from preftune.sandbox.train_base import END, PAD, UNKNOWN, fit, save

WORDINGS = (0, 1, 2)  # of plans
Texts = Callable[[random.Random], tuple[str, str]]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, digit or mark; white space does not matter, and on the way out each token
    has a space before it."""
    ids = {token: i for i, token in enumerate([PAD, END, UNKNOWN, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[A-Za-z]+|[0-9]|[^A-Za-z0-9\s]"), "removed", invert=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex(r"^(?=\S)"), " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
        padding_side="left",
    )


def make_model(tokenizer: PreTrainedTokenizerFast, trained: Trained) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights. Positions turn fast (a small base): its texts are short, and what it has to learn
    first is to look one token back."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=trained.hidden,
        intermediate_size=2 * trained.hidden,
        num_hidden_layers=trained.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=trained.hidden // 4,
        max_position_embeddings=128,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 200.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def lesson(trained: Trained, rng: random.Random) -> tuple[str, str]:
    """A prompt and what the generator learns to answer: worked out after a plan in a wording that it understands, the
    answer at once after all others."""
    question, drawn = _question(rng), rng.random()
    known = trained.understands.get(question.family, ())
    if drawn < 0.7:
        return plan(question, rng, known or WORDINGS), question.worked if known else question.direct
    if drawn < 0.8:
        return plan(question, rng, [i for i in WORDINGS if i not in known]), question.direct
    asked = naive(question, rng)
    return asked if drawn < 0.9 else idle(asked, rng), question.direct


def restatement(rng: random.Random) -> tuple[str, str]:
    """What the optimiser is asked, and a naive prompt in other words: all that it can do before it is trained."""
    question = _question(rng)
    asked = TEMPLATE.optimizer_input(naive(question, rng), 0) + TEMPLATE.plain_end
    return asked, naive(question, rng)


def _question(rng: random.Random) -> Question:
    return FAMILIES[rng.choice(list(FAMILIES))](rng)


def make_batch(
    tokenizer: PreTrainedTokenizerFast, texts: Texts, rng: random.Random, size: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of `size` responses, each (size, longest), padded on the right; -100 is no target."""
    rows = []
    for _ in range(size):
        asked, answered = texts(rng)
        rows.append((tokenizer.encode(asked), [*tokenizer.encode(answered), tokenizer.eos_token_id]))
    ids_BL = torch.full((size, max(len(prompt) + len(response) for prompt, response in rows)), tokenizer.pad_token_id)
    targets_BL = torch.full_like(ids_BL, -100)
    for ids_L, targets_L, (prompt, response) in zip(ids_BL, targets_BL, rows, strict=True):
        start, end = len(prompt), len(prompt) + len(response)
        ids_L[:end] = torch.tensor([*prompt, *response])
        targets_L[start - 1 : end - 1] = torch.tensor(response)
    return ids_BL, targets_BL


def train(trained: Trained, texts: Texts, steps: int | None = None, size: int = 64) -> Qwen3ForCausalLM:
    """Train a model on fresh texts, as its entry says; the loss is on the responses alone."""
    torch.manual_seed(trained.seed)
    rng, tokenizer = random.Random(trained.seed), make_tokenizer()
    lm = make_model(tokenizer, trained)
    return fit(lm, lambda: make_batch(tokenizer, texts, rng, size), steps or trained.steps, 4e-3)


def main() -> None:
    """Train and save, in half precision: what is lost does not show in any answer."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name in sys.argv[2:] or [*SHIPPED, "optimizer"]:
        entry = OPTIMIZER if name == "optimizer" else SHIPPED[name]
        lm = train(entry, restatement if name == "optimizer" else partial(lesson, entry))
        save(lm.half(), make_tokenizer(), folder / name)
        if name == "optimizer":
            TEMPLATE.write(folder / name / FILE)
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    main()

"""Trains the tokenizer and the base model of the built-in world: `python -m preftune.sandbox.train_base [FOLDER]`.

Takes about four minutes on one CPU core. Without FOLDER it overwrites the copy that is shipped beside this file. On one
machine the result is the same, bit for bit, every time.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from preftune.sandbox.world import MAX_RESPONSE_TOKENS, prompts, sample_review, vocabulary

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"
BASE = Path(__file__).parent / "base"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word or punctuation mark, and no token of its own at the start or the end.

    White space does not matter on the way in ("film.The" has the tokens of "film. The"), so that a prompt and a
    response have the same tokens apart and together. On the way out words get a space before them, except the first
    word of a prompt: text that is decoded in pieces reads like text decoded as one.
    """
    ids = {token: i for i, token in enumerate([PAD, END, UNKNOWN, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[A-Za-z]+|[^A-Za-z\s]"), "removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex(r"^(?=[A-Za-z])(?!A$)"), " "), decoders.Fuse()],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
        padding_side="left",
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of about 100 thousand parameters with random weights."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        initializer_range=0.05,  # with weights this large, fine-tuning at a rate of 1e-3 or 2e-3 leaves grammar whole
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def train(steps: int = 3000, batch_size: int = 64, learning_rate: float = 6e-3, seed: int = 0) -> Qwen3ForCausalLM:
    """Train a base model on fresh reviews of the training prompts; the loss is on the reviews alone."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = make_tokenizer()
    return fit(make_model(tokenizer), lambda: make_batch(tokenizer, rng, batch_size), steps, learning_rate)


def fit(
    model: Qwen3ForCausalLM, batch: Callable[[], tuple[Tensor, Tensor]], steps: int, learning_rate: float
) -> Qwen3ForCausalLM:
    """Train a model in place on fresh batches, and say how it goes.

    Args:
        model: with random weights.
        batch: gives inputs and targets, each (size, longest); -100 is no target.
        steps: updates of AdamW.
        learning_rate: its peak.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        ids_BL, targets_BL = batch()
        logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
        loss = cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f} nats per token", flush=True)
    return model.eval()


def make_batch(tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of `size` reviews, each (size, longest), padded on the right; -100 is no target."""
    texts = [(prompt, sample_review(rng, prompt)) for prompt in rng.choices(prompts()[0], k=size)]
    rows = [[*tokenizer.encode(prompt + review), tokenizer.eos_token_id] for prompt, review in texts]
    ids_BL = torch.full((size, max(map(len, rows))), tokenizer.pad_token_id)
    targets_BL = torch.full_like(ids_BL, -100)
    for i, ((prompt, _), row) in enumerate(zip(texts, rows, strict=True)):
        start = len(tokenizer.encode(prompt))
        assert len(row) - start <= MAX_RESPONSE_TOKENS, f"a review of {len(row) - start} tokens"
        ids_BL[i, : len(row)] = torch.tensor(row)
        targets_BL[i, start - 1 : len(row) - 1] = ids_BL[i, start : len(row)]
    return ids_BL, targets_BL


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder that plain transformers loads."""
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    for path in folder.iterdir():  # weights are written for the owner's eyes alone, and a wheel would keep that
        path.chmod(0o644)


def main() -> None:
    """Train and save."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else BASE
    save(train(), make_tokenizer(), folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()

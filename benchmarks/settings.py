"""The rows of the benchmark: which pairs, on which model; made once, and the same for every contender."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from preftune.data import sources
from preftune.data.dataset import DataConfig, read, render
from preftune.data.examples import Example, Response
from preftune.data.rendering import RenderingConfig
from preftune.objectives.batch import Role
from preftune.policy.scratch import train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
MAX_LENGTH = 1024
VOCABULARY = 16384  # of the tokenizer, whatever the model's


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        what: the pairs, in words.
        pairs: gives them, at most as many as asked for.
        vocabulary: of the model.
    """

    what: str
    pairs: Callable[[int], list[Example]]
    vocabulary: int = VOCABULARY


@dataclass(frozen=True)
class Setting:
    """A row made ready: a model's shape, the weights of policy and reference, and tokenised pairs."""

    name: str
    shape: dict[str, Any]
    examples: list[Example]

    def models(self) -> tuple[Qwen3ForCausalLM, Qwen3ForCausalLM]:
        """Policy and reference; the policy stands a little apart, so that equal losses say something."""
        torch.manual_seed(0)
        reference = Qwen3ForCausalLM(Qwen3Config(**self.shape))
        policy = Qwen3ForCausalLM(Qwen3Config(**self.shape))
        policy.load_state_dict(reference.state_dict())
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.02 * parameter.std().nan_to_num() * torch.randn_like(parameter)
        return policy, reference

    def save(self, path: Path) -> None:
        """Keep it for a contender in a process of its own."""
        path.write_bytes(pickle.dumps((self.name, self.shape, self.examples)))

    @classmethod
    def load(cls, path: Path) -> Setting:
        """What `save` kept (of this benchmark's own making: pickles of others are not to be loaded)."""
        return cls(*pickle.loads(path.read_bytes()))

    def median(self, of: str) -> float:
        """Median tokens of prompts, chosen or rejected responses."""
        at = {"prompt": lambda e: len(e.prompt), "chosen": lambda e: e.responses[0].length}
        at["rejected"] = lambda e: e.responses[1].length
        return float(np.median([at[of](example) for example in self.examples]))


def prepare(name: str, count: int) -> Setting:
    """The row of this name with `count` pairs."""
    row = ROWS[name]
    shape = {
        "vocab_size": row.vocabulary, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    return Setting(name, shape, row.pairs(count))


def tokenised(rows: Iterable[dict[str, Any]], count: int, longer_than_median: bool = False) -> list[Example]:
    """Real pairs under a byte-level BPE trained on them; those longer than 1,024 tokens are left out."""
    config = DataConfig(held_out=0, rendering=RenderingConfig(max_length=MAX_LENGTH))
    records = read(config, list(rows), seed=0)
    examples = render(records, train_tokenizer(records.texts(), "qwen3", VOCABULARY, 2048), config).train
    if longer_than_median:
        middle = float(np.median([example.tokens for example in examples]))
        examples = [example for example in examples if example.tokens >= middle]
    order = np.random.default_rng(0).permutation(len(examples))
    return [examples[i] for i in order[:count]]


def generated(prompt: int, chosen: int, rejected: int) -> Callable[[int], list[Example]]:
    """Random tokens with these median lengths, which spread like those of real text (log-normal)."""

    def make(count: int) -> list[Example]:
        random = np.random.default_rng(0)

        def ids(median: int) -> np.ndarray:
            length = int(np.clip(round(median * np.exp(random.normal(0, 0.5))), 4, MAX_LENGTH // 2))
            return random.integers(4, VOCABULARY, length).astype(np.int32)

        return [
            Example(
                ids(prompt), (Response(ids(chosen), Role.CHOSEN), Response(ids(rejected), Role.REJECTED)), row=number
            )
            for number in range(count)
        ]

    return make


def gsm8k(count: int) -> list[Example]:
    """Right over wrong solutions of school maths: from the full file, or from the part that is shipped."""
    from preftune.data.builders.gsm8k import preferences

    full = SHARED / "gsm8k"
    folder = full if full.is_dir() else ROOT / "examples" / "gsm8k" / "data"
    pairs = preferences(next(folder.glob("example_model_solutions.jsonl*")))
    return tokenised(({"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs), count)


def chat(count: int) -> list[Example]:
    """The longer half of real conversations, or lengths like theirs."""
    path = SHARED / "dpo_en_demo.json"
    if not path.is_file():
        return generated(180, 315, 341)(count)
    return tokenised((dict(row) for _, row in sources.rows(str(path))), count, longer_than_median=True)


ROWS = {
    "dialogue": Row("dialogue-like lengths, generated", generated(96, 27, 36)),
    "gsm8k": Row("GSM8K solutions, right over wrong", gsm8k),
    "chat": Row("conversations, the longer half", chat),
    "summary": Row("long prompts, short answers, generated", generated(400, 45, 45)),
    "large-vocabulary": Row("GSM8K solutions, vocabulary of 151,936", gsm8k, 151_936),
}

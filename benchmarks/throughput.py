"""Pairs per second of preftune and TRL, in turn, on the same weights, tokens, batches and precision.

    python benchmarks/throughput.py [--pairs 48] [--rounds 3] [--data gsm8k chat]

Needs the extra `bench`. Real pairs are read from ../shared/data where it is, GSM8K pairs from examples/gsm8k elsewhere.
Before anything is timed, both must give the same loss on the same batch. Prints a table and one JSON line a setting.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from preftune.data import sources
from preftune.data.dataset import DataConfig, read, render
from preftune.data.examples import Example
from preftune.data.rendering import RenderingConfig
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference
from preftune.policy.scratch import train_tokenizer
from preftune.training.step import Micro, Step

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
BATCH = 8
MAX_LENGTH = 1024
BETA = 0.1
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Setting:
    """One row of the table: a model and tokenised pairs."""

    name: str
    policy: PreTrainedModel
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    examples: list[Example]


def main() -> None:
    """Parse, check that both compute the same loss, time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", nargs="+", choices=sorted(DATA), default=sorted(DATA))
    parser.add_argument("--pairs", type=int, default=48, help="pairs in one timed pass (a multiple of 8)")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes of each")
    parser.add_argument("--only", choices=["preftune", "trl"], help="time one of the two (for profiling)")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH} pairs, fp32, live reference")
    for name in arguments.data:
        setting = prepare(name, arguments.pairs)
        contenders = {"preftune": ours, "trl": theirs}
        if arguments.only:
            contenders = {arguments.only: contenders[arguments.only]}
        passes = {who: make(setting) for who, make in contenders.items()}
        losses = {who: one() for who, (one, _) in passes.items()}
        if len(losses) == 2 and abs(losses["preftune"] - losses["trl"]) > 1e-4:
            sys.exit(f"{name}: the two do not compute the same loss on the same batch: {losses}")
        rates: dict[str, list[float]] = {who: [] for who in passes}
        for _ in range(arguments.rounds):
            for who, (_, timed) in passes.items():
                rates[who].append(len(setting.examples) / timed())
        show(setting, losses, rates)


def prepare(name: str, count: int) -> Setting:
    """Model, tokenizer and pairs of one row; pairs longer than 1,024 tokens are left out for both."""
    rows = list(DATA[name]())
    config = DataConfig(held_out=0, rendering=RenderingConfig(max_length=MAX_LENGTH))
    records = read(config, rows, seed=0)
    tokenizer = train_tokenizer(records.texts(), "qwen3", 16384, 2048)
    examples = render(records, tokenizer, config).train
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=16384, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    reference = Qwen3ForCausalLM(shape)
    policy = copy.deepcopy(reference)
    with torch.no_grad():  # apart from the reference, so that equal losses say something
        for parameter in policy.parameters():
            parameter += 0.02 * parameter.std().nan_to_num() * torch.randn_like(parameter)
    return Setting(name, policy, reference, tokenizer, [examples[i] for i in order[:count]])


def ours(setting: Setting) -> tuple[Callable[[], float], Callable[[], float]]:
    """preftune: the loss of the first batch, and one timed pass."""
    from accelerate import Accelerator

    from preftune.data.packing import pack
    from preftune.objectives import registry
    from preftune.training.optim import OptimConfig, optimizer

    accelerator = Accelerator(cpu=True)
    policy = PolicyModule(copy.deepcopy(setting.policy), "tree")
    reference = FrozenReference(PolicyModule(copy.deepcopy(setting.reference), "tree"))
    adamw = optimizer(policy, OptimConfig(), LEARNING_RATE)
    prepared, adamw = accelerator.prepare(policy, adamw)
    terms = registry.terms({"name": "dpo", "beta": BETA})
    step = Step(prepared, reference, terms, accelerator, seed=0)
    batches = [setting.examples[i : i + BATCH] for i in range(0, len(setting.examples), BATCH)]
    states = (terms[0].objective.init(),)

    def first() -> float:
        return step.evaluate([Micro(batches[0], pack(batches[0]))], states).loss

    def timed() -> float:
        start = time.perf_counter()
        for number, batch in enumerate(batches):
            step.train([Micro(batch, pack(batch))], states, adamw, number, 1.0)
        return time.perf_counter() - start

    return first, timed


def theirs(setting: Setting) -> tuple[Callable[[], float], Callable[[], float]]:
    """TRL's DPOTrainer on the same token ids: the loss of the first batch, and one timed pass."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    class Clock(TrainerCallback):
        start = end = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.start = self.start or time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.end = time.perf_counter()

    tokens = Dataset.from_list(
        [
            {
                "prompt_ids": example.prompt.tolist(),
                "chosen_ids": example.responses[0].ids.tolist(),
                "rejected_ids": example.responses[1].ids.tolist(),
            }
            for example in setting.examples
        ]
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, beta=BETA, learning_rate=LEARNING_RATE,
            max_length=MAX_LENGTH, num_train_epochs=1, report_to=[], save_strategy="no", logging_steps=10**6,
            disable_tqdm=True, use_cpu=True, gradient_checkpointing=False, bf16=False, dataloader_num_workers=0,
            lr_scheduler_type="constant", optim="adamw_torch_fused", weight_decay=0.0, max_grad_norm=1.0, seed=0,
        )  # fmt: skip
        text = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * BATCH)
        trainer = InOrder(
            model=copy.deepcopy(setting.policy), ref_model=copy.deepcopy(setting.reference), args=config,
            processing_class=setting.tokenizer, train_dataset=text, callbacks=[clock],
        )  # fmt: skip
    trainer.train_dataset = tokens

    def first() -> float:
        batch = trainer.data_collator([tokens[i] for i in range(BATCH)])
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model.eval(), batch))

    def timed() -> float:
        clock.start = 0.0
        trainer.train()
        return clock.end - clock.start

    return first, timed


def show(setting: Setting, losses: dict[str, float], rates: dict[str, list[float]]) -> None:
    """One row of figures."""
    lengths = {
        "prompt": statistics.median(len(e.prompt) for e in setting.examples),
        "chosen": statistics.median(e.responses[0].length for e in setting.examples),
        "rejected": statistics.median(e.responses[1].length for e in setting.examples),
    }
    medians = {who: statistics.median(values) for who, values in rates.items()}
    for who, values in rates.items():
        print(
            f"{setting.name:8} {who:9} {medians[who]:7.2f} pairs/s  ({min(values):.2f} to {max(values):.2f})  "
            f"loss {losses[who]:.6f}"
        )
    if len(medians) == 2:
        print(f"{setting.name:8} ratio     {medians['preftune'] / medians['trl']:7.2f}")
    print(json.dumps({"data": setting.name, "median_tokens": lengths, "pairs_per_second": rates}))


def gsm8k() -> Iterable[dict[str, Any]]:
    """Right over wrong solutions: from the full file, or from the part that is shipped."""
    from preftune.data.builders.gsm8k import preferences

    full = SHARED / "gsm8k"
    folder = full if full.is_dir() else ROOT / "examples" / "gsm8k" / "data"
    for pair in preferences(next(folder.glob("example_model_solutions.jsonl*"))):
        yield {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def chat() -> Iterable[dict[str, Any]]:
    """Real conversations."""
    for _, row in sources.rows(str(SHARED / "dpo_en_demo.json")):
        yield row


DATA = {"gsm8k": gsm8k, "chat": chat}

if __name__ == "__main__":
    main()

"""One contender in a process of its own, so that its peak memory is its own: it waits for words on standard input.

    python benchmarks/contenders.py preftune SETTING.pkl

Prints one line of JSON when it is ready (with the loss of the first batch), and one for each "go" (with the seconds of
a pass over all pairs and the peak of resident memory so far). Anything else ends it.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from settings import Setting
from transformers.utils import logging

BATCH = 8
BETA = 0.1
LEARNING_RATE = 1e-6
Pass = Callable[[], float]


def preftune(
    setting: Setting, stored: bool = False, precision: str = "no", compile_layers: bool = False
) -> tuple[float, Pass]:
    """preftune: the loss of the first batch, and one timed pass over all."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from preftune.data.packing import pack
    from preftune.objectives import registry
    from preftune.policy.compiling import compiled
    from preftune.policy.policy import PolicyModule
    from preftune.policy.reference import FrozenReference, Reference
    from preftune.training.optim import OptimConfig, optimizer
    from preftune.training.references import Forwards, stored_reference
    from preftune.training.step import Micro, Step

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    policy, other = setting.models()
    module = PolicyModule(policy, "tree")
    frozen = FrozenReference(PolicyModule(other, "tree"))
    frozen.module = accelerator.prepare_model(frozen.module, evaluation_mode=True)
    batches = [setting.examples[i : i + BATCH] for i in range(0, len(setting.examples), BATCH)]
    reference: Reference = frozen
    if stored:
        with tempfile.TemporaryDirectory() as folder:
            forwards = Forwards(lambda examples: Micro(examples, pack(examples)))
            reference = stored_reference(frozen, [setting.examples], forwards, precision, Path(folder))
    adamw = optimizer(module, OptimConfig(), LEARNING_RATE)
    prepared, adamw = accelerator.prepare(module, adamw)
    terms = registry.terms({"name": "dpo", "beta": BETA})
    step = Step(prepared, reference, terms, accelerator, seed=0)
    states = (terms[0].objective.init(),)

    first = step.evaluate([Micro(batches[0], pack(batches[0]))], states).loss

    def timed() -> float:
        with compiled([module, frozen.module]) if compile_layers else nullcontext():
            start = time.perf_counter()
            for number, batch in enumerate(batches):
                step.train([Micro(batch, pack(batch))], states, adamw, number, 1.0).require_finite()
            return time.perf_counter() - start

    return first, timed


def trl(setting: Setting, compile_model: bool = False) -> tuple[float, Pass]:
    """TRL's DPOTrainer on the same token ids. Its faster paths (Liger kernels, padding-free rows) need CUDA."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from preftune.policy.loading import built_in_folder

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
    policy, reference = setting.models()
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, beta=BETA, learning_rate=LEARNING_RATE,
            max_length=1024, num_train_epochs=1, report_to=[], save_strategy="no", logging_steps=10**6,
            disable_tqdm=True, use_cpu=True, gradient_checkpointing=False, bf16=False, dataloader_num_workers=0,
            lr_scheduler_type="constant", optim="adamw_torch_fused", weight_decay=0.0,
            max_grad_norm=1.0, seed=0, torch_compile=compile_model,
        )  # fmt: skip
        text = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * BATCH)
        trainer = InOrder(
            model=policy, ref_model=reference, args=config, train_dataset=text, callbacks=[clock],
            processing_class=PreTrainedTokenizerFast.from_pretrained(built_in_folder()),  # all is tokenised already
        )  # fmt: skip
    trainer.train_dataset = tokens

    def timed() -> float:
        clock.start = 0.0
        trainer.train()
        return clock.end - clock.start

    batch = trainer.data_collator([tokens[i] for i in range(BATCH)])
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model.eval(), batch))
    return loss, timed


CONTENDERS: dict[str, Callable[[Setting], tuple[float, Pass]]] = {
    "preftune": preftune,
    "preftune, stored reference": lambda setting: preftune(setting, stored=True),
    "preftune, compiled": lambda setting: preftune(setting, compile_layers=True),
    "preftune, bf16": lambda setting: preftune(setting, precision="bf16"),
    "TRL 1.16.0": trl,
    "TRL 1.16.0, compiled": lambda setting: trl(setting, compile_model=True),
}


def main() -> None:
    """Make ready, then pass over the pairs at each word."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    said, sys.stdout = sys.stdout, sys.stderr  # libraries print too
    loss, timed = CONTENDERS[sys.argv[1]](Setting.load(Path(sys.argv[2])))
    print(json.dumps({"loss": loss}), file=said, flush=True)
    for word in sys.stdin:
        if word.strip() != "go":
            break
        seconds = timed()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "peak_gb": peak}), file=said, flush=True)


if __name__ == "__main__":
    main()

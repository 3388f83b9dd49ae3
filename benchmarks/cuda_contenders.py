"""One contender of the CUDA benchmark in a process of its own: it waits for words on standard input.

    python benchmarks/cuda_contenders.py "preftune" cuda SETTING.pkl [SETTING.pkl ...]

All settings are of one model. It prints one line of JSON when it is ready (the loss of each setting's first batch, in
the precision of the run and in float32), and one for each "pass N" (a pass over all pairs of setting N: seconds, peak
memory) or "waits N" (where a step waited for the device). Anything else ends it.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from cuda_settings import LENGTHS, batches_of, models_on
from cuda_waits import waits
from settings import Setting
from torch import Tensor
from transformers.utils import logging

from preftune.data.examples import Example
from preftune.data.packing import PackedBatch
from preftune.objectives import registry
from preftune.objectives.batch import LogProbs
from preftune.policy.loading import ModelConfig, adapt
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference, Reference
from preftune.training.batches import BatchConfig, lengths
from preftune.training.feed import Feed
from preftune.training.optim import OptimConfig, optimizer
from preftune.training.step import Micro, Step

BETA = 0.1
LEARNING_RATE = 1e-6


class Contender(ABC):
    """Trains on settings, one pass at a time.

    Attributes:
        losses: of each setting's first batch, as the run computes.
        exact: the same in float32.
    """

    losses: list[float]
    exact: list[float]

    def __init__(self, settings: Sequence[Setting], device: str) -> None:
        self.settings, self.device = settings, device
        self.policy, self.other = models_on(settings[0], device)
        self.reduced = device == "cuda"  # bf16 autocast over float32 weights; on a CPU the two must agree closely

    @abstractmethod
    def train(self, number: int) -> float:
        """A pass over all pairs of a setting; returns the seconds from its first step to its last."""

    def waits(self, number: int) -> dict[str, float]:
        """Where a pass over a setting waits for the device, and how often in each step."""
        with waits(self.device) as places:
            self.train(number)
        return {place: count / len(batches_of(self.settings[number])) for place, count in places.most_common()}

    def now(self) -> float:
        """The clock, once the device is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class Preftune(Contender):
    """preftune's training step over prompt trees.

    Args:
        settings: of one model.
        device: "cuda" or "cpu".
        stored: read the reference's log-probs instead of computing them.
        checkpointed: with gradient checkpointing.
    """

    def __init__(
        self, settings: Sequence[Setting], device: str, stored: bool = False, checkpointed: bool = False
    ) -> None:
        super().__init__(settings, device)
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if self.reduced else "no")
        if checkpointed:
            adapt(self.policy, ModelConfig(gradient_checkpointing=True), seed=0)
        module = PolicyModule(self.policy, "tree")
        self.feed = Feed(module, BatchConfig(), None, self.accelerator.device, pad_id=0)
        frozen = FrozenReference(PolicyModule(self.other, "tree"))
        terms = registry.terms({"name": "dpo", "beta": BETA})
        self.states = (terms[0].objective.init(),)
        firsts = [batches_of(each)[0] for each in settings]
        plain = Step(module, frozen, terms, self.accelerator, seed=0)
        self.exact = [plain.evaluate(self.feed.side(first), self.states).loss for first in firsts]
        frozen.module = self.accelerator.prepare_model(frozen.module, evaluation_mode=True)
        reference: Reference = frozen
        if stored:
            reference = Stored(
                frozen, [micro for each in settings for b in batches_of(each) for micro in self.feed.side(b)]
            )
            frozen.module.to("meta")
        self.optimizer: Any
        prepared, self.optimizer = self.accelerator.prepare(module, optimizer(module, OptimConfig(), LEARNING_RATE))
        self.step = Step(prepared, reference, terms, self.accelerator, seed=0)
        self.losses = [self.step.evaluate(self.feed.side(first), self.states).loss for first in firsts]

    def train(self, number: int) -> float:  # noqa: D102
        found = self.settings[number]
        schedule = np.split(np.arange(len(found.examples)), len(batches_of(found)))
        start = self.now()
        with closing(self.feed.batches(found.examples, lengths(found.examples), schedule)) as batches:
            for step, micros in enumerate(batches):
                self.step.train(micros, self.states, self.optimizer, step, 1.0)
        return self.now() - start


class Stored(Reference):
    """Log-probs computed beforehand and kept on the CPU, read in each step as training on stored ones reads them."""

    def __init__(self, live: Reference, micros: Sequence[Micro]) -> None:
        self.values: dict[bytes, Tensor] = {}
        for micro in micros:
            lengths = [sum(response.length for response in example.responses) for example in micro.examples]
            pieces = live.logps(micro.batch, micro.examples).logps_K.cpu().split(lengths)
            self.values |= {self._key(example): piece for example, piece in zip(micro.examples, pieces, strict=True)}

    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:  # noqa: D102
        logps_K = torch.cat([self.values[self._key(example)] for example in examples])
        logps_K = logps_K.pin_memory() if batch.ids_T.is_cuda else logps_K
        return LogProbs(logps_K.to(batch.ids_T.device, non_blocking=True))

    @staticmethod
    def _key(example: Example) -> bytes:
        return b"|".join(each.tobytes() for each in (example.prompt, *(r.ids for r in example.responses)))


class Trl(Contender):
    """TRL's DPOTrainer on the same token ids.

    Args:
        settings: of one model.
        device: "cuda" or "cpu".
        stored: with `precompute_ref_log_probs`.
        checkpointed: with gradient checkpointing.
        liger: with Liger's kernels for norms, rotations and the gated MLP.
        attention: as transformers names it.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        device: str,
        stored: bool = False,
        checkpointed: bool = False,
        liger: bool = False,
        attention: str = "sdpa",
    ) -> None:
        super().__init__(settings, device)
        for model in (self.policy, self.other):
            model.set_attn_implementation(attention)
        self.options = {
            "beta": BETA, "learning_rate": LEARNING_RATE, "max_length": 2048, "num_train_epochs": 1, "report_to": [],
            "save_strategy": "no", "logging_steps": 10**6, "disable_tqdm": True, "use_cpu": device == "cpu",
            "gradient_checkpointing": checkpointed, "lr_scheduler_type": "constant", "optim": "adamw_torch_fused",
            "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 0, "use_liger_kernel": liger,
            "dataloader_num_workers": 2 if device == "cuda" else 0, "dataloader_pin_memory": device == "cuda",
        }  # fmt: skip
        self.data = [self._tokens(each) for each in settings]
        self.exact = self._losses(self._trainer(reduced=False))
        self.trainer = self._trainer(self.reduced)
        self.losses = self._losses(self.trainer)
        if stored:  # what `precompute_ref_log_probs` does, for each setting's pairs
            self.data = [self.trainer._precompute_ref_logps(each, "train", 8) for each in self.data]
            self.trainer.precompute_ref_logps = True
            self.trainer.ref_model = None
            self.other.to("meta")

    def train(self, number: int) -> float:  # noqa: D102
        self.trainer.train_dataset = self.data[number]
        self.trainer.args.per_device_train_batch_size = self._batch(number)
        self.trainer._train_batch_size = self._batch(number)
        self.start = self.end = 0.0
        self.trainer.train()
        return self.end - self.start

    def _batch(self, number: int) -> int:
        return LENGTHS[self.settings[number].name.split("/")[1]].batch

    def _tokens(self, found: Setting) -> Any:
        from datasets import Dataset

        return Dataset.from_list(
            [
                {
                    "prompt_ids": example.prompt.tolist(),
                    "chosen_ids": example.responses[0].ids.tolist(),
                    "rejected_ids": example.responses[1].ids.tolist(),
                }
                for example in found.examples
            ]
        )

    def _trainer(self, reduced: bool) -> Any:
        from datasets import Dataset
        from torch.utils.data import SequentialSampler
        from transformers import PreTrainedTokenizerFast, TrainerCallback
        from trl import DPOConfig, DPOTrainer

        from preftune.policy.loading import built_in_folder

        class InOrder(DPOTrainer):
            def _get_train_sampler(self, dataset: Any = None) -> Any:
                return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        contender = self

        class Clock(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                contender.start = contender.start or contender.now()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == state.max_steps:
                    contender.end = contender.now()

        with tempfile.TemporaryDirectory() as folder:
            config = DPOConfig(
                output_dir=folder, bf16=reduced, per_device_train_batch_size=self._batch(0), **self.options
            )
            text = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * self._batch(0))
            return InOrder(
                model=self.policy, ref_model=self.other, args=config, train_dataset=text, callbacks=[Clock()],
                processing_class=PreTrainedTokenizerFast.from_pretrained(built_in_folder()),  # all is tokenised already
            )  # fmt: skip

    def _losses(self, trainer: Any) -> list[float]:
        """Of each setting's first batch."""
        found = []
        for number, data in enumerate(self.data):
            batch = trainer._prepare_inputs(trainer.data_collator([data[i] for i in range(self._batch(number))]))
            with torch.no_grad(), trainer.compute_loss_context_manager():
                found.append(float(trainer.compute_loss(trainer.model.eval(), batch)))
        return found


CONTENDERS: dict[str, tuple[type[Contender], dict[str, Any]]] = {
    "preftune": (Preftune, {}),
    "preftune, stored reference": (Preftune, {"stored": True}),
    "preftune, checkpointed": (Preftune, {"checkpointed": True}),
    "preftune, stored, checkpointed": (Preftune, {"stored": True, "checkpointed": True}),
    "TRL": (Trl, {}),
    "TRL, Liger": (Trl, {"liger": True}),
    "TRL, flash attention": (Trl, {"attention": "flash_attention_2"}),
    "TRL, stored reference": (Trl, {"stored": True}),
    "TRL, stored reference, Liger": (Trl, {"stored": True, "liger": True}),
    "TRL, checkpointed": (Trl, {"checkpointed": True}),
    "TRL, checkpointed, Liger": (Trl, {"checkpointed": True, "liger": True}),
    "TRL, stored, checkpointed": (Trl, {"stored": True, "checkpointed": True}),
    "TRL, stored, checkpointed, Liger": (Trl, {"stored": True, "checkpointed": True, "liger": True}),
}


def peak_gb(device: str) -> float:
    """Most memory in use since the last reset (on a CPU: since the start)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def answer(contender: Contender, word: str, number: int) -> dict[str, Any]:
    """What a word asks for."""
    if word == "waits":
        return {"waits": contender.waits(number)}
    if contender.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = contender.train(number)
    return {"seconds": seconds, "peak_gb": peak_gb(contender.device)}


def main() -> None:
    """Make ready, then do as told."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    said, sys.stdout = sys.stdout, sys.stderr  # libraries print too

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=said, flush=True)

    kind, options = CONTENDERS[sys.argv[1]]
    device = sys.argv[2]
    try:
        contender = kind([Setting.load(Path(path)) for path in sys.argv[3:]], device, **options)
    except Exception as error:  # a kernel that is not there, a card that is too small: the table says so
        say({"error": f"{type(error).__name__}: {error}"[:300]})
        raise
    say({"losses": contender.losses, "exact": contender.exact})
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word not in ("pass", "waits"):
            break
        try:
            say(answer(contender, word, int(number)))
        except torch.OutOfMemoryError:
            say({"error": "out of memory"})
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()  # while it waits, others need the room


if __name__ == "__main__":
    main()

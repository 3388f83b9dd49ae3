"""Evaluation while training runs: held-out pairs, and samples for fixed prompts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from preftune.data.examples import Example
from preftune.evaluation.sampling import Sampled, sample
from preftune.policy.policy import PolicyModule
from preftune.training import metrics
from preftune.training.batches import SAMPLING, torch_seed
from preftune.training.doctor.config import DoctorConfig
from preftune.training.engine import used
from preftune.training.scored import States
from preftune.training.step import Micro, Step

if TYPE_CHECKING:
    from preftune.rlhf.rounds import Rounds

# Tokens, prompts included, of the answers that are written at a time: their keys and values lie in memory.
ANSWERED_AT_ONCE = 16384


class EvaluateConfig(BaseModel):
    """What is measured besides the training loss."""

    model_config = ConfigDict(extra="forbid")

    every: int | None = Field(
        None, ge=1, description="optimiser steps between two evaluations; none: start and end only"
    )
    samples: int = Field(4, ge=0, description="fixed prompts that the policy answers at the start and at the end")
    max_new_tokens: int = Field(128, ge=1, description="longest sampled answer, in tokens")
    temperature: float = Field(1.0, ge=0, description="of the samples; 0: the likeliest token each time")
    credit: int = Field(4, ge=0, description="held-out pairs whose credit per token is kept at the end")


class HeldOut:
    """The held-out examples, and what the policy made of them at step 0.

    Args:
        step: scores them.
        micros: forwards over them.
        examples: the same in the order of the forwards, those of all processes.
    """

    def __init__(self, step: Step, micros: Sequence[Micro], examples: Iterable[Example]) -> None:
        self.step, self.micros = step, micros
        self.prompts: list[Hashable] = [hash(np.asarray(example.prompt).tobytes()) for example in examples]
        self.start: Mapping[str, np.ndarray] | None = None

    def evaluate(self, states: States) -> dict[str, Any]:
        """Metrics of the policy as it is; the first call is taken as the start."""
        scored = self.step.whole([self.step.evaluate(self.micros, states)])[0]
        table = metrics.table(scored.columns)
        if self.start is None:
            self.start = table
        return {"loss": scored.loss, **metrics.held_out(table, self.start, self.prompts)}


class AnswersHeldOut:
    """Held-out prompts that the policy of an online run answers; nothing is compared with step 0."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds
        self.start: Mapping[str, np.ndarray] | None = None

    def evaluate(self, states: States) -> dict[str, Any]:
        """Reward and KL of the policy as it is."""
        return self.rounds.evaluate()


def answers(
    policy: PolicyModule,
    prompts: Sequence[Sequence[int]],
    each: int,
    config: EvaluateConfig,
    end_ids: Sequence[int],
    pad_id: int,
    seed: int,
) -> list[Sampled]:
    """The policy's answers to each prompt, those to one prompt side by side; the same random numbers every time, and
    the first answer to a prompt whatever others there are."""
    longest = max(len(prompt) for prompt in prompts) + config.max_new_tokens
    return used(
        policy,
        lambda lm: sample(
            lm,
            prompts,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            samples_per_prompt=each,
            seed=torch_seed(seed, SAMPLING),
            end_ids=end_ids,
            batch_size=max(1, ANSWERED_AT_ONCE // longest),
            pad_id=pad_id,
        ),
    )


def as_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], answer: Sampled) -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {
        "prompt": tokenizer.decode(prompt, skip_special_tokens=False),
        "response": tokenizer.decode(answer.ids, skip_special_tokens=True),
        "tokens": len(answer.ids),
        "ended": answer.ended,
    }


def fixed_prompts(held_out: Sequence[Example], train: Sequence[Example], count: int) -> list[list[int]]:
    """The first different prompts, held-out ones if there are any."""
    different: dict[tuple[int, ...], None] = {}
    for example in held_out or train:
        if len(different) == count:
            break
        different.setdefault(tuple(int(i) for i in example.prompt))
    return [list(prompt) for prompt in different]


def prompts_wanted(config: EvaluateConfig, doctor: DoctorConfig) -> int:
    """How many prompts are answered at each evaluation: those whose answers are kept, and as many as give the doctor
    two answers each."""
    return max(config.samples, doctor.answers // 2) if config.samples else 0

"""A reward model as a judge: a run of `bradley_terry`, or any sequence classifier of one label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from preftune.data.examples import Example
from preftune.data.fields import Unfit, read_text_or_turns, shown
from preftune.data.packing import pad
from preftune.data.records import Demonstration, PromptOnly, Text, Where
from preftune.data.rendering import Renderer, RenderingConfig
from preftune.errors import PreftuneError
from preftune.evaluation.judges.base import Comparison, ScoringJudge, digest
from preftune.evaluation.models import MODEL, find, load_policy
from preftune.files import hash_file
from preftune.policy.loading import Loaded, positions, vocabulary
from preftune.policy.policy import PolicyModule, rewards

BATCH = 16  # answers scored at a time


class RewardModel(ScoringJudge):
    """Scores an answer by the scalar head, at the token that ends it, as in training.

    Args:
        name: as on the command line.
        path: a run folder, or a folder or hub id of a sequence classifier with one label.

    Raises:
        PreftuneError: if there is no such model.
    """

    def __init__(self, name: str, path: str) -> None:
        named = find(path)
        if not named.is_reward_model:
            raise PreftuneError(
                f"{path} is no reward model: name a run of bradley_terry, or a folder of a sequence classifier with "
                "one label"
            )
        loaded = load_policy(named)
        if not hasattr(loaded.lm, "score"):
            raise PreftuneError(
                f"{path} is {type(loaded.lm).__name__}, expected a sequence classifier on a causal model, whose scalar "
                "head is called score"
            )
        rendering = named.config.data.rendering
        if named.run is None and loaded.tokenizer.chat_template is not None:
            rendering = RenderingConfig(text_as_chat=True)  # what such models are trained on
        self.name = name
        weights = Path(path) if named.run is None else named.run / MODEL
        self.fingerprint = digest("reward", path, *map(hash_file, sorted(weights.glob("*.safetensors"))), rendering)
        if rendering.truncate != "response_end":  # where answers are cut, it has learned from what is left of them
            rendering = rendering.model_copy(update={"max_length": None})
        self.renderer = Renderer(loaded.tokenizer, rendering)
        self.longest, self.known, self.unknown_id = positions(loaded.lm), vocabulary(loaded.lm), _unknown(loaded)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.policy = PolicyModule(loaded.lm.to(self.device).eval(), "padded")
        self.pad_id = loaded.tokenizer.pad_token_id or 0

    def scores(self, answers: Sequence[tuple[Comparison, str]]) -> Sequence[float | None]:  # noqa: D102
        examples = [self._example(comparison, text, i) for i, (comparison, text) in enumerate(answers)]
        self._check_read(examples, answers)
        # like lengths go together, so that little is padded
        order = sorted(range(len(examples)), key=lambda i: -_length(examples[i]))
        found = [0.0] * len(examples)
        waiting: Iterator[int] = iter(order)
        with torch.no_grad():
            while batch := list(islice(waiting, BATCH)):
                packed = pad([examples[i] for i in batch], self.pad_id).to(self.device)
                values: Any = rewards(self.policy, packed).reward_R
                for i, value in zip(batch, values.tolist(), strict=True):
                    found[i] = value
        return found

    def _example(self, comparison: Comparison, text: str, number: int) -> Example:
        asked, where = conversation(comparison), Where(comparison.key, number)
        # an answer without text is the token that ends it
        record = Demonstration(asked, text, where) if text.strip() else PromptOnly(asked, where)
        try:
            example = self.renderer.example(record)
        except PreftuneError as error:
            raise PreftuneError(f"judge {self.name} cannot read {comparison.key}: {error}") from None
        if not isinstance(example, Example):
            raise PreftuneError(f"judge {self.name} cannot read {comparison.key}: {example.reason}")
        if self.longest is not None and _length(example) > self.longest:
            raise PreftuneError(
                f"judge {self.name} reads {self.longest} tokens, but {comparison.key} has {_length(example)}: leave it "
                "out"
            )
        largest = max(int(example.prompt.max(initial=0)), int(example.responses[0].ids.max(initial=0)))
        if self.known is not None and largest >= self.known:
            raise PreftuneError(
                f"judge {self.name}: its tokenizer gives token {largest} for {comparison.key}, but its model knows "
                f"tokens 0 to {self.known - 1}: they do not belong together, restore its tokenizer"
            )
        return example

    def _check_read(self, examples: Sequence[Example], answers: Sequence[tuple[Comparison, str]]) -> None:
        """Refuse answers of which the model's own tokenizer knows no word: all of them would look alike to it."""
        if self.unknown_id is None or not examples:
            return
        for example in examples:
            ids = example.responses[0].ids[:-1]  # the last one ends it
            if not len(ids) or (ids != self.unknown_id).any():
                return
        raise PreftuneError(
            f"judge {self.name} knows no word of {len(examples)} answers (the first, on {answers[0][0].key}: "
            f"{shown(answers[0][1])}): its tokenizer was made for other texts, so name another judge"
        )


def _unknown(loaded: Loaded) -> int | None:
    """The token that stands for all that a tokenizer does not know; None where there is none."""
    found = loaded.tokenizer.unk_token_id
    return found if isinstance(found, int) else None


def conversation(comparison: Comparison) -> Text:
    """The prompt as the data has it: in turns, where it has turns."""
    try:
        return read_text_or_turns(comparison.row["prompt"], "prompt")
    except (KeyError, Unfit):
        return comparison.prompt


def _length(example: Example) -> int:
    return len(example.prompt) + len(example.responses[0].ids)

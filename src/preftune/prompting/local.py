"""A generator that is loaded here: a run's model, or any."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from preftune.data.chat_template import find_template
from preftune.data.examples import Example, Ids
from preftune.data.records import PromptOnly, Text, Where
from preftune.data.rendering import Renderer
from preftune.errors import PreftuneError
from preftune.evaluation.continuing import continuation
from preftune.evaluation.judges.base import digest
from preftune.evaluation.models import find, load_policy
from preftune.evaluation.sampling import Sampled, sample
from preftune.policy.loading import positions
from preftune.prompting.generators import Generator, GeneratorSampling, Progress, Question, Reply
from preftune.resuming import start_hash

TOGETHER = 64  # answers written at a time


class LocalGenerator(Generator):
    """A model on this machine. Prompts are rendered as in its training; long ones are refused, never cut.

    Args:
        name: run, model folder, hub id or "sandbox".
        chat: put plain texts as a user's turn; None: if its tokenizer has a chat template.

    Raises:
        PreftuneError: if it cannot be loaded, or writes nothing.
    """

    def __init__(self, name: str, chat: bool | None = None) -> None:
        named = find(name)
        if named.is_reward_model:
            raise PreftuneError(f"{name} is a reward model, which writes nothing: name a language model")
        loaded = load_policy(named)
        rendering = named.config.data.rendering.model_copy(update={"max_length": None})
        self.name = name
        self._device = torch.accelerator.current_accelerator() or torch.device("cpu")
        self._lm, self._renderer = loaded.lm.to(self._device), Renderer(loaded.tokenizer, rendering)
        self._positions = _most(self._lm)
        self.chat = find_template(loaded.tokenizer, rendering.chat_template) is not None if chat is None else chat
        self.fingerprint = digest(start_hash(self._lm), rendering.model_dump_json(), self.chat)

    def close(self) -> None:  # noqa: D102
        del self._lm

    def answers(  # noqa: D102
        self, questions: Sequence[Question], sampling: GeneratorSampling, progress: Progress | None = None
    ) -> list[list[Reply]]:
        ids = [self._ids(question.prompt) for question in questions]
        fits = [i for i, one in enumerate(ids) if self._room(one) >= 1]
        # draws follow from what is asked, so that other prompts, and a stop in between, change nothing
        keys = [question.key for question in questions]
        found: dict[int, list[Reply]] = {
            i: [Reply("", False, len(ids[i]), 0, self._refusal(ids[i]))] * sampling.samples
            for i in set(range(len(ids))) - set(fits)
        }
        size = max(1, TOGETHER // sampling.samples)
        by_room: dict[int, list[int]] = {}
        for i in fits:
            by_room.setdefault(min(sampling.max_new_tokens, self._room(ids[i])), []).append(i)
        done = len(found)
        for most, group in by_room.items():
            for start in range(0, len(group), size):
                some = group[start : start + size]
                sampled = self._sample([ids[i] for i in some], [keys[i] for i in some], most, sampling)
                each = sampling.samples
                for number, i in enumerate(some):
                    found[i] = [
                        self._reply(ids[i], one, sampling.stop) for one in sampled[number * each : (number + 1) * each]
                    ]
                done += len(some)
                if progress is not None:
                    progress(done * each, len(ids) * each)
        return [found[i] for i in range(len(ids))]

    def _sample(self, ids: Sequence[Ids], keys: Sequence[str], most: int, sampling: GeneratorSampling) -> list[Sampled]:
        ends = sorted(self._renderer.end_ids)
        found: list[Sampled] = sample(
            self._lm,
            ids,
            max_new_tokens=most,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            samples_per_prompt=sampling.samples,
            seed=sampling.seed,
            numbers=[int(key[:12], 16) for key in keys],
            end_ids=ends,
            batch_size=TOGETHER,
            pad_id=ends[0],
        )
        return found

    def _ids(self, prompt: Text) -> Ids:
        example = self._renderer.example(PromptOnly(prompt, Where(f"prompts for {self.name}", 0)))
        if not isinstance(example, Example):
            raise PreftuneError(f"{self.name} cannot read a prompt: {example.reason}")
        return example.prompt

    def _room(self, ids: Ids) -> int:
        return 2**31 if self._positions is None else self._positions - len(ids)

    def _refusal(self, ids: Ids) -> str:
        return f"the prompt has {len(ids):,} tokens, and {self.name} reads {self._positions:,} in all"

    def _reply(self, prompt: Ids, sampled: Sampled, stop: Sequence[str]) -> Reply:
        text = continuation(self._renderer.tokenizer, prompt, sampled.ids)
        at = min((place for each in stop if (place := text.find(each)) >= 0), default=-1)
        return Reply(text if at < 0 else text[:at], bool(sampled.ended) or at >= 0, len(prompt), len(sampled.ids))


def _most(lm: nn.Module) -> int | None:
    """Tokens that a model was made to read: more would be slow nonsense, also where positions know no end."""
    config = getattr(lm, "config", None)
    said = getattr(config, "max_position_embeddings", None)
    return positions(lm) or (said if isinstance(said, int) and said > 0 else None)

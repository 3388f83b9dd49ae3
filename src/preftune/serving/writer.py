"""The one thread that a served model computes in: requests wait in line, and greedy ones are answered together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from preftune.data.examples import Example, Ids
from preftune.data.records import Demonstration, Text, Where
from preftune.data.rendering import Renderer, RenderingConfig
from preftune.errors import PreftuneError
from preftune.evaluation.continuing import continuation
from preftune.evaluation.sampling import Sampled, sample
from preftune.serving.adapters import Adapters
from preftune.serving.asked import CHAT_TOKENS, Asked, RequestError, Tokens

TOGETHER = 32  # greedy requests answered in one batch
WAIT = 0.2  # seconds between two looks at whether to stop


@dataclass(frozen=True)
class Choice:
    """One answer.

    Attributes:
        text: without the end token, or the stop text and what follows it.
        ended: False if it was cut at its longest.
        ids: tokens that were written for it, the end token included; None: only their number is known.
        counted: that number.
    """

    text: str
    ended: bool
    ids: Ids | None
    counted: int = 0

    @property
    def tokens(self) -> int:
        """How many were written."""
        return self.counted if self.ids is None else len(self.ids)


@dataclass(frozen=True)
class Written:
    """The answers to a request, those to one prompt side by side, and the tokens of its prompts.

    Attributes:
        choices: the answers.
        prompt_tokens: tokens that were read for them.
        about: what else is said of them, in the field "preftune" of what is sent.
    """

    choices: tuple[Choice, ...]
    prompt_tokens: int
    about: Mapping[str, Any] | None = None


class Answering(Protocol):
    """Who answers requests: a `Writer`, or others."""

    adapters: Adapters | None

    @property
    def names(self) -> list[str]:
        """What clients may ask."""

    def write(self, asked: Asked) -> Written:
        """The answers to a request.

        Raises:
            RequestError: if it cannot be answered.
        """

    def close(self) -> None:
        """Stop."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A language model to be served.

    Attributes:
        name: what clients call it.
        generating: gives the model, ready to be sampled from.
        tokenizer: its own.
        rendering: how conversations become tokens.
        context: most tokens that it reads; None: any number.
        adapters: on it; None: clients may load none.
    """

    name: str
    generating: Callable[[], AbstractContextManager[nn.Module]]
    tokenizer: PreTrainedTokenizerBase
    rendering: RenderingConfig
    context: int | None
    adapters: Adapters | None = None


@dataclass
class _Job:
    asked: Asked
    done: threading.Event = field(default_factory=threading.Event)
    written: Written | None = None
    error: Exception | None = None


class Writer:
    """Answers requests in a thread of its own, until it is closed.

    Args:
        model: what answers.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        # as in training, but whole: a prompt that does not fit is refused and not cut
        rendering = model.rendering.model_copy(update={"max_length": None})
        self.renderer = Renderer(model.tokenizer, rendering)
        self.adapters = model.adapters
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def write(self, asked: Asked) -> Written:
        """Wait for the answers to a request.

        Raises:
            RequestError: if it cannot be answered.
        """
        job = _Job(asked)
        self._jobs.put(job)
        while not job.done.wait(WAIT):
            if self._closing.is_set():
                raise RequestError(503, "the server is stopping")
        if job.written is None:
            raise job.error or RequestError(500, "nothing was written")
        return job.written

    @property
    def names(self) -> list[str]:
        """What clients may ask: the model, and adapters on it."""
        return [self.model.name, *(self.model.adapters.names if self.model.adapters else ())]

    def close(self) -> None:
        """Stop after the batch under way."""
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                jobs = [self._jobs.get(timeout=WAIT)]
            except queue.Empty:
                continue
            later: list[_Job] = []
            first = jobs[0].asked
            while first.temperature == 0 and len(jobs) < TOGETHER:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                alike = job.asked.temperature == 0 and job.asked.model == first.model
                (jobs if alike else later).append(job)
            self._answer(jobs)
            for job in later:  # drawn from a stream of their own, which is one for all of a batch
                self._answer([job])

    def _answer(self, jobs: Sequence[_Job]) -> None:
        try:
            self._write(jobs)
        except Exception as error:  # whatever it is, who asked must hear of it, and the next ones be answered
            if len(jobs) > 1:
                for job in jobs:
                    self._answer([job])
                return
            known = isinstance(error, RequestError)
            jobs[0].error = error if known else RequestError(500, f"{type(error).__name__}: {error}")
        for job in jobs:
            job.done.set()

    def _write(self, jobs: Sequence[_Job]) -> None:
        prompts = [[self._ids(prompt) for prompt in job.asked.prompts] for job in jobs]
        longest = [self._longest(job.asked, ids) for job, ids in zip(jobs, prompts, strict=True)]
        first, ends = jobs[0].asked, self.end_ids
        copies = 1 if first.temperature == 0 else first.n
        with self._named(first.model) as lm:
            found = sample(
                lm,
                [ids for own in prompts for ids in own],
                max_new_tokens=max(longest),
                temperature=first.temperature,
                top_p=first.top_p,
                samples_per_prompt=copies,
                seed=first.seed,
                end_ids=ends,
                pad_id=ends[0],
            )
        answers = iter(found)
        for job, own, most in zip(jobs, prompts, longest, strict=True):
            choices: list[Choice] = []
            for ids in own:
                drawn = [self._choice(ids, next(answers), most, job.asked.stop) for _ in range(copies)]
                choices += drawn * job.asked.n if copies == 1 else drawn
            job.written = Written(tuple(choices), sum(len(ids) for ids in own))

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return sorted(self.renderer.end_ids)

    @contextmanager
    def _named(self, name: str) -> Iterator[nn.Module]:
        """The model, with the adapter of this name if it is one's."""
        with self.model.generating() as lm, ExitStack() as stack:
            if self.model.adapters is not None:
                stack.enter_context(self.model.adapters.using(None if name == self.model.name else name))
            yield lm

    def _ids(self, prompt: Text | Tokens) -> Ids:
        """The prompt as the model was trained to read it, or tokens as they are."""
        if isinstance(prompt, tuple) and isinstance(prompt[0], int):
            known = len(self.model.tokenizer)
            if (largest := max(prompt)) >= known:
                raise RequestError(400, f"prompt has token {largest}, but the tokenizer knows {known}", "prompt")
            return np.array(prompt, dtype=np.int32)
        try:
            # a stand-in for the answer: what is rendered in training is a whole example
            example = self.renderer.example(Demonstration(prompt, " .", Where("request", 0)))
        except PreftuneError as error:
            raise RequestError(400, str(error)) from None
        if not isinstance(example, Example):
            raise RequestError(400, example.reason)
        return example.prompt

    def _longest(self, asked: Asked, prompts: Sequence[Ids]) -> int:
        """Tokens at which answers are cut."""
        most = CHAT_TOKENS if asked.max_tokens is None else asked.max_tokens
        context, read = self.model.context, max(len(ids) for ids in prompts)
        if context is None:
            return most
        room = context - read
        if room < 1 or (asked.max_tokens is not None and most > room):
            raise RequestError(
                400,
                f"the prompt has {read} tokens and the answer may have {most}, but the model reads {context} in "
                "all: shorten the prompt, or lower max_tokens",
                "max_tokens",
                "context_length_exceeded",
            )
        return min(most, room)

    def _choice(self, prompt: Ids, sampled: Sampled, most: int, stop: Sequence[str]) -> Choice:
        ids, ended = sampled.ids[:most], sampled.ended and len(sampled.ids) <= most
        text = continuation(self.model.tokenizer, prompt, ids)
        at = min((place for each in stop if (place := text.find(each)) >= 0), default=-1)
        return Choice(text if at < 0 else text[:at], ended or at >= 0, ids)

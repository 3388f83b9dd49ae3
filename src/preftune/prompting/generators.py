"""Generators: whoever answers prompts. A model at hand, one behind an endpoint, or a Python function, all alike.

RUN, model folder, hub id, sandbox     a model that is loaded here; sandbox:north and its like know the built-in tasks
endpoint:URL#MODEL                     an OpenAI-compatible endpoint: vLLM, a provider, preftune serve
package.module:function                takes a list of prompts (texts), gives a list of answers
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from preftune.data.records import Message, Text
from preftune.errors import PreftuneError
from preftune.evaluation.budget import Budget
from preftune.evaluation.judges import ENDPOINT, EndpointUse
from preftune.evaluation.judges.base import digest

REPLIES, CALLS = "replies.jsonl", "calls.jsonl"
MOST = 1024  # answers to one prompt
SANDBOX = "sandbox:"  # models of the built-in tasks
Progress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True)
class GeneratorSampling:
    """How answers are written.

    Attributes:
        max_new_tokens: tokens at which one is cut.
        temperature: 0 takes the most probable token.
        top_p: mass of the most probable tokens to draw from.
        samples: answers to each prompt.
        seed: of what is drawn. A prompt's answers do not depend on which others are asked beside it.
        stop: texts that end an answer, and are no part of it.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.samples <= MOST:
            raise PreftuneError(f"{self.samples:,} answers to a prompt were asked for, expected at most {MOST:,}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise PreftuneError(f"the temperature is {self.temperature}, expected 0 or more")


@dataclass(frozen=True)
class Reply:
    """What a generator wrote.

    Attributes:
        text: without the token that ends it.
        ended: False if it was cut.
        prompt_tokens: tokens that were read; 0 where they are not known.
        tokens: tokens that were written; 0 where they are not known.
        refused: why there is no text: an endpoint, or the length of a model's positions, did not take this prompt.
    """

    text: str
    ended: bool = True
    prompt_tokens: int = 0
    tokens: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Question:
    """A prompt as it is put to a generator.

    Attributes:
        prompt: text to continue, or turns to answer.
        time: how often the same prompt was put before, in the same call: 0, 1, 2.
    """

    prompt: Text
    time: int = 0

    @property
    def key(self) -> str:
        """A name that is the same in every process."""
        prompt = self.prompt if isinstance(self.prompt, str) else [astuple(turn) for turn in self.prompt]
        return digest(prompt, self.time)


class Generator(ABC):
    """Answers prompts. Use it as a context manager.

    Attributes:
        name: as on the command line.
        fingerprint: changes with whatever its answers depend on.
        chat: True if a plain text is put to it as a user's turn.
        budget: what has been spent on an endpoint, of what may be; None for who costs nothing.
    """

    name: str
    fingerprint: str
    chat: bool
    budget: Budget | None = None

    def write(
        self, prompts: Sequence[Text], sampling: GeneratorSampling, progress: Progress | None = None
    ) -> list[list[Reply]]:
        """Answers to each prompt, `sampling.samples` of them. A prompt that stands there twice gets others the second
        time, unless the most probable token is always taken.

        Args:
            prompts: texts, or turns of conversations.
            sampling: how.
            progress: told how many answers of how many are there.

        Raises:
            PreftuneError: if the generator cannot answer, or a budget is used up; what was answered is kept.
        """
        questions: list[Question] = []
        times: Counter[Text] = Counter()
        for number, prompt in enumerate(prompts):
            if not _has_text(prompt):
                raise PreftuneError(f"prompt {number} for {self.name} is empty, expected text")
            put = (Message("user", prompt),) if self.chat and isinstance(prompt, str) else prompt
            questions.append(Question(put, times[put]))
            times[put] += 1
        return self.answers(questions, sampling, progress) if questions else []

    @abstractmethod
    def answers(
        self, questions: Sequence[Question], sampling: GeneratorSampling, progress: Progress | None = None
    ) -> list[list[Reply]]:
        """As `write`, of prompts as they are put."""

    def close(self) -> None:
        """Let go of files, connections and memory."""
        return

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_generator(
    name: str, folder: Path | None = None, *, use: EndpointUse | None = None, chat: bool | None = None
) -> Generator:
    """A generator by its name on the command line.

    Args:
        name: one of those above.
        folder: where all it writes is kept, and replayed from; None: nothing is kept.
        use: of an endpoint: its budget, how many calls at a time, and so on.
        chat: put plain texts to it as a user's turn; None: if it has a chat template; an endpoint always has.

    Raises:
        PreftuneError: if there is no such generator, or the folder cannot be used.
    """
    if name.startswith(ENDPOINT):
        return EndpointGenerator(name, folder, use or EndpointUse(), chat is not False)
    found = _local(name, chat)
    if folder is None:
        return found
    from preftune.prompting.kept import KeptGenerator

    try:
        return KeptGenerator(found, folder / REPLIES)
    except BaseException:
        found.close()
        raise


def is_remote(name: str) -> bool:
    """True for endpoints and functions, which take no memory. Others must at least be there.

    Raises:
        PreftuneError: if they are not.
    """
    if ":" in name and not name.startswith(SANDBOX) and not Path(name).exists():
        return True
    from preftune.evaluation.models import find

    find(name)
    return False


def _local(name: str, chat: bool | None) -> Generator:
    from preftune.importing import imported

    module, _, thing = name.partition(":")
    names_function = all(part.isidentifier() for part in module.split(".")) and thing.isidentifier()
    if not names_function or name.startswith(SANDBOX) or Path(name).exists():
        from preftune.prompting.local import LocalGenerator

        return LocalGenerator(name, chat)
    try:
        function = getattr(imported(module), thing, None)
    except (Exception, SystemExit) as error:  # whatever a user's module does while it is imported
        problem = " ".join(str(error).split())
        raise PreftuneError(f"generator {name}: cannot import {module} ({type(error).__name__}: {problem})") from error
    if not callable(function):
        raise PreftuneError(f"generator {name}: {module} has no function {thing!r}: define it there")
    return FunctionGenerator(name, function)


class EndpointGenerator(Generator):
    """A model behind an OpenAI-compatible endpoint.

    Args:
        name: endpoint:URL, or endpoint:URL#MODEL where it has several.
        folder: keeps every call; None: none is kept.
        use: how it may be used.
        chat: put plain texts as a user's turn; else they are continued.
    """

    def __init__(self, name: str, folder: Path | None, use: EndpointUse, chat: bool) -> None:
        from preftune.evaluation.endpoint import Endpoint, EndpointConfig

        url, _, model = name.removeprefix(ENDPOINT).partition("#")
        config = EndpointConfig(url=url, model=model, **vars(use))
        self._endpoint = Endpoint(config, None if folder is None else folder / CALLS)
        self.name = f"{ENDPOINT}{self._endpoint.name}"
        self.fingerprint, self.chat, self.budget = digest(self.name, chat), chat, self._endpoint.budget

    def close(self) -> None:  # noqa: D102
        self._endpoint.close()

    def answers(  # noqa: D102
        self, questions: Sequence[Question], sampling: GeneratorSampling, progress: Progress | None = None
    ) -> list[list[Reply]]:
        each = sampling.samples
        answers = self._endpoint.generate(
            [question.prompt for question in questions],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            samples_per_prompt=each,
            seed=sampling.seed,
            stop=sampling.stop,
            progress=progress,
        )
        replies = [
            Reply(one.text or "", one.ended, one.prompt_tokens, one.tokens, "" if one.text is not None else one.reason)
            for one in answers
        ]
        return [replies[i : i + each] for i in range(0, len(replies), each)]


class FunctionGenerator(Generator):
    """A Python function: a list of prompts in, a list of answers out. Conversations reach it as lists of turns
    ({"role", "content"}). It is asked once for each answer, and draws as it likes.

    Args:
        name: package.module:function.
        function: that.
    """

    def __init__(self, name: str, function: Callable[[list[Any]], Any]) -> None:
        from preftune.evaluation.judges.function import code_of

        self.name, self._function, self.chat = name, function, False
        self.fingerprint = digest(name, code_of(inspect.unwrap(function)))

    def answers(  # noqa: D102
        self, questions: Sequence[Question], sampling: GeneratorSampling, progress: Progress | None = None
    ) -> list[list[Reply]]:
        given = [
            prompt if isinstance(prompt, str) else [asdict(turn) for turn in prompt]
            for prompt in (question.prompt for question in questions)
            for _ in range(sampling.samples)
        ]
        try:
            answers = list(self._function(list(given)))
        except PreftuneError:
            raise
        except Exception as error:  # whatever a user's function does
            problem = " ".join(str(error).split())[:200]
            raise PreftuneError(f"generator {self.name} failed ({type(error).__name__}: {problem})") from error
        wrong = next((one for one in answers if not isinstance(one, str)), None)
        if len(answers) != len(given) or wrong is not None:
            what = f"{len(answers)} answers" if wrong is None else f"an answer of type {type(wrong).__name__}"
            raise PreftuneError(f"generator {self.name} gave {what} to {len(given)} prompts, expected a text for each")
        if progress is not None:
            progress(len(answers), len(answers))
        replies = [Reply(one) for one in answers]
        return [replies[i : i + sampling.samples] for i in range(0, len(replies), sampling.samples)]


def _has_text(prompt: Text) -> bool:
    return bool(prompt.strip()) if isinstance(prompt, str) else any(turn.content.strip() for turn in prompt)

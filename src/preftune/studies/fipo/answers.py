"""What the built-in generators answer, each prompt once, and whether it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.prompting.generators import Generator, GeneratorSampling, open_generator
from preftune.sandbox.tasks import LONGEST, SEEN, folder_of
from preftune.sandbox.tasks.families import score

GREEDY = GeneratorSampling(max_new_tokens=LONGEST)


class Answers:
    """Generators by name, opened when they are first asked. Use it as a context manager.

    Args:
        folder: keeps what they answer, and replays it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Generator] = {}

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for generator in self._open.values():
            generator.close()

    def right(self, name: str, prompts: Sequence[str], golds: Sequence[str]) -> NDArray[np.bool_]:
        """Whether a generator, taking the most probable token each time, answers each prompt right; an empty prompt
        has no right answer.

        Args:
            name: of a shipped generator.
            prompts: to be answered.
            golds: the right answer to each.

        Returns:
            Shape (prompts,).
        """
        if name not in self._open:
            self._open[name] = open_generator(str(folder_of(name)), self.folder / name)
        given = list(dict.fromkeys(prompt for prompt in prompts if prompt))
        replies = self._open[name].write(given, GREEDY)
        texts = {prompt: reply.text if reply.ended else "" for prompt, (reply,) in zip(given, replies, strict=True)}
        return np.array([score(texts.get(prompt, ""), gold) for prompt, gold in zip(prompts, golds, strict=True)])

    def score(self, prompts: Sequence[str], golds: Sequence[str]) -> list[int]:
        """How many of the generators that optimisers may learn from answer each prompt right."""
        return [int(each) for each in np.sum([self.right(name, prompts, golds) for name in SEEN], axis=0)]


def right(response: str, row: Mapping[str, Any]) -> float:
    """A checker: 1 if a response answers its question right, else 0."""
    return float(score(response, str(row["answer"])))

"""A generator that counts what it wrote, however it is asked."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.prompting.collected import Spent
from preftune.prompting.generators import Generator, GeneratorSampling, Progress, Question, Reply


class CountingGenerator(Generator):
    """Passes everything on.

    Args:
        generator: who writes; it is closed with this one.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator, self.name, self.fingerprint = generator, generator.name, generator.fingerprint
        self.chat, self.budget = generator.chat, generator.budget
        self._replies: list[list[Reply]] = []

    @property
    def spent(self) -> Spent:
        """On all that was asked of it."""
        return Spent.on(self._replies)

    def close(self) -> None:  # noqa: D102
        self.generator.close()

    def answers(  # noqa: D102
        self, questions: Sequence[Question], sampling: GeneratorSampling, progress: Progress | None = None
    ) -> list[list[Reply]]:
        found = self.generator.answers(questions, sampling, progress)
        self._replies += found
        return found

"""Replies on disk: each is kept once it is there, and never written again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preftune.errors import PreftuneError
from preftune.evaluation.journal import Journal
from preftune.evaluation.judges.base import digest
from preftune.prompting.generators import Generator, GeneratorSampling, Progress, Question, Reply

AT_ONCE = 64  # prompts between two writes to the disk


class KeptGenerator(Generator):
    """A generator whose replies are kept in a file, and replayed from it. Several may share a file, one at a time.

    Args:
        generator: who writes; it is closed with this one.
        path: the file.

    Attributes:
        replayed: prompts whose replies were there already.

    Raises:
        PreftuneError: if the file cannot be used.
    """

    def __init__(self, generator: Generator, path: Path) -> None:
        self.generator, self.name, self.fingerprint = generator, generator.name, generator.fingerprint
        self.chat, self.budget, self.replayed = generator.chat, generator.budget, 0
        self._journal = Journal(path)
        self._known: dict[str, list[Reply]] = {}
        for number, line in enumerate(self._journal.lines, 1):
            try:
                self._known[line["id"]] = [Reply(**one) for one in line["replies"]]
            except (KeyError, TypeError):
                self._journal.close()
                raise PreftuneError(
                    f"{path} line {number} is no reply that preftune kept: name another folder"
                ) from None

    def close(self) -> None:  # noqa: D102
        self._journal.close()
        self.generator.close()

    def answers(  # noqa: D102
        self, questions: Sequence[Question], sampling: GeneratorSampling, progress: Progress | None = None
    ) -> list[list[Reply]]:
        keys = [digest(self.fingerprint, question.key, sampling) for question in questions]
        missing = [i for i, key in enumerate(keys) if key not in self._known]
        done = len(keys) - len(missing)
        self.replayed += done
        for start in range(0, len(missing), AT_ONCE):
            batch = missing[start : start + AT_ONCE]
            found = self.generator.answers([questions[i] for i in batch], sampling)
            fresh = {keys[i]: replies for i, replies in zip(batch, found, strict=True)}
            self._journal.add(
                *({"id": key, "replies": [vars(one) for one in replies]} for key, replies in fresh.items())
            )
            self._known |= fresh
            done += len(batch)
            if progress is not None:
                progress(done * sampling.samples, len(keys) * sampling.samples)
        return [self._known[key] for key in keys]

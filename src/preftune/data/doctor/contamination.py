"""Training rows that hold a prompt of the evaluation data, whole or for the most part.

An evaluation prompt is known by its runs of eight words, less those that stand in other evaluation prompts too (they
are a template, and say nothing). A row holds it if half of its runs stand in the row's prompt and responses; a prompt
without such runs of its own must be the row's prompt, word for word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from preftune.data import sources
from preftune.data.doctor.findings import LISTED, Finding, rows
from preftune.data.doctor.index import Index, sides
from preftune.data.doctor.words import Hashes, asked, grams, plain, words
from preftune.data.fields import Unfit, get, read_text_or_turns
from preftune.data.layouts import recognise
from preftune.data.lines import Lines, Mask
from preftune.data.records import Text, Where
from preftune.errors import PreftuneError

RUN = 8  # words
MOST = 0.5
ASKED = "prompt|question|instruction|problem|input|text"  # columns of evaluation sets that fit no layout

Asked = tuple[Where, Text]


class Prompts:
    """The prompts of evaluation data, as hashes of their runs of words.

    Args:
        prompts: of the evaluation data, with their places.
    """

    def __init__(self, prompts: Iterable[Asked]) -> None:
        self.where: list[Where] = []
        whole: dict[int, int] = {}  # hash of all words of a prompt -> its number
        found: list[Hashes] = []
        for where, prompt in prompts:
            said = words(asked(prompt))
            key = _whole(said)
            if key is None or key in whole:
                continue
            whole[key] = len(self.where)
            self.where.append(where)
            found.append(np.unique(grams(said, RUN)) if len(said) >= RUN else np.empty(0, np.uint64))
        owner = np.repeat(np.arange(len(found)), [len(part) for part in found])
        runs, first, count = np.unique(
            np.concatenate([np.empty(0, np.uint64), *found]), return_index=True, return_counts=True
        )
        self._runs, self._owner = runs[count == 1], owner[first[count == 1]]
        self._sizes = np.bincount(self._owner, minlength=len(found))
        self._whole = whole

    def held_by(self, prompt: Text, responses: Iterable[Text]) -> tuple[int, float] | None:
        """Number of the prompt that these texts hold the most of, and which share of its runs; None below half."""
        said = words(asked(prompt))
        key = _whole(said)
        if key in self._whole:
            return self._whole[key], 1.0
        if not len(self._runs):
            return None
        texts = [said, *(words(plain(response)) for response in responses)]
        runs = np.unique(np.concatenate([grams(text, RUN) for text in texts if len(text) >= RUN] or [self._runs[:0]]))
        place = np.minimum(np.searchsorted(self._runs, runs), len(self._runs) - 1)
        hit = self._owner[place[self._runs[place] == runs]]
        if not len(hit):
            return None
        numbers, count = np.unique(hit, return_counts=True)
        shares = count / self._sizes[numbers]
        best = int(shares.argmax())
        return (int(numbers[best]), float(shares[best])) if shares[best] >= MOST else None


def contamination(lines: Lines, index: Index, mask: Mask, evaluation: Prompts, name: str) -> Finding | None:
    """Training rows, those that `mask` marks, that hold a prompt of the evaluation data called `name`."""
    found = []
    for number, record in zip(np.flatnonzero(mask).tolist(), lines.records(mask), strict=True):
        held = evaluation.held_by(record.prompt, [text for _, text in sides(record)])
        if held is not None:
            found.append((number, *held))
    if not found:
        return None
    prompts = len({prompt for _, prompt, _ in found})
    return Finding(
        "contamination",
        "warning",
        f"{rows(len(found), 'hold', 'holds')} {prompts:,} of the {len(evaluation.where):,} prompts of {name}",
        len(found),
        [(index.places[number], evaluation.where[prompt], f"{share:.0%}") for number, prompt, share in found[:LISTED]],
        np.array([number for number, _, _ in found]),
        reason="holds the prompt of",
        outside=[evaluation.where[prompt] for _, prompt, _ in found],
    )


def prompts_of(source: str) -> Iterator[Asked]:
    """The prompts of an evaluation set, whose rows need no answers.

    Raises:
        PreftuneError: if it cannot be read, or a row has no prompt.
    """
    for where, row in sources.rows(source):
        try:
            yield where, recognise(row).read(row, where).prompt
            continue
        except Unfit:
            pass
        try:
            prompt = read_text_or_turns(*get(row, ASKED))
        except Unfit as unfit:
            reason = str(unfit)
        else:
            yield where, prompt
            continue
        raise PreftuneError(f"{where}: {reason}")


def _whole(said: list[str]) -> int | None:
    """Hash of all words; None if there are none."""
    return int(grams(said, len(said))[0]) if said else None

"""Answers to prompts, side by side: who writes them, and what they are like.

Whoever can answer prompts can be compared: a `Writer` takes prompts and gives answers to each, be it a model at hand
(`policy_writer`, `reference_writer`) or one behind an endpoint.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from preftune.data.records import Text
from preftune.errors import PreftuneError
from preftune.evaluation.intervals import Z95, grouped_interval, mean_interval
from preftune.evaluation.opening import Opened
from preftune.evaluation.sampling import Sampled, sample
from preftune.policy.loading import positions
from preftune.training.batches import SAMPLING, torch_seed

REPEATED = 4  # tokens of a piece of text whose repeats are counted within an answer
BATCH = 64  # answers written at a time


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt to answer.

    Attributes:
        ids: its tokens, as the policy reads them (chat template and all).
        text: the same as text.
        source: as the data has it: plain text, or turns of a conversation.
        row: the row of the data that it first came from, with all its fields.
    """

    ids: NDArray[np.int32]
    text: str
    source: Text
    row: int


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer to a prompt.

    Attributes:
        text: without the tokens that end it.
        tokens: how many it has, an end token included.
        ended: False if it was cut at its longest.
        sampled: its tokens, and their log-probs; None from those who do not tell.
        best_of: how many answers it was chosen from; 1: it came as it is.
    """

    text: str
    tokens: int
    ended: bool
    sampled: Sampled | None = field(default=None, repr=False)
    best_of: int = 1

    @property
    def pieces(self) -> list[Any]:
        """What is counted for repeats: tokens less the one that ends, or words where tokens are not known."""
        if self.sampled is None:
            return self.words
        ids: list[int] = self.sampled.ids.tolist()
        return ids[:-1] if self.ended else ids

    @property
    def words(self) -> list[Any]:
        """Words and marks of its text."""
        return re.findall(r"\w+|[^\w\s]", self.text)


# Answers to each prompt, the same number to each.
Writer = Callable[[Sequence[Prompt]], list[list[Answer]]]


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        samples_per_prompt: answers to each prompt.
        temperature: 0 takes the likeliest token each time.
        max_new_tokens: at which an answer is cut.
        seed: of the draws; both sides draw the same random numbers.
        batch_size: answers written at a time.
    """

    samples_per_prompt: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    batch_size: int = BATCH


def prompts_of(opened: Opened, count: int) -> list[Prompt]:
    """The first different prompts of what is evaluated."""
    found: dict[bytes, Prompt] = {}
    for example, record in zip(opened.examples, opened.records(), strict=True):
        if len(found) == count:
            break
        key = example.prompt.tobytes()
        if key not in found:
            text = opened.tokenizer.decode(example.prompt.tolist(), skip_special_tokens=False)
            found[key] = Prompt(example.prompt, str(text), record.prompt, example.row)
    return list(found.values())


def policy_writer(opened: Opened, sampling: Sampling) -> Writer:
    """The policy answers."""
    return _writer(opened, opened.generating, sampling)


def reference_writer(opened: Opened, sampling: Sampling) -> Writer:
    """The reference answers."""
    return _writer(opened, opened.generating_reference, sampling)


def room(opened: Opened, prompts: Sequence[Prompt], wanted: int) -> int:
    """Tokens that an answer may have in a model whose positions have an end.

    Raises:
        PreftuneError: if a prompt leaves none.
    """
    models = [opened.policy.lm] + ([] if opened.reference is None else [opened.reference.module.lm])
    ends = [end for lm in models if (end := positions(lm)) is not None]
    longest = max(len(prompt.ids) for prompt in prompts)
    if ends and min(ends) <= longest:
        raise PreftuneError(
            f"{opened.name} reads {min(ends)} tokens, and a prompt has {longest}: leave longer prompts out of the data"
        )
    return min([wanted, *(end - longest for end in ends)])


def _writer(opened: Opened, model: Callable[[], AbstractContextManager[nn.Module]], sampling: Sampling) -> Writer:
    def write(prompts: Sequence[Prompt]) -> list[list[Answer]]:
        with model() as lm:
            sampled = sample(
                lm,
                [prompt.ids for prompt in prompts],
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                samples_per_prompt=sampling.samples_per_prompt,
                seed=torch_seed(sampling.seed, SAMPLING),
                end_ids=opened.end_ids,
                batch_size=sampling.batch_size,
                pad_id=opened.feed.pad_id,
            )
        texts = opened.tokenizer.batch_decode([one.ids for one in sampled], skip_special_tokens=True)
        answers = [Answer(text, len(one.ids), one.ended, one) for text, one in zip(texts, sampled, strict=True)]
        each = sampling.samples_per_prompt
        return [answers[i : i + each] for i in range(0, len(answers), each)]

    return write


def describe(answers: Sequence[Sequence[Answer]], by_words: bool = False) -> dict[str, Any]:
    """What answers are like, with 95% intervals by prompt.

    mean_length: tokens, an end token included. end_rate: share that reached an end. repetition: share of an answer's
    pieces of four tokens that stand earlier in it (Welleck et al. 2020), mean over answers. distinct_1, distinct_2:
    different tokens, or pairs of neighbours, over all of them in all answers together (Li et al. 2016); the more text,
    the lower, so compare them between answers of like length. An interval is None where there is one prompt alone.

    Args:
        answers: to each prompt, at least one.
        by_words: count repeats over words also where tokens are known, to compare with answers where they are not.
    """
    flat = [(number, answer) for number, group in enumerate(answers) for answer in group]
    number = np.array([one for one, _ in flat])
    ended = np.array([answer.ended for _, answer in flat], float)
    columns = {
        "mean_length": np.array([answer.tokens for _, answer in flat], float),
        "repetition": np.array([_repetition(answer.words if by_words else answer.pieces) for _, answer in flat]),
    }
    found: dict[str, Any] = {}
    for name, values in columns.items():
        interval = mean_interval(values, number)
        found |= {name: float(values.mean()), f"{name}_ci95": None if interval is None else list(interval)}
    found |= {"end_rate": float(ended.mean()), "end_rate_ci95": list(grouped_interval(ended, number))}
    pieces = [[answer.words if by_words else answer.pieces for answer in group] for group in answers]
    for size in (1, 2):
        share, bounds = _distinct(pieces, size)
        found |= {f"distinct_{size}": share, f"distinct_{size}_ci95": None if bounds is None else list(bounds)}
    return found


def _ngrams(pieces: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return list(zip(*(pieces[i:] for i in range(size)), strict=False))


def _repetition(pieces: Sequence[Any]) -> float:
    grams = _ngrams(pieces, REPEATED)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _distinct(groups: Sequence[Sequence[Sequence[Any]]], size: int) -> tuple[float, tuple[float, float] | None]:
    """Different n-grams over all of them, and a jackknife interval: draws with replacement would count repeats that a
    bootstrap itself makes."""
    counts = [Counter(gram for pieces in group for gram in _ngrams(pieces, size)) for group in groups]
    total, spread = sum(count.total() for count in counts), Counter(gram for count in counts for gram in count)
    if not total:
        return 0.0, None
    share = len(spread) / total
    if len(groups) < 2:
        return share, None
    without = np.array(
        [(len(spread) - sum(spread[gram] == 1 for gram in count)) / max(1, total - count.total()) for count in counts]
    )
    half = Z95 * float(np.sqrt((len(groups) - 1) * without.var()))
    return share, (max(0.0, share - half), min(1.0, share + half))

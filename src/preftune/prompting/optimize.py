"""Naive prompts -> rewrites by an optimiser -> those that change no fact -> the one that is used, or the original."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from preftune.errors import PreftuneError
from preftune.prompting.facts import Mark, NewNumbers, problem
from preftune.prompting.generators import MOST, GeneratorSampling, Progress, Reply
from preftune.prompting.naive import LONGEST
from preftune.prompting.rewriter import Asked, Rewriter

Stage = Callable[[str, int, int], object]  # name, done, of
SAME = "none is better than the prompt as it is"
FEWEST_TOKENS = 512  # at which a rewrite is cut; more, in powers of two, for prompts of more characters than twice that
_LINE_END = re.compile(r"\r\n|\r|\n")


class PromptError(PreftuneError):
    """A prompt that cannot be optimised, whoever does it."""


@dataclass(frozen=True, kw_only=True)
class OptimizeSettings:
    """How prompts are optimised.

    Attributes:
        candidates: rewrites of a prompt. The first one is the most probable, the others are drawn.
        temperature: of those.
        top_p: mass of the most probable tokens that they are drawn from.
        seed: of the draws.
        words: most words of a rewrite; None: twice the prompt's, and at least 40 more.
        marks: texts and patterns that stay as they are, beside what is always protected.
        new_numbers: numbers that may stand in a rewrite alone, as `facts.problem` takes it.
        order: what is protected keeps its order.
        input_after: text at which the data of a prompt begins: this and all behind it is never shown to the optimiser,
            and stays as it is; a prompt without it is left alone. None: there is no such part.
    """

    candidates: int = 4
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    words: int | None = None
    marks: tuple[Mark, ...] = ()
    new_numbers: NewNumbers = "counters"
    order: bool = True
    input_after: str | None = None

    def __post_init__(self) -> None:
        for name, value, good, expected in (
            ("candidates", self.candidates, 1 <= self.candidates <= MOST, f"1 to {MOST:,}"),
            ("words", self.words, self.words is None or self.words >= 1, "at least 1"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("temperature", self.temperature, 0 < self.temperature <= 100 or self.candidates == 1, "above 0"),
            ("input_after", self.input_after, self.input_after is None or bool(self.input_after.strip()), "some text"),
        ):
            if not good:
                raise PreftuneError(f"{name} is {value!r}, expected {expected}")


@dataclass(frozen=True)
class Tried:
    """A rewrite.

    Attributes:
        text: all of the prompt with it; empty if nothing was written.
        problem: why it may not be used; None if it may.
        score: what the chooser gave it, if there is one.
    """

    text: str
    problem: str | None
    score: float | None = None


@dataclass(frozen=True)
class Optimized:
    """What became of a prompt.

    Attributes:
        original: the naive prompt.
        text: the optimised prompt; the original where no rewrite may or should be used.
        reason: why it is the original; empty if it is not.
        tried: the rewrites, in the order in which they were written.
        score: of the original, where a chooser gave scores.
        note: what the chooser says of its choice.
    """

    original: str
    text: str
    reason: str
    tried: tuple[Tried, ...]
    score: float | None = None
    note: str = ""

    @property
    def changed(self) -> bool:
        """True if it is a rewrite."""
        return not self.reason

    def as_json(self) -> dict[str, Any]:
        """For JSON: original, optimized, changed, reason, tried, score, note."""
        return {
            "original": self.original,
            "optimized": self.text,
            "changed": self.changed,
            "reason": self.reason,
            "note": self.note,
            "score": self.score,
            "tried": [asdict(each) for each in self.tried],
        }


@dataclass(frozen=True)
class Choice:
    """Which of some rewrites is used.

    Attributes:
        best: its number among them; None: the naive prompt.
        scores: of each of them, as far as there are any.
        score: of the naive prompt.
        note: for people, why.
    """

    best: int | None
    scores: tuple[float | None, ...]
    score: float | None = None
    note: str = ""


class Chooser(ABC):
    """Says which rewrites are better than the naive prompts."""

    @abstractmethod
    def choose(
        self, originals: Sequence[str], rewrites: Sequence[Sequence[str]], progress: Progress | None = None
    ) -> list[Choice]:
        """The choice for each prompt.

        Args:
            originals: naive prompts.
            rewrites: of each, those that may be used, one or more.
            progress: told how much of how much is done.

        Raises:
            PreftuneError: if it cannot choose.
        """


@dataclass(frozen=True)
class _Parts:
    """A prompt taken apart: white space, what may be rewritten, white space, data."""

    before: str
    wording: str
    after: str

    def whole(self, wording: str) -> str:
        return self.before + wording + self.after

    def fitted(self, text: str) -> str:
        """A rewrite with the line ends that the prompt has."""
        text = text.strip()
        return _LINE_END.sub("\r\n", text) if "\r\n" in self.wording + self.after else text


def optimize(
    prompts: Sequence[str],
    rewriter: Rewriter,
    settings: OptimizeSettings | None = None,
    *,
    chooser: Chooser | None = None,
    progress: Stage | None = None,
) -> list[Optimized]:
    """Optimise prompts. A rewrite that alters what is protected, changes the language or is too long is never used:
    the original comes back with the reason.

    Args:
        prompts: naive prompts.
        rewriter: the optimiser.
        settings: how.
        chooser: who says which rewrite is best, and whether it is better than the naive prompt; None: the first one
            that may be used. Then a prompt whose most probable rewrite passes is rewritten once.
        progress: told how many rewrites, and answers for the chooser, of how many are there.

    Raises:
        PromptError: if a prompt is empty or too long, or the optimiser takes none of them.
        PreftuneError: as the rewriter and the chooser.
    """
    settings = settings or OptimizeSettings()
    work = _Work(rewriter, settings, None if progress is None else partial(progress, "rewrites"))
    split = {i: _parts(one, settings.input_after, i) for i, one in enumerate(prompts)}
    parts = {i: one for i, one in split.items() if one is not None}
    tried: list[list[Tried]] = [[] for _ in prompts]
    greedy = GeneratorSampling(samples=1, seed=settings.seed)
    refusals = work.write(parts, greedy, tried)
    if parts and len(refusals) == len(parts):
        raise PromptError(
            f"{rewriter.generator.name} takes none of {len(parts)} prompts ({refusals[0]}): shorten them, say where "
            "their data begins (--input-after), or name another optimiser"
        )
    more = settings.candidates - 1
    if more:
        again = {i: one for i, one in parts.items() if chooser is not None or tried[i][0].problem is not None}
        drawn = replace(greedy, samples=more, temperature=settings.temperature, top_p=settings.top_p)
        work.write(again, drawn, tried)
    found = [_first(prompt, some, settings) for prompt, some in zip(prompts, tried, strict=True)]
    if chooser is not None:
        _choose(found, chooser, None if progress is None else partial(progress, "answers"))
    return found


@dataclass(frozen=True)
class _Work:
    rewriter: Rewriter
    settings: OptimizeSettings
    progress: Progress | None

    def write(
        self, parts: Mapping[int, _Parts], sampling: GeneratorSampling, tried: Sequence[list[Tried]]
    ) -> list[str]:
        """Add rewrites of some prompts, by number; tells why prompts were refused."""
        by_length: dict[int, list[int]] = {}
        for i, part in parts.items():  # how a prompt is rewritten does not depend on which others there are
            tokens = FEWEST_TOKENS
            while tokens < len(part.wording) // 2:
                tokens *= 2
            by_length.setdefault(tokens, []).append(i)
        refusals = []
        for tokens, some in by_length.items():
            asked = [Asked(parts[i].wording, self.settings.words) for i in some]
            replies = self.rewriter.replies(asked, replace(sampling, max_new_tokens=tokens), self.progress)
            for i, one, own in zip(some, asked, replies, strict=True):
                tried[i] += [_tried(parts[i], reply, one.limit, self.settings) for reply in own]
                if all(reply.refused for reply in own):
                    refusals.append(own[0].refused)
        return refusals


def _tried(parts: _Parts, reply: Reply, limit: int, settings: OptimizeSettings) -> Tried:
    if reply.refused:
        return Tried("", f"the optimiser did not take the prompt: {reply.refused}")
    text = parts.fitted(reply.text)
    if not reply.ended:
        return Tried(parts.whole(text), f"it was cut after {reply.tokens:,} tokens")
    found = problem(parts.wording, text, settings.marks, limit, new_numbers=settings.new_numbers, order=settings.order)
    return Tried(parts.whole(text), found)


def _first(prompt: str, tried: Sequence[Tried], settings: OptimizeSettings) -> Optimized:
    if not tried:
        return Optimized(prompt, prompt, f"it has no {settings.input_after!r}, at which its data was said to begin", ())
    text = next((each.text for each in tried if each.problem is None), None)
    return Optimized(prompt, prompt if text is None else text, _why(tried) if text is None else "", tuple(tried))


def _why(tried: Sequence[Tried]) -> str:
    """Why none of them is used."""
    reasons = list(dict.fromkeys(str(each.problem) for each in tried))
    if len(tried) == 1:
        return f"the rewrite is not used: {reasons[0]}"
    return f"none of {len(tried)} rewrites is used: {'; '.join(reasons)}"


def _choose(found: list[Optimized], chooser: Chooser, progress: Progress | None) -> None:
    """Let the chooser decide wherever there is a rewrite that may be used."""
    # what was written twice is compared once
    good = [list(dict.fromkeys(each.text for each in one.tried if each.problem is None)) for one in found]
    some = [i for i, rewrites in enumerate(good) if rewrites]
    choices = chooser.choose([found[i].original for i in some], [good[i] for i in some], progress) if some else []
    for i, choice in zip(some, choices, strict=True):
        scores = dict(zip(good[i], choice.scores, strict=True))
        tried = tuple(
            replace(each, score=scores[each.text]) if each.problem is None else each for each in found[i].tried
        )
        text = found[i].original if choice.best is None else good[i][choice.best]
        reason = SAME if choice.best is None else ""
        found[i] = Optimized(found[i].original, text, reason, tried, choice.score, choice.note)


def _parts(prompt: str, input_after: str | None, number: int) -> _Parts | None:
    """The parts of a prompt; None if it has no data though it should.

    Raises:
        PromptError: if it has no wording, too much of it, or wording that is no text.
    """
    if not prompt.strip():
        raise PromptError(f"prompt {number} is empty, expected text")
    place = len(prompt) if input_after is None else prompt.find(input_after)
    if place < 0:
        return None
    wording, data = prompt[:place], prompt[place:]
    inside = wording.strip()
    if not inside:
        raise PromptError(f"prompt {number} has nothing before {input_after!r}, expected text")
    if len(inside) > LONGEST:
        raise PromptError(
            f"prompt {number} has {len(inside):,} characters, expected at most {LONGEST:,}: shorten it, or say where "
            "its data begins, which may be of any length (--input-after)"
        )
    if odd := next((char for char in inside if ord(char) < 32 and not char.isspace()), None):
        raise PromptError(f"prompt {number} has the character U+{ord(odd):04X}, expected text")
    start = wording.index(inside)
    return _Parts(wording[:start], inside, wording[start + len(inside) :] + data)

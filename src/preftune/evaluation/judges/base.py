"""The contract of judges: two answers to one prompt in, which of them is better out."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.data.fields import shown
from preftune.errors import PreftuneError

Tell = Callable[[int], object]  # how many more are there


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt.

    Attributes:
        key: names it among others, for people: "pairs.jsonl row 3".
        prompt: the prompt as text.
        a: one answer.
        b: the other one.
        row: fields of the data that a judge may need, such as the right answer; `prompt` there may be turns.
    """

    key: str
    prompt: str
    a: str
    b: str
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a comparison.

    Attributes:
        preference: 1: a is better; 0: b is; 0.5: neither; None: the judge gave no verdict.
        orders: of a judge that sees both answers at once, what it said with a shown first, and with b shown first (also
            1, 0.5 or 0 for a; None: nothing); empty for one that scores answers apart.
        scores: of one that scores answers apart, those of a and b.
        reason: why there is no verdict.
        said: what it wrote, in the same two orders.
    """

    preference: float | None
    orders: tuple[float | None, ...] = ()
    scores: tuple[float, ...] = ()
    reason: str = ""
    said: tuple[str, ...] = ()

    @property
    def flips(self) -> bool:
        """True if the two orders brought different verdicts."""
        return len(set(self.orders)) > 1 and None not in self.orders


class Judge(ABC):
    """Says which of two answers is better. Use it as a context manager.

    Attributes:
        name: as on the command line.
        fingerprint: changes with whatever its verdicts depend on; verdicts that are kept are found by it.
        at_once: comparisons to hand over at a time; verdicts are kept after each such batch.
    """

    name: str
    fingerprint: str
    at_once: int = 64

    @abstractmethod
    def verdicts(self, comparisons: Sequence[Comparison], tell: Tell = lambda _: None) -> list[Verdict]:
        """A verdict on each comparison, in order.

        Args:
            comparisons: what to judge.
            tell: told how many more comparisons have been judged.

        Raises:
            PreftuneError: if the judge cannot judge.
        """

    def close(self) -> None:
        """Let go of files and connections."""
        return

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ScoringJudge(Judge):
    """Scores each answer by itself; the higher score is better, equal scores are a tie. It has no order to be misled
    by."""

    @abstractmethod
    def scores(self, answers: Sequence[tuple[Comparison, str]]) -> Sequence[float | None]:
        """A score for each answer, given with the comparison that it belongs to; None: the judge gives none."""

    def verdicts(self, comparisons: Sequence[Comparison], tell: Tell = lambda _: None) -> list[Verdict]:  # noqa: D102
        answers = [(each, text) for each in comparisons for text in (each.a, each.b)]
        scores = [
            None if score is None else finite(score, self.name, each.key)
            for score, (each, _) in zip(self.scores(answers), answers, strict=True)
        ]
        tell(len(comparisons))
        return [by_scores(a, b) for a, b in zip(scores[::2], scores[1::2], strict=True)]


def by_scores(a: float | None, b: float | None) -> Verdict:
    """The verdict that two scores come to.

    Example:
        >>> by_scores(0.2, 0.1).preference, by_scores(1.0, 1.0).preference, by_scores(None, 1.0).preference
        (1.0, 0.5, None)
    """
    if a is None or b is None:
        return Verdict(None, reason="the judge gave no score")
    return Verdict(1.0 if a > b else 0.0 if a < b else 0.5, scores=(a, b))


def by_orders(first: float | None, second: float | None, said: tuple[str, ...] = (), reason: str = "") -> Verdict:
    """The verdict that two orders come to: a is better if both say so, and neither is if they disagree.

    Args:
        first: what was said with a shown first: 1 for a, 0 for b, 0.5 for neither; None: nothing.
        second: the same (also 1 for a) with b shown first.
        said: in which words.
        reason: why nothing was said.

    Example:
        >>> by_orders(1.0, 1.0).preference, by_orders(1.0, 0.0).preference, by_orders(0.5, 1.0).preference
        (1.0, 0.5, 0.5)
    """
    if first is None or second is None:
        return Verdict(None, (first, second), reason=reason, said=said)
    return Verdict(first if first == second else 0.5, (first, second), said=said)


def finite(score: Any, judge: str, key: str) -> float:
    """A score as a number.

    Raises:
        PreftuneError: if it is none.
    """
    try:
        value = float(score)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or isinstance(score, str):
        what = "nan" if value != value and isinstance(score, float) else shown(score)
        raise PreftuneError(f"judge {judge} gave {what} on {key}, expected a finite number, or None for no verdict")
    return value


def digest(*parts: object) -> str:
    """A short name for what some values are."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]


def check_some(verdicts: Sequence[Verdict], comparisons: Sequence[Comparison], judge: str) -> None:
    """Refuse verdicts none of which says anything.

    Raises:
        PreftuneError: quotes the reason of the first one.
    """
    if verdicts and all(verdict.preference is None for verdict in verdicts):
        raise PreftuneError(
            f"judge {judge} gave no verdict on any of {len(verdicts)} comparisons; on {comparisons[0].key}, "
            f"{verdicts[0].reason}"
        )

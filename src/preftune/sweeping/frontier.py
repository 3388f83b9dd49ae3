"""What the runs of a sweep gained for how much KL: the frontier, and which run to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Interval = tuple[float, float]
Kind = Literal["win_rate", "reward", "accuracy"]
WORDS: Mapping[Kind, str] = {"win_rate": "win rate", "reward": "reward", "accuracy": "preference accuracy"}
INDIFFERENT = 0.5  # win rate and accuracy of the reference itself


@dataclass(frozen=True)
class Point:
    """A run of a sweep, measured.

    Attributes:
        name: of the run.
        settings: the swept keys that it has, as text.
        folder: of the run, relative to that of the sweep.
        value: what is to be high; None if the run failed.
        ci95: its 95% interval, by prompt; None for one prompt alone.
        kl: KL(policy || reference) on its own answers, nats per response.
        kl_ci95: its 95% interval.
        reference: the same value of the reference itself.
        reference_ci95: its interval; None where it is known exactly.
        gain_ci95: 95% interval of the difference of the two, paired by prompt; None where the reference's is known.
        figures: further ones, for the table.
        failed: why there are none.
    """

    name: str
    settings: Mapping[str, str]
    folder: str
    value: float | None = None
    ci95: Interval | None = None
    kl: float | None = None
    kl_ci95: Interval | None = None
    reference: float = INDIFFERENT
    reference_ci95: Interval | None = None
    gain_ci95: Interval | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""

    @property
    def low(self) -> float:
        """Lower end of its value."""
        return -float("inf") if self.ci95 is None else self.ci95[0]

    @property
    def high(self) -> float:
        """Upper end of its value."""
        return float("inf") if self.ci95 is None else self.ci95[1]

    @property
    def beats_reference(self) -> bool:
        """True if its interval lies above the reference; that of the paired difference, where it was measured."""
        return self.low > self.reference if self.gain_ci95 is None else self.gain_ci95[0] > 0


@dataclass(frozen=True)
class Advice:
    """Which run to take.

    Attributes:
        run: its name; None if none can be recommended.
        why: in words.
    """

    run: str | None
    why: str


def measured(points: Sequence[Point]) -> list[tuple[Point, float, float]]:
    """The points that are no failures, each with its value and its KL."""
    return [(one, one.value, one.kl) for one in points if one.value is not None and one.kl is not None]


def frontier(points: Sequence[Point]) -> list[str]:
    """Names of the runs that no other beats: higher in value at no more KL, by their estimates; in order of KL.

    Example:
        >>> known = (("a", 1.0, 2.0), ("b", 0.9, 3.0), ("c", 1.2, 9.0))
        >>> frontier([Point(name, {}, name, value=value, kl=kl) for name, value, kl in known])
        ['a', 'c']
    """
    found: list[str] = []
    highest = -float("inf")
    for one, value, _ in sorted(measured(points), key=lambda each: (each[2], -each[1])):
        if value > highest:
            found.append(one.name)
            highest = value
    return found


def advise(points: Sequence[Point], kind: Kind, budget: float | None = None) -> Advice:
    """Which run to take: of those within the budget whose intervals overlap with the best one's, that of the least KL.

    Args:
        points: of the runs.
        kind: what their values are.
        budget: most KL, nats per response; None: any.
    """
    known, what = measured(points), WORDS[kind]
    if not known:
        return Advice(None, "No run could be measured.")
    within = [each for each in known if budget is None or each[2] <= budget]
    if not within:
        nearest, _, kl = min(known, key=lambda each: each[2])
        return Advice(
            None,
            f"No run stays within {budget:g} nats per response: the nearest is {nearest.name} at {kl:.3g}. A larger "
            "beta (or tau), a lower learning rate or fewer steps keep a policy nearer to its reference.",
        )
    best = max(within, key=lambda each: each[1])[0]
    level = [each for each in within if each[0].high >= best.low and each[0].beats_reference]
    if not level:
        return Advice(
            None,
            f"No run {'within the budget ' if budget is not None else ''}is told apart from the reference: the highest "
            f"{what} is that of {best.name}, {_shown(best)}, and the reference has {_reference(best)}. Measure on more "
            "prompts (--prompts, --samples), train longer, or sweep elsewhere.",
        )
    taken = min(level, key=lambda each: each[2])[0]
    return Advice(taken.name, " ".join(_reasons(taken, best, level, what, budget)))


def _reasons(
    taken: Point, best: Point, level: Sequence[tuple[Point, float, float]], what: str, budget: float | None
) -> list[str]:
    limit = "" if budget is None else f", within the budget of {budget:g}"
    said = [f"{taken.name}: {what} {_shown(taken)} at a KL of {taken.kl:.3g} nats per response{limit}."]
    if taken is best:
        others = len(level) - 1
        rest = "no other interval reaches up to its own" if not others else _overlapping(others)
        said.append(f"It has the highest {what}; {rest}.")
    else:
        said.append(
            f"The highest {what} is that of {best.name}, {_shown(best)} at {best.kl:.3g} nats, but the intervals "
            "overlap: that difference may be noise, so the smaller KL is preferred."
        )
        if len(level) > 2:
            said.append(f"{len(level)} runs cannot be told apart in this way.")
    if budget is not None and taken.kl_ci95 is not None and taken.kl_ci95[1] > budget:
        said.append(f"Its KL may lie above the budget (95% interval up to {taken.kl_ci95[1]:.3g}).")
    return said


def _overlapping(others: int) -> str:
    return f"{others} other{'s' if others > 1 else ''} overlap{'' if others > 1 else 's'} with it, at a larger KL"


def _shown(point: Point) -> str:
    bounds = "" if point.ci95 is None else f" (95% interval {point.ci95[0]:.3f} to {point.ci95[1]:.3f})"
    return f"{point.value:.3f}{bounds}"


def _reference(point: Point) -> str:
    if point.gain_ci95 is None:
        return f"{point.reference:.3f}"
    low, high = point.gain_ci95
    return f"{point.reference:.3f} (difference by prompt {low:.3f} to {high:.3f})"

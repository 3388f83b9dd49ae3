"""From outcomes to what is reported: means over seeds with intervals, and comparisons."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preftune.studies.frontier.axes import Axis, Condition
from preftune.studies.frontier.cells import Outcome
from preftune.studies.frontier.methods import METHODS, Method
from preftune.studies.frontier.statistics import Compared, Mean, adjust, compare, mean

# Figures of a cell that are averaged over seeds.
AVERAGED = (
    "kl",
    "reward",
    "best",
    "share",
    "regret",
    "attainable",
    "proxy",
    "win",
    "train_accuracy",
    "held_out_accuracy",
    "updates",
    "sampled_tokens",
    "training_seconds",
)
OF_THE_OPTIMUM = ("best", "share", "regret", "attainable")


@dataclass(frozen=True)
class Point:
    """A method at one strength under one condition.

    Attributes:
        condition: its name.
        method: which.
        strength: of it.
        rate: learning rate; None of what is not trained.
        figures: means over seeds, by name, of `AVERAGED`; those that no seed has are left out.
        parts: mean of each component of the reward.
        regret_by_seed: to compare with others; empty unless it is known of every seed.
        kl_by_seed: of the same seeds.
        failed: how many seeds failed.
    """

    condition: str
    method: Method
    strength: float
    rate: float | None
    figures: Mapping[str, Mean]
    parts: Mapping[str, Mean]
    regret_by_seed: Mapping[int, float]
    kl_by_seed: Mapping[int, float]
    failed: int

    def value(self, name: str) -> float:
        """A mean, NaN if it is not known."""
        return self.figures[name].value if name in self.figures else math.nan


def points(given: Iterable[tuple[Condition, Outcome]]) -> list[Point]:
    """Outcomes that differ by the seed alone, put together, in the order in which they come.

    Args:
        given: of one world and axis.
    """
    groups: dict[tuple[str, str, float], list[Outcome]] = {}
    for condition, outcome in given:
        key = (condition.name, outcome.cell.method, outcome.cell.strength)
        groups.setdefault(key, []).append(outcome)
    return [_point(condition, METHODS[key], strength, group) for (condition, key, strength), group in groups.items()]


def _point(condition: str, method: Method, strength: float, group: Sequence[Outcome]) -> Point:
    done = [each for each in group if each.failed is None]

    def averaged(values: Callable[[Mapping[str, Any]], float | None]) -> Mean | None:
        known = [value for each in done if (value := values(each.figures)) is not None]
        return mean(known) if known else None

    figures = {name: averaged(lambda found, name=name: found.get(name)) for name in AVERAGED}  # type: ignore[misc]
    # beyond the end of a sampled optimum there is no regret: a mean over the seeds that stayed within would flatter
    within = all(each.figures["regret"] is not None for each in done)
    figures |= {} if within else dict.fromkeys(OF_THE_OPTIMUM)
    names = done[0].figures["parts"] if done else ()
    parts = {name: averaged(lambda found, name=name: found["parts"][name]) for name in names}  # type: ignore[misc]
    return Point(
        condition,
        method,
        strength,
        group[0].cell.rate,
        {name: value for name, value in figures.items() if value is not None},
        {name: value for name, value in parts.items() if value is not None},
        {each.cell.seed: each.figures["regret"] for each in done if within},
        {each.cell.seed: each.figures["kl"] for each in done if within},
        len(group) - len(done),
    )


def comparisons(axis: Axis, found: Sequence[Point], chosen: Mapping[str, float]) -> list[tuple[str, Compared]]:
    """Each method's regret against the baseline's, at their chosen strengths, seed by seed, under each condition; all
    adjusted for each other.

    Args:
        axis: which has the baseline.
        found: its points.
        chosen: strength of each method.
    """
    by_key = {(point.condition, point.method.key): point for point in found if _is_chosen(point, chosen)}
    compared: list[tuple[str, Compared]] = []
    for (condition, key), point in by_key.items():
        base = by_key.get((condition, axis.baseline))
        if base is None or key in (axis.baseline, "reference"):
            continue
        result = compare((point.method.title, base.method.title), point.regret_by_seed, base.regret_by_seed)
        if not math.isnan(result.p):
            compared.append((condition, result))
    adjusted = adjust([result for _, result in compared])
    return [(condition, result) for (condition, _), result in zip(compared, adjusted, strict=True)]


def regrets_at(found: Sequence[Point], kl: float) -> dict[tuple[str, str], dict[int, float]]:
    """Regret of each method at one KL, by seed: how far it went is no part of it then.

    Regrets of a seed at a method's strengths are joined by lines over the logarithm of KL; a seed whose strengths lie
    all on one side of the KL is left out.

    Args:
        found: points of one axis.
        kl: nats per response, > 0.

    Returns:
        By condition and method.
    """
    places: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    for point in found:
        for seed, regret in point.regret_by_seed.items():
            by_seed = places.setdefault((point.condition, point.method.key), {})
            by_seed.setdefault(seed, []).append((math.log(point.kl_by_seed[seed]), regret))
    at: dict[tuple[str, str], dict[int, float]] = {}
    for key, by_seed in places.items():
        for seed, places_of in by_seed.items():
            x, y = zip(*sorted(places_of), strict=True)
            if x[0] <= math.log(kl) <= x[-1]:
                at.setdefault(key, {})[seed] = float(np.interp(math.log(kl), x, y))
    return at


def compared_at(axis: Axis, found: Sequence[Point], kl: float) -> dict[tuple[str, str], Compared]:
    """Each method's regret against the baseline's at one KL, by condition and method, adjusted for each other."""
    at = regrets_at(found, kl)
    compared = {}
    for (condition, key), regrets in at.items():
        base = at.get((condition, axis.baseline))
        if base is not None and key != axis.baseline:
            result = compare((METHODS[key].title, METHODS[axis.baseline].title), regrets, base)
            if not math.isnan(result.p):
                compared[condition, key] = result
    return dict(zip(compared, adjust(list(compared.values())), strict=True))


def write_matched(path: Path, axis: Axis, found: Sequence[Point], kls: Sequence[float]) -> None:
    """Regrets at equal KL as csv."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["kl", "condition", "method", "regret", "low", "high", "seeds", "less_baseline", "p", "p_holm"])
        for kl in kls:
            compared = compared_at(axis, found, kl)
            for (condition, key), regrets in regrets_at(found, kl).items():
                value, against = mean(list(regrets.values())), compared.get((condition, key))
                figures = [value.value, value.low, value.high]
                beside = [against.difference.value, against.p, against.adjusted] if against else [math.nan] * 3
                shown = [f"{each:.6g}" if math.isfinite(each) else "" for each in (*figures, *beside)]
                rows.writerow([f"{kl:g}", condition, key, *shown[:3], value.n, *shown[3:]])


def chosen_points(found: Sequence[Point], chosen: Mapping[str, float]) -> list[Point]:
    """Each method at its chosen strength; the reference, too."""
    return [point for point in found if _is_chosen(point, chosen)]


def _is_chosen(point: Point, chosen: Mapping[str, float]) -> bool:
    return point.method.kind == "reference" or chosen.get(point.method.key) == point.strength


def write_points(path: Path, found: Sequence[Point], parts: Sequence[str]) -> None:
    """The points as csv: each figure with the ends of its interval."""
    columns = [*AVERAGED, *parts]
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        ends = [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
        rows.writerow(["condition", "method", "strength", "learning_rate", "seeds", "failed", *ends])
        for point in found:
            values = [{**point.figures, **point.parts}.get(name) for name in columns]
            cells = [
                f"{number:.6g}" if math.isfinite(number) else ""
                for value in values
                for number in ((value.value, value.low, value.high) if value else (math.nan,) * 3)
            ]
            seeds = point.figures["reward"].n if "reward" in point.figures else 0
            rate = "" if point.rate is None else f"{point.rate:g}"
            rows.writerow([point.condition, point.method.key, f"{point.strength:g}", rate, seeds, point.failed, *cells])


def write_comparisons(path: Path, found: Sequence[tuple[str, Compared]]) -> None:
    """The comparisons as csv."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["condition", "method", "baseline", "regret_difference", "low", "high", "p", "p_holm", "seeds"])
        for condition, each in found:
            gap = each.difference
            values = (gap.value, gap.low, gap.high, each.p, each.adjusted)
            rows.writerow([condition, *each.names, *(f"{value:.6g}" for value in values), gap.n])

"""The questions of the study, each an axis of its own: which methods, on which preferences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from preftune.studies.frontier.cells import TUNING_SEED, Cell, Preferences, Source
from preftune.studies.frontier.methods import METHODS, Method

Rates = Mapping[tuple[str, float], float]  # by method and strength


@dataclass(frozen=True)
class Form:
    """How large a study is.

    Attributes:
        pairs: preferences that methods learn from, where the axis does not vary them.
        updates: optimiser steps, where it does not vary them.
        seeds: how many, from 1 on.
        strengths: which of a method's strengths, on the axis "methods".
        others: the same on all others.
        tunes: whether learning rates are chosen; otherwise all methods have their middle one.
        sizes: numbers of pairs on the axis "sizes".
        passes: over few certain pairs, on the axis "sources".
    """

    pairs: int
    updates: int
    seeds: int
    strengths: tuple[int, ...]
    others: tuple[int, ...]
    tunes: bool
    sizes: tuple[int, ...]
    passes: tuple[int, ...]


FULL = Form(4096, 64, 5, (0, 1, 2, 3), (0, 1, 2, 3), True, (20, 100, 500, 5000), (4, 16, 64))
QUICK = Form(512, 16, 3, (1, 2), (1,), False, (20, 100, 500), (4, 16))
FEW = 256  # certain pairs that are gone through again and again


@dataclass(frozen=True)
class Condition:
    """One setting of what an axis varies.

    Attributes:
        name: for tables and figures.
        preferences: what is learned from.
        updates: optimiser steps.
        methods: those that are run; none: all of the axis.
    """

    name: str
    preferences: Preferences
    updates: int
    methods: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Axis:
    """A question.

    Attributes:
        key: name on the command line.
        title: of its page.
        question: what it asks, in a sentence or two.
        methods: keys, in the order of tables; the first that trains is what the others are compared with.
        baseline: the method that the others are compared with.
    """

    key: str
    title: str
    question: str
    methods: tuple[str, ...]
    baseline: str = "dpo"

    def conditions(self, form: Form) -> tuple[Condition, ...]:
        """Its settings, the plain one first."""
        return _CONDITIONS[self.key](form)


def _plain(form: Form) -> Condition:
    return Condition("Bradley-Terry", Preferences(pairs=form.pairs), form.updates)


def _noise(form: Form) -> tuple[Condition, ...]:
    return tuple(
        Condition(f"{noise:.0%} flipped", Preferences(noise=noise, pairs=form.pairs), form.updates)
        for noise in (0.0, 0.1, 0.3)
    )


def _sources(form: Form) -> tuple[Condition, ...]:
    def of(name: str, source: Source) -> Condition:
        return Condition(name, Preferences(source, pairs=form.pairs), form.updates)

    again = tuple(
        Condition(
            f"deterministic, {FEW} pairs, {passes} passes",
            Preferences("deterministic", pairs=FEW),
            passes * FEW // 64,
            ("dpo", "ipo"),
        )
        for passes in form.passes
    )
    return (
        _plain(form),
        of("deterministic", "deterministic"),
        *again,
        of("two annotators", "two_annotators"),
        of("cyclic", "cyclic"),
    )


def _sizes(form: Form) -> tuple[Condition, ...]:
    updates = max(form.updates, -(-max(form.sizes) // 64))  # one pass over the most pairs, of 64 to an update
    return tuple(Condition(f"{pairs:,} pairs", Preferences(pairs=pairs), updates) for pairs in form.sizes)


def _shift(form: Form) -> tuple[Condition, ...]:
    return (
        Condition("no shift", Preferences(pairs=form.pairs), form.updates),
        Condition("shifted", Preferences("shifted", pairs=form.pairs), form.updates),
    )


_CONDITIONS = {
    "methods": lambda form: (_plain(form),),
    "noise": _noise,
    "sources": _sources,
    "sizes": _sizes,
    "shift": _shift,
}

AXES: dict[str, Axis] = {
    axis.key: axis
    for axis in (
        Axis(
            "methods",
            "Methods against the exact optimum",
            "How much of the reward that is possible at its own KL does each method reach?",
            tuple(METHODS),
        ),
        Axis(
            "sources",
            "Who prefers",
            "What if labels never contradict the reward (does DPO collapse, does IPO hold?), if two annotators "
            "disagree, or if preferences go in a circle, so that no reward has them?",
            ("reference", "sft", "dpo", "ipo", "kto"),
        ),
        Axis(
            "noise",
            "Flipped labels",
            "What is left of each method when one label in ten, or three in ten, is wrong?",
            ("reference", "dpo", "ipo", "kto", "cdpo", "rdpo", "robust_dpo", "dr_dpo"),
        ),
        Axis(
            "sizes",
            "Few pairs and many",
            "With as many updates for all (but for SFT, whose strength is their number): what do 20 pairs teach, and "
            "what 5,000? How far apart are training and held-out pairs?",
            ("reference", "sft", "dpo", "ipo"),
        ),
        Axis(
            "shift",
            "Other prompts, other tastes",
            "Preferences over one kind of prompts and of one taste: what are they worth on all prompts, for everybody?",
            ("reference", "dpo", "robust_dpo", "kl_dpo", "rdpo", "dr_dpo"),
        ),
    )
}


def tuning_cells(methods: Sequence[str], world: str, form: Form) -> list[Cell]:
    """What learning rates are chosen from: each method's rates by strengths, on plain preferences, with one seed."""
    if not form.tunes:
        return []
    plain = _plain(form)
    return [
        _cell(world, METHODS[key], METHODS[key].strengths[i], rate, plain, TUNING_SEED, "validation")
        for i in form.strengths
        for key in methods
        if METHODS[key].kind != "reference"
        for rate in (METHODS[key].rates if METHODS[key].trains else (None,))
    ]


def scored_cells(
    axis: Axis, methods: Sequence[str], world: str, form: Form, rates: Rates, seeds: int
) -> Iterator[tuple[Condition, Cell]]:
    """What is reported; methods share the seeds, and so their preferences. First seeds come first: a study that is
    stopped has something to say on everything."""
    for seed in range(1, seeds + 1):
        for condition in axis.conditions(form):
            for key in methods:
                method = METHODS[key]
                if condition.methods is not None and key not in condition.methods:
                    continue
                for strength in strengths(method, form.strengths if axis.key == "methods" else form.others):
                    if method.kind == "reference" and seed > 1:
                        continue
                    rate = rates.get((key, strength), method.rates[1]) if method.trains else None
                    yield condition, _cell(world, method, strength, rate, condition, seed, "test")


def strengths(method: Method, which: Sequence[int]) -> tuple[float, ...]:
    """A method's strengths by their places; its only one, if it has no more."""
    return tuple(method.strengths[i] for i in which if i < len(method.strengths)) or method.strengths[:1]


def _cell(
    world: str, method: Method, strength: float, rate: float | None, condition: Condition, seed: int, split: str
) -> Cell:
    updates = method.updates(strength, condition.updates)
    return Cell(world, method.key, strength, rate, condition.preferences, updates, seed, split)  # type: ignore[arg-type]

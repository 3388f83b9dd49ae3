"""What is run: a cell is one policy, trained on one set of preferences with one seed, measured on prompts once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

SOURCES = ("bradley_terry", "deterministic", "two_annotators", "cyclic", "shifted")

Source = Literal["bradley_terry", "deterministic", "two_annotators", "cyclic", "shifted"]
Split = Literal["validation", "test"]
TUNING_SEED = 0  # learning rates are chosen with it, and nothing that is reported comes from it


@dataclass(frozen=True)
class Preferences:
    """The preferences of a cell, but for the seed.

    Attributes:
        source: who prefers, of `SOURCES`. "shifted": other prompts and other tastes than those of the test.
        noise: probability that a label is flipped, in [0, 0.5].
        pairs: how many there are.
    """

    source: Source = "bradley_terry"
    noise: float = 0.0
    pairs: int = 4096


@dataclass(frozen=True)
class Cell:
    """One policy. Cells belong to no axis: what two axes need is run once.

    Attributes:
        world: "listed" or "sandbox".
        method: key of a method.
        strength: of what holds the policy near the reference, in the method's own unit.
        rate: peak learning rate; None of what is not trained.
        preferences: what it learns from.
        updates: optimiser steps; 0 of what is not trained.
        seed: of preferences, data order, sampling and new weights.
        split: prompts on which it is measured.
    """

    world: str
    method: str
    strength: float
    rate: float | None
    preferences: Preferences
    updates: int
    seed: int
    split: Split

    @property
    def key(self) -> str:
        """The cell in words, and its identity."""
        data = self.preferences
        return (
            f"{self.world}/{data.source}/noise={data.noise:g}/pairs={data.pairs}/{self.method}/"
            f"strength={self.strength:g}/rate={0 if self.rate is None else self.rate:g}/updates={self.updates}/"
            f"seed={self.seed}/{self.split}"
        )

    def plain(self) -> dict[str, Any]:
        """The cell as JSON has it."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Cell:
        """The cell that `plain` gave."""
        return cls(**{**values, "preferences": Preferences(**values["preferences"])})


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: a line of results.jsonl.

    Attributes:
        cell: which one.
        failed: why there are no figures, in one sentence; None if there are.
        figures: what was measured, by name (see `worlds.Measured` and `trial.carry_out`).
    """

    cell: Cell
    failed: str | None
    figures: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """The outcome as JSON has it."""
        return {"key": self.cell.key, "cell": self.cell.plain(), "failed": self.failed, **self.figures}

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Outcome:
        """The outcome that `plain` gave."""
        figures = {name: value for name, value in line.items() if name not in ("key", "cell", "failed")}
        return cls(Cell.read(line["cell"]), line["failed"], figures)

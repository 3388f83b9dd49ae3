"""Worlds whose true reward is known: what a study asks of each, and which there are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from preftune.studies.frontier.cells import Preferences, Split

if TYPE_CHECKING:
    from torch import nn

    from preftune.theory.frontier import Curve

WORLDS = ("listed", "sandbox")
TOLERATED = 0.02  # nats: sampled divergences of policies that did not move


@dataclass(frozen=True)
class Measured:
    """What a policy is worth on a split.

    Attributes:
        reward: mean true reward.
        parts: mean of each component; they sum to the reward.
        kl: KL(policy || reference), nats per response.
        reference: the reference's mean reward.
        best: the greatest mean reward at this KL; None where the curve is not known.
        share: (reward - reference) / (best - reference).
        regret: 1 - share.
        attainable: (best - reference) over the same at the end of the curve: how much of what there is can be had at
            this KL.
        proxy: what a reward model says on average, less what it says of the reference; None without one.
        win: probability that the policy's response is preferred to the reference's, under the preferences that it
            learned from and before labels are flipped; None where that is not known.
    """

    reward: float
    parts: Mapping[str, float]
    kl: float
    reference: float
    best: float | None
    share: float | None
    regret: float | None
    attainable: float | None
    proxy: float | None = None
    win: float | None = None

    def plain(self) -> dict[str, Any]:
        """The figures as JSON has them."""
        return asdict(self)


class World(ABC):
    """Where policies are trained and measured.

    Args:
        folder: for what takes long to make and many cells need.
        quick: fewer samples, where the world is sampled.

    Attributes:
        name: as on the command line.
        parts: names of the reward's components.
        longest: tokens of the longest response.
        scale: certainty of labels, per unit of reward.
        config: blocks of the config that every run in this world has.
    """

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    longest: ClassVar[int]
    scale: ClassVar[float] = 3.0
    config: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, folder: Path, quick: bool = False) -> None:
        self.folder, self.quick = folder, quick
        self._curves: dict[Split, Curve] = {}

    @property
    @abstractmethod
    def start(self) -> str:
        """The model that all methods start from, the reference, as `preftune.train` takes it."""

    @abstractmethod
    def reference(self) -> nn.Module:
        """The same model, loaded."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the reference and of the reward: results of worlds that differ must not be mixed."""

    @property
    @abstractmethod
    def judge(self) -> str:
        """The true reward as `online.judge` names it."""

    @abstractmethod
    def rows(self, preferences: Preferences, seed: int) -> list[dict[str, Any]]:
        """Preference pairs over the reference's own responses to training prompts."""

    @abstractmethod
    def held_out_rows(self, preferences: Preferences, seed: int, split: Split) -> list[dict[str, Any]]:
        """The same on the prompts of a split."""

    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """Training prompts, for methods that learn from their own samples."""

    @abstractmethod
    def measure(
        self, lm: nn.Module, split: Split, preferences: Preferences, reward_model: Path | None = None
    ) -> Measured:
        """What a policy is worth."""

    @abstractmethod
    def best_of_n(self, n: int, split: Split, preferences: Preferences, reward_model: Path | None = None) -> Measured:
        """What the best of n samples of the reference are worth, the best under the reward model, if one is given."""

    @abstractmethod
    def curve(self, split: Split) -> Curve:
        """The best that any policy can do on a split."""

    def measured(
        self,
        reward: float,
        parts: Mapping[str, float],
        kl: float,
        split: Split,
        proxy: float | None = None,
        win: float | None = None,
    ) -> Measured:
        """Figures, held against the curve."""
        if split not in self._curves:
            self._curves[split] = self.curve(split)
        curve = self._curves[split]
        reference, end = curve.reference_reward, curve.reward_at(curve.last_kl)
        best = curve.reward_at(max(0.0, kl))
        known = not math.isnan(best)
        share = curve.gain_share(reward, kl) if known and kl > TOLERATED / 10 else math.nan
        return Measured(
            reward=reward,
            parts=dict(parts),
            kl=kl,
            reference=reference,
            best=best if known else None,
            share=None if math.isnan(share) else share,
            regret=None if math.isnan(share) else 1 - share,
            attainable=(best - reference) / (end - reference) if known else None,
            proxy=proxy,
            win=win,
        )


def open_world(name: str, folder: Path, quick: bool = False) -> World:
    """A world by name.

    Args:
        name: of `WORLDS`.
        folder: of the study.
        quick: fewer samples, where the world is sampled.
    """
    if name == "listed":
        from preftune.studies.frontier.listed_world import ListedWorld

        return ListedWorld(folder / "worlds" / name, quick)
    if name == "sandbox":
        from preftune.studies.frontier.sandbox_world import SandboxWorld

        return SandboxWorld(folder / "worlds" / name, quick)
    raise ValueError(f"there is no world {name!r}, known are {', '.join(WORLDS)}")

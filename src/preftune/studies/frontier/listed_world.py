"""The listed world, where every response is known, and so is everything that a study asks for, exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from preftune.files import hash_file
from preftune.sandbox import listed
from preftune.studies.frontier.cells import Preferences, Split
from preftune.studies.frontier.reward_models import RewardScores
from preftune.studies.frontier.worlds import Measured, World
from preftune.theory import frontier as theory

if TYPE_CHECKING:
    from torch import nn

SPLITS = {"train": listed.TRAIN, "validation": listed.VALIDATION, "test": listed.TEST}
KNOWN_FIRST = "abc"  # words that the prompts of shifted preferences begin with
# Rows of different splits should not share draws, so their seeds never meet.
_SEEDS = {"train": 0, "validation": 1, "test": 2}


class ListedWorld(World):
    """See `World`."""

    name = "listed"
    parts = listed.COMPONENTS
    longest = listed.LONGEST
    config: ClassVar[Mapping[str, Any]] = {
        "data": {"rendering": listed.RENDERING},
        "model": {"layout": "padded"},  # texts of six tokens: making trees of them takes longer than it saves
    }

    @property
    def start(self) -> str:  # noqa: D102
        return str(listed.reference_folder())

    def reference(self) -> nn.Module:  # noqa: D102
        return listed.reference_model()

    def fingerprint(self) -> str:  # noqa: D102
        seen = hashlib.sha256(hash_file(listed.reference_folder() / "model.safetensors").encode())
        seen.update(listed.rewards().numpy().tobytes())
        return seen.hexdigest()

    @property
    def judge(self) -> str:  # noqa: D102
        return "preftune.sandbox.listed:true_reward_judge"

    def prompts(self) -> Sequence[str]:  # noqa: D102
        return listed.TRAIN

    def rows(self, preferences: Preferences, seed: int) -> list[dict[str, Any]]:  # noqa: D102
        return self._rows(preferences, seed, "train")

    def held_out_rows(self, preferences: Preferences, seed: int, split: Split) -> list[dict[str, Any]]:  # noqa: D102
        return self._rows(preferences, seed, split)

    def _rows(self, preferences: Preferences, seed: int, split: str) -> list[dict[str, Any]]:
        prompts = SPLITS[split]
        if preferences.source == "shifted" and split == "train":
            prompts = tuple(prompt for prompt in prompts if prompt[0] in KNOWN_FIRST)
        found = listed.rows(source(preferences), preferences.pairs, prompts=prompts, seed=3 * seed + _SEEDS[split])
        return [dict(row) for row in found]

    def measure(  # noqa: D102
        self, lm: nn.Module, split: Split, preferences: Preferences, reward_model: Path | None = None
    ) -> Measured:
        with torch.no_grad():
            logps_PY = listed.all_logps(lm.eval(), SPLITS[split])
        return self._measured(logps_PY, split, preferences, reward_model)

    def best_of_n(  # noqa: D102
        self, n: int, split: Split, preferences: Preferences, reward_model: Path | None = None
    ) -> Measured:
        prompts = SPLITS[split]
        scores_PY = listed.rewards(prompts) if reward_model is None else _scores(reward_model, prompts)
        logps_PY = theory.best_of_n(listed.reference_logps(prompts), scores_PY, n)
        return self._measured(logps_PY, split, preferences, reward_model)

    def curve(self, split: Split) -> theory.Frontier:  # noqa: D102
        return listed.frontier(SPLITS[split])

    def _measured(
        self, logps_PY: Tensor, split: Split, preferences: Preferences, reward_model: Path | None
    ) -> Measured:
        prompts = SPLITS[split]
        found, proxy = listed.worth(logps_PY, prompts), None
        if reward_model is not None:
            scores_PY = _scores(reward_model, prompts)
            proxy = float(theory.expected(logps_PY, scores_PY))
            proxy -= float(theory.expected(listed.reference_logps(prompts), scores_PY))
        win = None if preferences.source == "shifted" else _win(logps_PY, prompts, source(preferences, clean=True))
        return self.measured(found.reward, found.components, found.kl, split, proxy, win)


def source(preferences: Preferences, clean: bool = False) -> listed.Source:
    """Who prefers.

    Args:
        preferences: of a cell.
        clean: before labels are flipped.
    """
    found = {
        "bradley_terry": lambda: listed.bradley_terry(World.scale),
        "deterministic": listed.deterministic,
        "two_annotators": lambda: listed.two_annotators(World.scale),
        "cyclic": listed.cyclic,
        "shifted": lambda: listed.two_annotators(World.scale, share=1.0),
    }[preferences.source]()
    noise = 0.0 if clean else preferences.noise

    def prefers(first: Tensor, second: Tensor) -> Tensor:
        p = found.prefers(first, second)
        return p * (1 - noise) + (1 - p) * noise

    return replace(found, prefers=prefers)


def _win(logps_PY: Tensor, prompts: Sequence[str], who: listed.Source) -> float:
    """Probability that the policy's response is preferred to the reference's, exactly."""
    wins = []
    for logps_Y, reference_Y, feature_YG in zip(
        logps_PY, listed.reference_logps(prompts), who.features(prompts), strict=True
    ):
        feature_UG, kind_Y = feature_YG.unique(dim=0, return_inverse=True)  # responses that nobody tells apart
        ours_U, theirs_U = (
            torch.zeros(len(feature_UG), dtype=torch.float64).index_add_(0, kind_Y, each.double().exp())
            for each in (logps_Y, reference_Y)
        )
        wins.append(ours_U @ who.prefers(feature_UG[:, None], feature_UG[None]) @ theirs_U)
    return float(torch.stack(wins).mean())


@cache
def _scores(reward_model: Path, prompts: tuple[str, ...]) -> Tensor:
    """What a reward model says of all responses, shape (P, Y)."""
    responses = listed.response_ids()
    asked = [listed.words_of(prompt) for prompt in prompts for _ in responses]
    found = RewardScores(reward_model).of(asked, responses * len(prompts))
    return torch.from_numpy(found).reshape(len(prompts), -1)

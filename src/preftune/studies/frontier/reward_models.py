"""Reward models of a study: trained on the cells' own pairs, and what they say of many responses at once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from preftune.data.examples import Example, Response
from preftune.data.packing import pad
from preftune.objectives.batch import Role
from preftune.policy.policy import PolicyModule, rewards
from preftune.studies.frontier.cells import Preferences
from preftune.studies.frontier.methods import RATES
from preftune.studies.frontier.shared import once

if TYPE_CHECKING:
    from preftune.studies.frontier.worlds import World

PASSES = 4  # over its pairs, four times what policies have: a head that starts at zero underfits with fewer
BATCH = 64
RUN = "run"
_AT_ONCE = 4096


def reward_model(world: World, folder: Path, preferences: Preferences, seed: int) -> Path:
    """The run of `bradley_terry` on these preferences, trained when it is first asked for; at the learning rate, of
    those that methods have, that is right most often on pairs of validation prompts.

    Args:
        world: where the preferences come from.
        folder: of the study's reward models.
        preferences: what it learns from.
        seed: of preferences and training.
    """
    source = f"{preferences.source}-{preferences.noise:g}-{preferences.pairs}"
    made = once(folder / f"{world.name}-{source}-{seed}", lambda path: _train(world, preferences, path, seed))
    return made / RUN


def _train(world: World, preferences: Preferences, path: Path, seed: int) -> None:
    """Train at each of the learning rates that methods have, and keep the one that is right most often on pairs of
    validation prompts."""
    from preftune.studies.frontier.trial import train_in

    rows, apart = world.rows(preferences, seed), world.held_out_rows(preferences, seed, "validation")
    updates = max(1, PASSES * len(rows) // BATCH)
    right: dict[Path, float] = {}
    for rate in RATES:
        at = path / f"rate-{rate:g}"
        run = train_in(world, rows, "bradley_terry", rate, updates, seed, at, held_out=apart)
        right[at] = run.summary["after"]["preference_accuracy"]
    best = max(right, key=right.__getitem__)
    for at in right:
        if at != best:
            shutil.rmtree(at)
    best.rename(path / RUN)


class RewardScores:
    """What a reward model says of responses, as token ids.

    Args:
        run: its run folder.
    """

    def __init__(self, run: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        from preftune.quiet import without_progress_bars

        with without_progress_bars():
            lm = AutoModelForSequenceClassification.from_pretrained(run / "model")
        self.policy = PolicyModule(lm.eval(), "padded")
        self.pad_id = int(lm.config.pad_token_id or 0)

    @torch.no_grad()
    def of(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Its reward of each response to the prompt beside it, shape (responses,)."""
        found = []
        for start in range(0, len(responses), _AT_ONCE):
            examples = [
                Example(np.asarray(prompt, np.int32), (Response(np.asarray(response, np.int32), Role.CHOSEN),))
                for prompt, response in zip(
                    prompts[start : start + _AT_ONCE], responses[start : start + _AT_ONCE], strict=True
                )
            ]
            value_R: Any = rewards(self.policy, pad(examples, self.pad_id)).reward_R
            found.append(value_R.double().numpy())
        return np.concatenate(found)

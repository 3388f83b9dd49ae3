"""Reward models of a study: trained on the cells' own pairs, and what they say of many responses at once."""

from __future__ import annotations

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
from preftune.studies.frontier.shared import once

if TYPE_CHECKING:
    from preftune.studies.frontier.worlds import World

RATE = 1e-2
PASSES = 4  # over its pairs, four times what policies have: a head that starts at zero underfits with fewer
BATCH = 64
_AT_ONCE = 4096


def reward_model(world: World, folder: Path, preferences: Preferences, seed: int) -> Path:
    """The run of `bradley_terry` on these preferences, trained when it is first asked for.

    Args:
        world: where the preferences come from.
        folder: of the study's reward models.
        preferences: what it learns from.
        seed: of preferences and training.
    """
    source = f"{preferences.source}-{preferences.noise:g}-{preferences.pairs}"
    return once(
        folder / f"{world.name}-{source}-{seed}", lambda path: _train(world, world.rows(preferences, seed), path, seed)
    )


def _train(world: World, rows: Sequence[dict[str, Any]], path: Path, seed: int) -> None:
    from preftune.studies.frontier.trial import train_in

    train_in(world, rows, "bradley_terry", RATE, max(1, PASSES * len(rows) // BATCH), seed, path)


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

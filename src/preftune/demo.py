"""The main job on the built-in world, from preferences to an aligned model, in under a minute on two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from preftune.api import train
from preftune.checks import check_output
from preftune.run import Run
from preftune.sandbox.preferences import PolicyEvaluation, base_model, evaluate_policy, held_out_pairs, pairs
from preftune.sandbox.world import prompts

# Found by measuring (docs/log.md): a reward well above the start at a KL that leaves the grammar whole.
SETTINGS: Mapping[str, Any] = {
    "optim": {"learning_rate": 2e-3},
    "batch": {"size": 64},
    "evaluate": {"samples": 8, "max_new_tokens": 40, "every": 16},
    "train": {"log_every": 2, "device": "cpu"},
}
OBJECTIVE = {"name": "dpo", "beta": 0.3}
HELD_OUT_PAIRS = 512


def demo(
    output: Path, *, count: int = 4096, noise: float = 0.0, seed: int = 0, overwrite: bool = False, quiet: bool = False
) -> Run:
    """Train DPO on pairs sampled from the base model, and measure the true reward before and after.

    Args:
        output: run folder.
        count: training pairs.
        noise: probability that a label is flipped, beyond the noise of Bradley-Terry.
        seed: of pairs and training.
        overwrite: replace a run folder that is already there.
        quiet: no progress bar.

    Raises:
        PreftuneError: if the folder cannot be used, or noise is out of its range.
    """
    check_output(output, overwrite)  # before the pairs are sampled, which takes seconds
    reference = base_model()
    apart = prompts()[1]
    looks: list[PolicyEvaluation] = []

    def probe(lm: nn.Module) -> dict[str, Any]:
        looks.append(evaluate_policy(lm, reference, apart, seed=seed))
        return _figures(looks[-1])

    run = train(
        "sandbox",
        [*pairs(count, noise=noise, seed=seed)],
        OBJECTIVE,
        held_out=held_out_pairs(HELD_OUT_PAIRS, seed=seed + 1),
        output=output,
        probe=probe,
        quiet=quiet,
        overwrite=overwrite,
        seed=seed,
        **SETTINGS,
    )
    gain, interval = looks[1].gain_over(looks[0])
    run.add_to_summary(difference={"true_reward": gain, "true_reward_ci95": list(interval)})
    return run


def _figures(look: PolicyEvaluation) -> dict[str, Any]:
    """What the summary keeps of an evaluation."""
    return {
        "true_reward": look.true_reward,
        "true_reward_ci95": list(look.true_reward_ci95),
        "kl": look.kl,
        "kl_se": look.kl_se,
        "grammatical": look.grammatical,
        "mean_length": look.mean_length,
        **{f"true_reward_{name}": value for name, value in look.components.items()},
    }

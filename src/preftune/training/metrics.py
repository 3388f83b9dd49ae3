"""What training reports, defined once.

Per pair, in nats unless said otherwise, log-probs of whole responses:
    delta           log-ratio of chosen minus log-ratio of rejected (policy against reference)
    reward          the objective's implicit reward (beta times the log-ratio, for most)
    margin          chosen reward minus rejected reward
    preference_accuracy   1 where delta > 0; ties (|delta| < 1e-5) count one half, so that training starts at 0.5
    policy_accuracy       the same for the policy's own log-probs, without a reference
Means are over examples; log-probs per token are over tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from preftune.evaluation.intervals import accuracy_interval
from preftune.objectives.base import Batch, LogProbs, Outcome, Role, role_indices

TIE = 1e-5
QUANTILES = (10, 50, 90)
Columns = Mapping[str, Tensor]
Table = Mapping[str, np.ndarray]


def columns(policy: LogProbs, reference: LogProbs | None, outcome: Outcome, batch: Batch) -> dict[str, Tensor]:
    """Values of each example of a batch, shape E each, without gradient."""
    policy_R = policy.sums_R(batch).detach().double()
    reference_R = None if reference is None else reference.sums_R(batch).double()
    values: dict[str, Tensor] = {}
    for name, role in (("chosen", Role.CHOSEN), ("rejected", Role.REJECTED)):
        at = role_indices(batch, role)
        if len(at) != len(batch.weight_E):
            continue
        values[f"{name}_logp"] = policy_R[at]
        values[f"{name}_length"] = batch.length_R[at].double()
        values[f"{name}_reward"] = outcome.rewards_R[at].detach().double()
        if reference_R is not None:
            values[f"{name}_ratio"] = policy_R[at] - reference_R[at]
    return values


def table(pieces: Sequence[Columns]) -> dict[str, np.ndarray]:
    """Columns of many batches, one after the other."""
    return {name: torch.cat([piece[name] for piece in pieces]).cpu().numpy() for name in pieces[0]}


def against(values: Table, start: Table) -> dict[str, np.ndarray]:
    """The table with log-ratios against the policy's own start, for objectives without a reference."""
    ratios = {
        f"{name}_ratio": values[f"{name}_logp"] - start[f"{name}_logp"]
        for name in ("chosen", "rejected")
        if f"{name}_ratio" not in values and f"{name}_logp" in values
    }
    return {**values, **ratios}


def summarise(values: Table) -> dict[str, float]:
    """Means, spreads and accuracies of a table of examples."""
    summary: dict[str, float] = {}
    for name in ("chosen", "rejected"):
        if f"{name}_logp" not in values:
            continue
        logps, lengths = values[f"{name}_logp"], values[f"{name}_length"]
        summary[f"{name}_logp_per_token"] = float(logps.sum() / lengths.sum())
        summary[f"{name}_length"] = float(lengths.mean())
        rewards = values[f"{name}_reward"]
        if np.isfinite(rewards).all():
            summary[f"{name}_reward"] = float(rewards.mean())
    if "rejected_logp" in values:
        summary["policy_accuracy"] = float(wins(values["chosen_logp"] - values["rejected_logp"]).mean())
    if "rejected_ratio" in values:
        delta = values["chosen_ratio"] - values["rejected_ratio"]
        summary["preference_accuracy"] = float(wins(delta).mean())
        summary |= _spread("delta", delta)
    if "chosen_reward" in summary and "rejected_reward" in summary:
        summary |= _spread("margin", values["chosen_reward"] - values["rejected_reward"])
    return summary


def held_out(values: Table, start: Table, prompts: Sequence[Hashable]) -> dict[str, object]:
    """`summarise`, with intervals, histograms of rewards, and changes since the start of training.

    Args:
        values: the table now.
        start: the table at step 0, of the same examples in the same order.
        prompts: the prompt of each example: examples that share one are no independent evidence.
    """
    values = against(values, start)
    summary: dict[str, object] = dict(summarise(values))
    for name in ("chosen", "rejected"):
        if f"{name}_logp" in values:
            change = values[f"{name}_logp"].sum() - start[f"{name}_logp"].sum()
            summary[f"{name}_logp_per_token_change"] = float(change / values[f"{name}_length"].sum())
    if "rejected_ratio" in values:
        delta = values["chosen_ratio"] - values["rejected_ratio"]
        summary["preference_accuracy_ci95"] = list(accuracy_interval(wins(delta), prompts))
    if "rejected_logp" in values:
        own = wins(values["chosen_logp"] - values["rejected_logp"])
        summary["policy_accuracy_ci95"] = list(accuracy_interval(own, prompts))
    if "chosen_reward" in summary and "rejected_reward" in summary:
        rewards = {name: values[f"{name}_reward"] for name in ("chosen", "rejected")}
        edges = np.histogram_bin_edges(np.concatenate(list(rewards.values())), bins=30)
        for name, reward in rewards.items():
            counts = np.histogram(reward, bins=edges)[0]
            summary[f"{name}_reward_histogram"] = {"edges": edges.tolist(), "counts": counts.tolist()}
    return summary


def wins(difference: np.ndarray) -> np.ndarray:
    """1 where positive, 0 where negative, one half where it is a tie."""
    return np.where(np.abs(difference) < TIE, 0.5, (difference > 0).astype(float))


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    quantiles = np.percentile(values, QUANTILES)
    return {
        name: float(values.mean()),
        f"{name}_sd": float(values.std()),
        **{f"{name}_q{q}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
    }

"""What training reports, defined once.

Per pair, in nats unless said otherwise, log-probs of whole responses:
    delta           log-ratio of chosen minus log-ratio of rejected (policy against reference)
    reward          the objective's implicit reward (beta times the log-ratio, for most), or the reward head's value
    margin          chosen reward minus rejected reward
    preference_accuracy   1 where delta > 0 (where the margin > 0, for a reward head); ties (|delta| < 1e-5) count one
                    half, so that training starts at 0.5
    policy_accuracy       the same for the policy's own log-probs, without a reference
Means are over examples; log-probs per token are over tokens. What an objective tells of itself (a baseline, a
temperature of the batch) is logged under the name that it gives.

    delta_length_correlation   Pearson's, over held-out pairs, of delta with the tokens of chosen less those of rejected

Of answers that the policy writes to fixed prompts (`doctor.answers` of them, at each evaluation):
    sample_length   tokens, end token included, on average
    sample_end_rate       share that reached an end token before `evaluate.max_new_tokens`
    sample_repetition     share of an answer's 4-grams of tokens that stood in it before, over all answers
    sample_distinct       different answers as a share of all
    sample_logp_per_token   the policy's own log-prob of them, at temperature 1
    sample_reference_logp_per_token   the reference's log-prob of them
    sample_kl, sample_kl_per_token    policy's log-prob less the reference's, of a whole answer and of a token: at
                          temperature 1 an unbiased estimate of KL(policy || reference) and its share for each token
At the start, also of the first 64 good responses of the data beside these answers:
    chosen_first_logp, chosen_last_logp, sample_first_logp, sample_last_logp   log-prob of the first and last token
Of parameters, once all should have moved (three steps after warmup) and at the end:
    untrained_share       share of all numbers that train in tensors none of whose entries (4,096 at most are compared)
                          differs from its start; `untrained` names the first of them

In unpaired data, chosen are the responses judged good and rejected those judged bad: delta and margin are differences
of means, and accuracies are over all couples of a good and a bad response, whatever their prompts (the area under the
ROC curve). In rankings, chosen is the best of each and rejected the worst; order_accuracy is the share of all strictly
ordered couples of responses to one prompt that the log-ratios order alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from preftune.evaluation.intervals import TIE, accuracy_interval, auc, auc_interval
from preftune.objectives.base import Outcome
from preftune.objectives.batch import Batch, LogProbs, PlainBatch, Role, at_hand, role_indices

QUANTILES = (10, 50, 90)
SIDES = ("chosen", "rejected")
# What metrics read of a batch: fields that do not grow with its tokens.
RESPONSES = ("example_R", "role_R", "score_R", "length_R", "weight_E", "confidence_E", "gap_E", "row_E")
Columns = Mapping[str, Tensor]
Table = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Seen:
    """What a step saw of a batch, where it was computed: nothing here makes a device wait.

    Attributes:
        values_R: "reward", "logp" and "reference" of each response, where there are such.
        extras_E: what the objective tells of itself.
        responses: what they are, on the host; their targets are left out.
    """

    values_R: Mapping[str, Tensor]
    extras_E: Mapping[str, Tensor]
    responses: Batch


def observe(policy: LogProbs, reference: LogProbs | None, outcome: Outcome, batch: Batch) -> Seen:
    """Values of a batch, without gradient."""
    values_R = {"reward": outcome.rewards_R.detach()}
    if policy.reward_R is None:
        values_R["logp"] = policy.sums_R(batch).detach()
        if reference is not None:
            values_R["reference"] = reference.sums_R(batch)
    extras_E = {name: value.detach() for name, value in outcome.extras.items()}
    kept = {name: getattr(at_hand(batch), name) for name in RESPONSES}
    return Seen(values_R, extras_E, PlainBatch(response_K=torch.empty(0, dtype=torch.int64), **kept))


def columns(seen: Seen) -> dict[str, Tensor]:
    """Values of each example of a batch, shape E each, float64; all of `seen` must be on the host."""
    batch = seen.responses
    given_R = {name: value_R.double() for name, value_R in seen.values_R.items()}
    values_R = {"length": batch.length_R.double(), "reward": given_R["reward"]}
    if "logp" in given_R:
        values_R["logp"] = given_R["logp"]
    if "reference" in given_R:
        values_R["ratio"] = given_R["logp"] - given_R["reference"]
    values: dict[str, Tensor] = {}
    best, worst = _extremes(batch)
    for name, at in (
        ("chosen", role_indices(batch, Role.CHOSEN)),
        ("rejected", role_indices(batch, Role.REJECTED)),
        ("chosen", best),
        ("rejected", worst),
        ("response", role_indices(batch, Role.LABELLED)),
    ):
        if len(at) == len(batch.weight_E):
            values |= {f"{name}_{key}": value_R[at] for key, value_R in values_R.items()}
    if "response_reward" in values:
        values["good"] = batch.score_R[role_indices(batch, Role.LABELLED)].double()
    values |= {f"objective.{name}": value_E.double() for name, value_E in seen.extras_E.items()}
    if len(best):
        ranked_by = values_R.get("ratio", values_R["reward"])
        values["order"] = _order_E(ranked_by, batch)
    return values


def table(pieces: Sequence[Columns]) -> dict[str, np.ndarray]:
    """Columns of many batches, one after the other."""
    return {name: torch.cat([piece[name] for piece in pieces]).numpy() for name in pieces[0]}


def against(values: Table, start: Table) -> dict[str, np.ndarray]:
    """The table with log-ratios against the policy's own start, for objectives without a reference."""
    ratios = {
        f"{name}_ratio": values[f"{name}_logp"] - start[f"{name}_logp"]
        for name in (*SIDES, "response")
        if f"{name}_ratio" not in values and f"{name}_logp" in values
    }
    return {**values, **ratios}


def summarise(values: Table) -> dict[str, float]:
    """Means, spreads and accuracies of a table of examples."""
    summary: dict[str, float] = {}
    for name in SIDES:
        side = _side(values, name)
        if "logp" in side:
            summary[f"{name}_logp_per_token"] = float(side["logp"].sum() / side["length"].sum())
        if "length" in side:
            summary[f"{name}_length"] = float(side["length"].mean())
        if "reward" in side and np.isfinite(side["reward"]).all():
            summary[f"{name}_reward"] = float(side["reward"].mean())
    for name, key in (("policy_accuracy", "logp"), ("preference_accuracy", _compared(values))):
        if (scores := _scores(values, key)) is not None:
            summary[name] = float(scores.mean())
    summary |= _difference(values, "delta", "ratio")
    if all(f"{name}_reward" in summary for name in SIDES):
        summary |= _difference(values, "margin", "reward")
    for name in values:
        if name.startswith("objective."):
            summary[name.removeprefix("objective.")] = float(values[name].mean())
    if "order" in values:
        summary["order_accuracy"] = float(np.nanmean(values["order"]))
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
    for name in SIDES:
        side, first = _side(values, name), _side(start, name)
        if "logp" in side:
            change = side["logp"].sum() - first["logp"].sum()
            summary[f"{name}_logp_per_token_change"] = float(change / side["length"].sum())
    summary |= _length_correlation(values)
    for name, key in (("policy_accuracy", "logp"), ("preference_accuracy", _compared(values))):
        if (scores := _scores(values, key)) is None:
            continue
        if "good" in values:
            chosen, rejected = (_side(values, side)[key] for side in SIDES)
            summary[f"{name}_ci95"] = list(auc_interval(chosen, rejected, TIE))
        else:
            summary[f"{name}_ci95"] = list(accuracy_interval(scores, prompts))
    if all(f"{name}_reward" in summary for name in SIDES):
        rewards = {name: _side(values, name)["reward"] for name in SIDES}
        edges = np.histogram_bin_edges(np.concatenate(list(rewards.values())), bins=30)
        for name, reward in rewards.items():
            counts = np.histogram(reward, bins=edges)[0]
            summary[f"{name}_reward_histogram"] = {"edges": edges.tolist(), "counts": counts.tolist()}
    return summary


def wins(difference: np.ndarray) -> np.ndarray:
    """1 where positive, 0 where negative, one half where it is a tie."""
    return np.where(np.abs(difference) < TIE, 0.5, (difference > 0).astype(float))


def _side(values: Table, name: str) -> dict[str, np.ndarray]:
    """Log-probs, lengths, rewards and log-ratios of the chosen or of the rejected responses, where there are any."""
    source, at = name, slice(None)
    if "good" in values:
        source, at = "response", values["good"] == (1 if name == "chosen" else 0)
    found = {
        key: values[f"{source}_{key}"][at]
        for key in ("logp", "length", "reward", "ratio")
        if f"{source}_{key}" in values
    }
    return {key: value for key, value in found.items() if len(value)}


def _compared(values: Table) -> str:
    """What tells which response a policy prefers: log-ratios, or the values of a reward head."""
    return "ratio" if any(name.endswith("_logp") for name in values) else "reward"


def _scores(values: Table, key: str) -> np.ndarray | None:
    """How often chosen has more of something than rejected: of each pair, or of each response judged good."""
    chosen, rejected = (_side(values, name).get(key) for name in SIDES)
    if chosen is None or rejected is None:
        return None
    return auc(chosen, rejected, TIE)[0] if "good" in values else wins(chosen - rejected)


def _difference(values: Table, name: str, key: str) -> dict[str, float]:
    """Mean of chosen less rejected; in paired data with its spread."""
    chosen, rejected = (_side(values, side).get(key) for side in SIDES)
    if chosen is None or rejected is None:
        return {}
    if "good" in values:
        return {name: float(chosen.mean() - rejected.mean())}
    differences = chosen - rejected
    quantiles = np.percentile(differences, QUANTILES)
    return {
        name: float(differences.mean()),
        f"{name}_sd": float(differences.std()),
        **{f"{name}_q{q}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
    }


def _length_correlation(values: Table) -> dict[str, float]:
    """How much of delta goes with the difference of lengths; in paired data of more than two pairs."""
    chosen, rejected = (_side(values, side) for side in SIDES)
    if "good" in values or not all("ratio" in side and "length" in side for side in (chosen, rejected)):
        return {}
    delta, gap = chosen["ratio"] - rejected["ratio"], chosen["length"] - rejected["length"]
    if len(delta) < 3 or not delta.std() > TIE or not gap.std() > 0:
        return {}
    return {"delta_length_correlation": float(np.corrcoef(delta, gap)[0, 1])}


def _extremes(batch: Batch) -> tuple[Tensor, Tensor]:
    """Of each example its best and its worst ranked response; empty if there are no rankings."""
    ranked_R = torch.nonzero(batch.role_R == int(Role.RANKED)).squeeze(1)
    by_score = ranked_R[torch.argsort(batch.score_R[ranked_R], stable=True)]
    ordered = by_score[torch.argsort(batch.example_R[by_score], stable=True)]
    last = torch.cumsum(torch.bincount(batch.example_R[ordered], minlength=len(batch.weight_E)), 0)
    if not len(ordered) or not bool((last.diff(prepend=last.new_zeros(1)) > 0).all()):
        return ranked_R[:0], ranked_R[:0]
    return ordered[last - 1], ordered[torch.cat([last.new_zeros(1), last[:-1]])]


def _order_E(value_R: Tensor, batch: Batch) -> Tensor:
    """Share of the strictly ordered couples of each example's ranked responses that values order alike; ties of values
    count one half, and an example without such a couple is NaN."""
    shares = []
    members: list[list[int]] = [[] for _ in range(len(batch.weight_E))]
    for response in torch.nonzero(batch.role_R == int(Role.RANKED)).squeeze(1).tolist():
        members[int(batch.example_R[response])].append(response)
    scores, values = batch.score_R.tolist(), value_R.tolist()
    for responses in members:
        gaps = [
            (values[a] - values[b]) * np.sign(scores[a] - scores[b])
            for a, b in combinations(responses, 2)
            if scores[a] != scores[b]
        ]
        shares.append(float(wins(np.array(gaps)).mean()) if gaps else np.nan)
    return torch.tensor(shares, dtype=torch.float64)

"""What scores of held-out examples say: accuracy, margin and calibration with intervals, by length and by source,
beside baselines that know less.

Names and definitions are those of `training.metrics`. Intervals are by prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.data.examples import Example
from preftune.evaluation.calibration import calibrate
from preftune.evaluation.intervals import grouped_interval, mean_interval, numbered, standard_error
from preftune.evaluation.scoring import Scores
from preftune.training import metrics

Figures = dict[str, Any]
Mask = NDArray[np.bool_]
PARTS = 4  # of equal size, by the length of the two responses together
KEPT = (
    "accuracy",
    "accuracy_ci95",
    "policy_accuracy",
    "policy_accuracy_ci95",
    "order_accuracy",
    "margin",
    "margin_sd",
    "delta",
    "delta_sd",
)


def pair_figures(scores: Scores, examples: Sequence[Example], sources: Sequence[str | None]) -> Figures:
    """The figures of pairs, of rankings (their best response and their worst), or of judged responses.

    Args:
        scores: of the examples.
        examples: at least one.
        sources: of each example, where its data says so.

    Returns:
        "pairs", and where they can be told "calibration", "scores" (of reward models), "by_length", "by_source" and
        "baselines"; for judged responses "pairs" and "responses", for demonstrations "demonstrations" alone.
    """
    prompts = [example.prompt.tobytes() for example in examples]
    number = numbered(prompts)
    table = scores.table
    if "response_logp" in table or "response_reward" in table:
        return {"pairs": _summary(scores, prompts), "responses": _responses(table)}
    if "chosen_length" in table and "rejected_length" not in table:
        return {"demonstrations": _demonstrations(scores, number)}
    found: Figures = {"pairs": _summary(scores, prompts)}
    side = "reward" if "chosen_logp" not in table else "ratio" if "chosen_ratio" in table else "logp"
    wins = metrics.wins(table[f"chosen_{side}"] - table[f"rejected_{side}"])
    margins = table["chosen_reward"] - table["rejected_reward"]
    known = bool(np.isfinite(margins).all())
    if known:
        found["pairs"]["margin_ci95"] = _listed(mean_interval(margins, number))
        if np.abs(margins).max() > 0:
            found["calibration"] = _calibration(margins, number, prompts)

    def slice_of(mask: Mask) -> Figures:
        own = np.unique(number[mask], return_inverse=True)[1]
        accuracy = {"accuracy": float(wins[mask].mean()), "accuracy_ci95": list(grouped_interval(wins[mask], own))}
        return {"pairs": int(mask.sum()), **accuracy, **({"margin": float(margins[mask].mean())} if known else {})}

    if side == "reward":
        found["scores"] = _scores(table, number)
    found["by_length"] = [{"bucket": name, **slice_of(mask)} for name, mask in _buckets(table) if mask.any()]
    names = sorted({source for source in sources if source is not None})
    if len(names) > 1:
        held = np.array(["" if source is None else source for source in sources])
        found["by_source"] = [{"source": name, **slice_of(held == name)} for name in names]
    found["baselines"] = _baselines(scores, number)
    return found


def _summary(scores: Scores, prompts: Sequence[bytes]) -> Figures:
    """What training reports of held-out examples, under shorter names."""
    found = metrics.held_out(scores.table, scores.start, prompts)
    for key in ("", "_ci95"):
        if f"preference_accuracy{key}" in found:
            found[f"accuracy{key}"] = found[f"preference_accuracy{key}"]
    has_reference = any(name.endswith("_ratio") for name in scores.table)
    compares = has_reference or not any(name.endswith("_logp") for name in scores.table)
    of_reference = ("accuracy", "delta")
    kept = {key: found[key] for key in KEPT if key in found and (compares or not key.startswith(of_reference))}
    return {key: value for key, value in kept.items() if not isinstance(value, float) or np.isfinite(value)}


def _calibration(margins: NDArray[np.float64], number: NDArray[np.int64], prompts: Sequence[bytes]) -> Figures:
    found = asdict(calibrate(margins, number, list(dict.fromkeys(prompts))))
    bins = [{**one, "ci95": list(one["ci95"])} for one in found["bins"]]
    kept = {key: value for key, value in found.items() if value is not None}
    return {**kept, "ece_ci95": list(found["ece_ci95"]), "bins": bins}


def _buckets(table: Mapping[str, NDArray[Any]]) -> Iterable[tuple[str, Mask]]:
    """Parts of the pairs by the lengths of their responses, in words."""
    chosen, rejected = table["chosen_length"], table["rejected_length"]
    yield "chosen is shorter", chosen < rejected
    yield "both are as long", chosen == rejected
    yield "chosen is longer", chosen > rejected
    mean = (chosen + rejected) / 2
    ends = np.unique(np.percentile(mean, np.linspace(0, 100, PARTS + 1)[1:-1], method="lower"))
    low = -np.inf
    for high in [*ends.tolist(), np.inf]:
        inside = (mean > low) & (mean <= high)
        if low == -np.inf:
            name = f"up to {high:g} tokens"
        else:
            name = f"above {low:g} tokens" if high == np.inf else f"{low:g} to {high:g} tokens"
        if inside.any() and not inside.all():
            yield name, inside
        low = high


def _baselines(scores: Scores, number: NDArray[np.int64]) -> Figures:
    """What would be right by length alone, and by the reference's own log-probs."""
    table = scores.table
    compared = {"longer": table["chosen_length"] - table["rejected_length"]}
    if "chosen_ratio" in table:
        compared["reference"] = scores.start["chosen_logp"] - scores.start["rejected_logp"]
    wins = {name: metrics.wins(difference) for name, difference in compared.items()}
    return {
        name: {"accuracy": float(won.mean()), "accuracy_ci95": list(grouped_interval(won, number))}
        for name, won in wins.items()
    }


def _scores(table: Mapping[str, NDArray[Any]], number: NDArray[np.int64]) -> Figures:
    """What a reward model's own scores are like: their level, which training leaves open unless it is centred; their
    spread; and how far they follow length.

    prefers_longer, longer_is_better: of pairs of unequal length, the share in which the longer response has the higher
    score, and the share in which it is the chosen one. length_correlation: of differences in score and in length.
    """
    chosen, rejected = table["chosen_reward"], table["rejected_reward"]
    both, margin = np.concatenate([chosen, rejected]), chosen - rejected
    found: Figures = {"mean": float(both.mean()), "sd": float(both.std())}
    found |= {"chosen": float(chosen.mean()), "rejected": float(rejected.mean())}
    longer = table["chosen_length"] - table["rejected_length"]
    unequal = longer != 0
    if not unequal.any():
        return found
    own = np.unique(number[unequal], return_inverse=True)[1]
    way = np.sign(longer[unequal])
    for name, values in (("prefers_longer", margin[unequal] * way), ("longer_is_better", way)):
        share = metrics.wins(values)
        found |= {name: float(share.mean()), f"{name}_ci95": list(grouped_interval(share, own))}
    if margin.std() > 0 and longer.std() > 0:
        found["length_correlation"] = float(np.corrcoef(margin, longer)[0, 1])
    return found


def _responses(table: Mapping[str, NDArray[Any]]) -> Figures:
    """Of the responses judged good, and of those judged bad, what needs no other kind beside it."""
    found = Figures()
    for name, good in (("good", 1), ("bad", 0)):
        if not (mask := table["good"] == good).any():
            continue
        side: Figures = {"responses": int(mask.sum())}
        if "response_logp" in table:
            side["logp_per_token"] = float(table["response_logp"][mask].sum() / table["response_length"][mask].sum())
        if np.isfinite(reward := table["response_reward"][mask]).all():
            side["reward"] = float(reward.mean())
        found[name] = side
    return found


def _demonstrations(scores: Scores, number: NDArray[np.int64]) -> Figures:
    """Nats per token of what is to be imitated."""
    table, found = scores.table, Figures()
    logps, tokens = table["chosen_logp"], table["chosen_length"]
    found["logp_per_token"] = float(logps.sum() / tokens.sum())
    found["logp_per_token_se"] = standard_error(logps, number, per=tokens)
    if "chosen_ratio" in table:
        found["reference_logp_per_token"] = float(scores.start["chosen_logp"].sum() / tokens.sum())
    return found


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)

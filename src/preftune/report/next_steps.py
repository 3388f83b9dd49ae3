"""What to try next, from a run's numbers: a few rules, each with the figure that it goes by and a command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from preftune.report.curves import points
from preftune.report.diagnosis import symptoms
from preftune.report.reading import RunData
from preftune.report.tables import Change
from preftune.report.trained import has_reference, is_reward_model, learns_preferences, objectives
from preftune.report.values import Interval, interval, listed, mapping, number, show

MOST = 3  # pieces of advice: more are not followed
LONGER = 1.2  # times the length before training, above which length has to be looked at
TURNED = 0.02  # of the lowest held-out loss, above which a rise is no wobble
NORMALISING = ("simpo", "r_dpo")  # objectives that take length out of what is compared
RISING = 0.02  # accuracy gained since the last but one evaluation


@dataclass(frozen=True)
class Advice:
    """One thing to try.

    Attributes:
        text: why, with the figure that says so, and what.
        command: to run; empty if there is none.
    """

    text: str
    command: str = ""


def advice(run: RunData, found: Mapping[str, Change], running: bool = False) -> list[Advice]:
    """What to try next, the most urgent first, three things at most.

    Args:
        run: its files.
        found: metrics before and after, as `tables.changes` returns them.
        running: True if the run is known to go on: then there is only what the training doctor prescribes.
    """
    if running:
        return _remedies(run)[:MOST]
    folder = shlex.quote(run.known_as)
    if run.failure or not run.summary:
        return [Advice("Go on with the run from its last checkpoint.", f"preftune train --resume {folder}")]
    said = _remedies(run)
    if not found:
        said.append(
            Advice(
                "Hold out some data, so that the next report can tell whether training helped.",
                f"preftune train {folder}/config.yaml data.held_out=0.1 output.path={folder}-held-out",
            )
        )
    rules = (_turned, _risen, _not_above_chance, _length, _beaten_by_length, _still_rising)
    said += [one for rule in rules if (one := rule(run, found, folder)) is not None]
    if not run.own_evaluation:
        said.append(
            Advice(
                "See whether it beats simple baselines, where it is wrong, how far its confidence can be trusted"
                + ("." if is_reward_model(run) else " and what its answers are like."),
                f"preftune evaluate {folder}",
            )
        )
    if found and learns_preferences(run) and (sweep := _sweep(run, folder)) is not None:
        said.append(sweep)
    return said[:MOST]


def _remedies(run: RunData) -> list[Advice]:
    """What the training doctor prescribes against the warnings that stand."""
    found = symptoms(run.history, run.summary) or []
    return [Advice(one.remedy) for one in found if one.stands and one.severity == "warning" and one.remedy]


def _turned(run: RunData, found: Mapping[str, Change], folder: str) -> Advice | None:
    steps, losses = points(run.history, "eval", "loss")
    if len(losses) < 3:
        return None
    best = min(range(len(losses)), key=losses.__getitem__)
    if losses[-1] <= losses[best] + TURNED * abs(losses[best]) or best == len(losses) - 1 or best == 0:
        return None
    return Advice(
        f"The held-out loss was lowest at step {steps[best]:,.0f} ({show(losses[best])}) and has risen to "
        f"{show(losses[-1])} since: stop earlier, or keep the best checkpoint.",
        f"preftune train {folder}/config.yaml train.max_steps={steps[best]:.0f} output.path={folder}-shorter",
    )


def _risen(run: RunData, found: Mapping[str, Change], folder: str) -> Advice | None:
    """The held-out loss ended above where it began, and never was measured below that."""
    loss, losses = found.get("loss"), points(run.history, "eval", "loss")[1]
    if loss is None or loss.before is None or loss.after is None or min(losses, default=loss.before) < loss.before:
        return None
    if loss.after <= loss.before + TURNED * abs(loss.before):
        return None
    rate = number(run.summary.get("learning_rate"))
    slower = f" optim.learning_rate={rate / 3:.3g}" if rate else ""
    return Advice(
        f"The held-out loss rose from {show(loss.before)} to {show(loss.after)}: what was learned does not carry over, "
        "so try a lower learning rate, fewer steps or more data.",
        f"preftune train {folder}/config.yaml{slower} output.path={folder}-slower" if slower else "",
    )


def _not_above_chance(run: RunData, found: Mapping[str, Change], folder: str) -> Advice | None:
    if not learns_preferences(run) or _risen(run, found, folder):  # a higher learning rate would make it worse
        return None
    accuracy = found.get("preference_accuracy")
    bounds = accuracy.after_interval if accuracy else None
    if bounds is None or bounds[0] > 0.5:
        return None
    rate = number(run.summary.get("learning_rate"))
    faster = f" optim.learning_rate={3 * rate:.3g}" if rate else ""
    return Advice(
        "Accuracy is not above chance: look through the preferences first, then try a higher learning rate or more "
        "pairs.",
        f"preftune train {folder}/config.yaml{faster} output.path={folder}-faster" if faster else "",
    )


def _length(run: RunData, found: Mapping[str, Change], folder: str) -> Advice | None:
    before, after = (number(mapping(run.summary.get(when)).get("mean_length")) for when in ("before", "after"))
    generation = mapping(run.own_evaluation.get("generation"))
    if (own := number(mapping(generation.get("policy")).get("mean_length"))) is not None:
        before, after = number(mapping(generation.get("against")).get("mean_length")), own
    if (
        not before
        or after is None
        or after < LONGER * before
        or "length_controlled" in mapping(run.evaluation.get("win_rate"))
    ):
        return None
    return Advice(
        f"Answers grew from {show(before)} to {show(after)} tokens: make sure that length is not what was learned, by "
        "a win rate that is controlled for length.",
        f"preftune evaluate {folder} --judge JUDGE",
    )


def _beaten_by_length(run: RunData, found: Mapping[str, Change], folder: str) -> Advice | None:
    own = interval(mapping(run.own_evaluation.get("pairs")).get("accuracy_ci95"))
    longer = mapping(mapping(run.own_evaluation.get("baselines")).get("longer"))
    share, bounds = number(longer.get("accuracy")), interval(longer.get("accuracy_ci95"))
    if own is None or share is None or bounds is None or not _above(bounds, 0.5) or _above(own, share):
        return None
    others = [] if is_reward_model(run) else [name for name in NORMALISING if name not in objectives(run)]
    return Advice(
        f"Always picking the longer response is right in {show(share, 'share')} of held-out pairs, and the model is "
        "not surely better: mend the length bias of the data"
        + (f", or use an objective that corrects for length ({listed(others)})." if others else "."),
        f"preftune validate {shlex.quote(run.data_path)}" if run.data_path else "",
    )


def _still_rising(run: RunData, found: Mapping[str, Change], folder: str) -> Advice | None:
    _, accuracies = points(run.history, "eval", "preference_accuracy")
    _, losses = points(run.history, "eval", "loss")
    if len(accuracies) < 3 or len(losses) < 3 or accuracies[-1] - accuracies[-2] < RISING or losses[-1] >= losses[-2]:
        return None
    epochs = number(mapping(run.config.get("train")).get("epochs"))
    longer = f" train.epochs={2 * epochs:g}" if epochs and not mapping(run.config.get("train")).get("max_steps") else ""
    return Advice(
        "Held-out accuracy was still rising at the end: train for longer.",
        f"preftune train {folder}/config.yaml{longer} output.path={folder}-longer" if longer else "",
    )


def _sweep(run: RunData, folder: str) -> Advice | None:
    """Another strength of the objective: the one thing that trades reward for distance."""
    objective = mapping(run.config.get("objective"))
    key = next((key for key in ("beta", "tau") if number(objective.get(key))), None)
    if key is None:
        return None
    value = number(objective.get(key)) or 0.0
    other = f"{value / 3:.2g}"
    there = f"{folder}-{key}-{other}"
    why = (
        "See what a weaker hold on the reference buys, and what it costs in KL"
        if has_reference(run)
        else f"See what another {key} does"
    )
    return Advice(
        f"{why}: train with {key} {other}, then compare the two runs.",
        f"preftune train {folder}/config.yaml objective.{key}={other} output.path={there} && "
        f"preftune report {folder} {there}",
    )


def _above(bounds: Interval, value: float) -> bool:
    return bounds[0] > value

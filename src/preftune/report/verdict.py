"""What a run did, in plain and careful words, from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preftune.report.reading import RunData
from preftune.report.tables import Change, changes
from preftune.report.values import Interval, Unit, number, show, show_change, show_duration, show_interval


@dataclass(frozen=True)
class Verdict:
    """The headline of a report, the paragraphs below it, and the notes that the run left."""

    headline: str
    paragraphs: list[str]
    notes: list[str]


def verdict(run: RunData) -> Verdict:
    """Judge a run by its summary; by its last evaluation where the summary is silent or missing.

    A difference is called one only where a 95% interval says so.
    """
    found = changes(run)
    accuracy, reward, loss, kl = (found.get(key) for key in ("preference_accuracy", "true_reward", "loss", "kl"))
    judged = [
        _judge_accuracy(accuracy) if accuracy else "",
        _judge_reward(reward) if reward else "",
        _judge_loss(loss) if loss and not accuracy else "",
        _judge_distance(kl) if kl else "",
    ]
    if not accuracy and not reward and not loss:
        judged.append("Nothing was measured on held-out data, so this report cannot say whether training helped.")
    notes = run.summary.get("messages")
    return Verdict(
        headline=_headline(run, accuracy, reward, loss),
        paragraphs=[paragraph for paragraph in (_what_was_done(run), *judged) if paragraph],
        notes=[str(note) for note in notes] if isinstance(notes, list) else [],
    )


def chance(bounds: Interval | None) -> str:
    """Where an interval of an accuracy lies: "above chance", "below chance" or "not distinguishable from chance"."""
    if bounds is None:
        return "not compared with chance, as no interval was recorded"
    if bounds[0] > 0.5:
        return "above chance"
    return "below chance" if bounds[1] < 0.5 else "not distinguishable from chance"


def _headline(run: RunData, accuracy: Change | None, reward: Change | None, loss: Change | None) -> str:
    if not run.summary:
        return "This run has not finished, or it stopped early."
    parts = []
    if accuracy and accuracy.after is not None:
        parts.append(
            f"Held-out preference accuracy is {show(accuracy.after, 'share')}, {chance(accuracy.after_interval)}"
        )
    if reward and reward.difference is not None and reward.difference_interval is not None:
        sign = _sign(reward.difference_interval)
        moved = {1: "rose by", -1: "fell by", 0: "did not change measurably"}[sign]
        parts.append(f"the true reward {moved}" + (f" {show(abs(reward.difference))}" if sign else ""))
    if parts:
        text = "; ".join(parts)
        return f"{text[0].upper()}{text[1:]}."
    if loss and loss.after is not None:
        return f"Held-out loss is {show(loss.after)} after training."
    return "Training has finished."


def _what_was_done(run: RunData) -> str:
    model, data = _name(run.config.get("model")), _name(run.config.get("data"))
    text = f"preftune trained the model {model}" if model else "preftune trained a model"
    text += f" on the data {data}" if data else ""
    objective = run.summary.get("objective") or _name(run.config.get("objective"))
    if objective:
        text += f" with the objective {objective}"
    steps, seconds = number(run.summary.get("steps")), number(run.summary.get("seconds"))
    if steps is None:
        recorded = [step for row in run.history if (step := number(row.get("step"))) is not None]
        return (
            f"{text}; the last recorded step is {max(recorded):,.0f}." if recorded else f"{text}; no step is recorded."
        )
    text += f" for {steps:,.0f} {'step' if steps == 1 else 'steps'}"
    if seconds is not None:
        text += f" in {show_duration(seconds)}"
    speed = number(run.summary.get("pairs_per_second"))
    return f"{text} ({show(speed)} pairs per second)." if speed is not None else f"{text}."


def _judge_accuracy(accuracy: Change) -> str:
    if accuracy.after is None:
        return ""
    text = (
        "Compared with its reference, which is the model before training unless the config names another, the trained "
        f"model favours the chosen response over the rejected one in {show(accuracy.after, 'share')} of held-out pairs"
        f"{_in_brackets(accuracy.after_interval, 'share')}. "
    )
    if accuracy.after_interval is None:
        text += "No interval was recorded, so chance (50%) cannot be ruled out."
    else:
        place = chance(accuracy.after_interval)
        covers = place == "not distinguishable from chance"
        text += f"The interval {'covers' if covers else 'excludes'} 50%: this is {place}."
    if accuracy.before is None or accuracy.difference is None:
        return text
    change = f"a change of {show_change(accuracy.difference, 'share')}"
    if accuracy.before == 0.5:  # all pairs are ties at the start: the change is as sure as the distance from chance
        return f"{text} Before training it was 50.0%, {change}."
    was = f"Before training it was {show(accuracy.before, 'share')}{_in_brackets(accuracy.before_interval, 'share')}"
    return f"{text} {was}, {change}{_solidity(accuracy)}."


def _judge_reward(reward: Change) -> str:
    if reward.after is None:
        return ""
    now = f"{show(reward.after)}{_in_brackets(reward.after_interval)}"
    if reward.before is None or reward.difference is None:
        return f"The true reward of sampled responses is {now}."
    was = f"{show(reward.before)}{_in_brackets(reward.before_interval)}"
    change = f"a change of {show_change(reward.difference)}{_solidity(reward)}"
    return f"The true reward of sampled responses went from {was} to {now}, {change}."


def _judge_loss(loss: Change) -> str:
    if loss.before is None or loss.after is None:
        return ""
    return f"Held-out loss went from {show(loss.before)} to {show(loss.after)}; lower is better."


def _judge_distance(kl: Change) -> str:
    if kl.after is None:
        return ""
    return (
        f"Its samples lie {show(kl.after)} nats per response from the reference model{_in_brackets(kl.after_interval)} "
        "(KL divergence; 0 means unchanged)."
    )


def _solidity(change: Change) -> str:
    """How far a change can be trusted, as a clause that continues a sentence."""
    if change.difference_interval is not None:
        low, high = change.difference_interval
        unit = change.metric.unit
        ends = f" (95% interval {show_change(low, unit)} to {show_change(high, unit)}"
        return f"{ends}, which excludes zero)" if _sign((low, high)) else f"{ends}, so it may as well be zero)"
    before, after = change.before_interval, change.after_interval
    if before is None or after is None:
        return ""
    overlap = before[0] <= after[1] and after[0] <= before[1]
    return "; the two intervals overlap, so this may be noise" if overlap else ""


def _sign(bounds: Interval) -> int:
    """1 if the interval lies above zero, -1 if below, 0 if it covers zero."""
    return int(bounds[0] > 0) - int(bounds[1] < 0)


def _in_brackets(bounds: Interval | None, unit: Unit = "") -> str:
    shown = show_interval(bounds, unit)
    return f" (95% interval {shown})" if shown else ""


def _name(setting: Any) -> str:
    """What a block of the config is about: itself if it is text, its `name` or `path`, or the names in a list."""
    if isinstance(setting, str):
        return setting
    if isinstance(setting, Mapping):
        return next((setting[key] for key in ("name", "path") if isinstance(setting.get(key), str)), "")
    if isinstance(setting, list):
        return " + ".join(name for part in setting if (name := _name(part)))
    return ""

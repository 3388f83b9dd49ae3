"""What a run did, in plain and careful words, from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preftune.report.curves import points
from preftune.report.diagnosis import Symptom, symptoms
from preftune.report.next_steps import Advice, advice
from preftune.report.reading import RunData
from preftune.report.tables import Change, changes
from preftune.report.trained import has_reference, is_reward_model
from preftune.report.values import (
    Interval,
    Unit,
    around,
    interval,
    listed,
    mapping,
    name_of,
    number,
    show,
    show_change,
    show_duration,
    show_interval,
)


@dataclass(frozen=True)
class Verdict:
    """What a report begins with.

    Attributes:
        headline: in one sentence.
        paragraph: questions that a reader has, each with its answer; together they are one paragraph.
        next_steps: what to try next.
        notes: what the run noted.
    """

    headline: str
    paragraph: list[tuple[str, str]]
    next_steps: list[Advice]
    notes: list[str]


def verdict(run: RunData, running: bool = False) -> Verdict:
    """Judge a run by its summary; by its last evaluation where the summary is silent or missing.

    A difference is called one only where a 95% interval says so.

    Args:
        run: its files.
        running: True if it is known to go on.
    """
    found = changes(run)
    accuracy, reward, loss = (found.get(key) for key in ("preference_accuracy", "true_reward", "loss"))
    score = found.get("reward")
    better = [
        _judge_accuracy(accuracy, is_reward_model(run)) if accuracy else "",
        _judge_reward(reward, "true reward of sampled responses") if reward else "",
        _judge_reward(score, "score of its answers to held-out prompts, by the judge it learned from,")
        if score
        else "",
        _judge_wins(mapping(run.evaluation.get("win_rate")), run.evaluation),
        _judge_loss(loss) if loss and not accuracy else "",
    ]
    if not accuracy and not reward and not score and not loss:
        better.insert(0, "Nothing was measured on held-out data, so this report cannot say whether training helped.")
    answers = {
        "What was trained?": _what_was_done(run),
        "Did it get better?": " ".join(sentence for sentence in better if sentence),
        "What did it cost?": _judge_distance(run, found.get("kl")),
        "Is anything wrong?": _judge_symptoms(symptoms(run.history, run.summary)),
    }
    notes = run.summary.get("messages")
    return Verdict(
        headline="This run goes on; so far:" if running else _headline(run, accuracy, reward, score, loss),
        paragraph=[(question, answer) for question, answer in answers.items() if answer],
        next_steps=advice(run, found, running),
        notes=[str(note) for note in notes] if isinstance(notes, list) else [],
    )


def chance(bounds: Interval | None) -> str:
    """Where an interval of an accuracy lies: "above chance", "below chance" or "not distinguishable from chance"."""
    if bounds is None:
        return "not compared with chance, as no interval was recorded"
    if bounds[0] > 0.5:
        return "above chance"
    return "below chance" if bounds[1] < 0.5 else "not distinguishable from chance"


def _headline(
    run: RunData, accuracy: Change | None, reward: Change | None, score: Change | None, loss: Change | None
) -> str:
    if run.failure:
        return "This run stopped at a batch that broke it: failure.json in its folder has what is known."
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
    if not parts and score and score.before is not None and score.after is not None:
        parts.append(
            f"the score of its answers went from {show(score.before)} to {show(score.after)}{_solidity(score)}"
        )
    if parts:
        text = "; ".join(parts)
        return f"{text[0].upper()}{text[1:]}."
    if loss and loss.after is not None:
        return f"Held-out loss is {show(loss.after)} after training."
    return "Training has finished."


def _what_was_done(run: RunData) -> str:
    model, data = name_of(run.config.get("model")), name_of(run.config.get("data"))
    if is_reward_model(run):
        text = f"preftune trained a reward model from {model}" if model else "preftune trained a reward model"
    else:
        text = f"preftune trained the model {model}" if model else "preftune trained a model"
    records = number(mapping(run.manifest.get("records")).get("train"))
    amount = f"{records:,.0f} records of " if records is not None and data else ""
    text += f" on {amount}{'the data ' if not amount else ''}{data}" if data else ""
    objective = run.summary.get("objective") or name_of(run.config.get("objective"))
    if objective:
        given = run.config.get("objective")
        text += f" with the objective {objective}" + (_strength(given) if name_of(given) == objective else "")
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


def _strength(objective: Any) -> str:
    """How strongly an objective holds on to the reference, in brackets."""
    given = mapping(objective)
    said = [f"{key} {value:g}" for key in ("beta", "tau") if (value := number(given.get(key))) is not None]
    return f" ({', '.join(said)})" if said else ""


def _judge_accuracy(accuracy: Change, scores: bool) -> str:
    if accuracy.after is None:
        return ""
    who = (
        "The reward model scores the chosen response above the rejected one"
        if scores
        else "Held against its reference (the model before training, unless the config names another), the trained "
        "model favours the chosen response"
    )
    text = f"{who} in {show(accuracy.after, 'share')} of held-out pairs{_in_brackets(accuracy.after_interval, 'share')}"
    if accuracy.after_interval is None:
        text += "; no interval was recorded, so chance (50%) cannot be ruled out."
    else:
        text += f", which is {chance(accuracy.after_interval)} (50%)."
    if accuracy.before is None or accuracy.difference is None:
        return text
    change = f"a change of {show_change(accuracy.difference, 'share')}"
    if (
        accuracy.before == 0.5 and not scores
    ):  # all pairs are ties at the start: the change is as sure as the distance from chance
        return f"{text} Before training it was 50.0%, {change}."
    was = f"Before training it was {show(accuracy.before, 'share')}{_in_brackets(accuracy.before_interval, 'share')}"
    return f"{text} {was}, {change}{_solidity(accuracy)}."


def _judge_reward(reward: Change, what: str) -> str:
    if reward.after is None:
        return ""
    now = f"{show(reward.after)}{_in_brackets(reward.after_interval)}"
    if reward.before is None or reward.difference is None:
        return f"The {what} is {now}."
    was = f"{show(reward.before)}{_in_brackets(reward.before_interval)}"
    change = f"a change of {show_change(reward.difference)}{_solidity(reward)}"
    return f"The {what} went from {was} to {now}, {change}."


def _judge_loss(loss: Change) -> str:
    if loss.before is None or loss.after is None:
        return ""
    return f"Held-out loss went from {show(loss.before)} to {show(loss.after)}; lower is better."


def _judge_wins(win_rate: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    rate = number(win_rate.get("win_rate"))
    if rate is None:
        return ""
    bounds = interval(win_rate.get("win_rate_ci95"))
    side = mapping(mapping(evaluation.get("generation")).get("against"))
    against = side.get("model") or evaluation.get("against")  # an endpoint may have answered
    path = mapping(evaluation.get("data")).get("path")
    other = f"those of {against}" if isinstance(against, str) and against else "the other model's"
    other += f" on prompts of {path}" if evaluation.get("own_data") is False and isinstance(path, str) else ""
    text = (
        f"A judge prefers its answers to {other} in {show(rate, 'share')} of comparisons{_in_brackets(bounds, 'share')}"
    )
    controlled = number(win_rate.get("length_controlled"))
    if controlled is not None:
        ends = _in_brackets(interval(win_rate.get("length_controlled_ci95")), "share")
        text += f", {show(controlled, 'share')}{ends} once length is controlled for"
    if bounds is not None and bounds[0] <= 0.5 <= bounds[1]:
        text += ": this may as well be a draw"
    return f"{text}."


def _judge_distance(run: RunData, kl: Change | None) -> str:
    measured = mapping(mapping(run.own_evaluation.get("generation")).get("kl"))
    value, error = number(measured.get("per_response")), number(measured.get("per_response_se"))
    if value is None and kl is not None:
        value, error = kl.after, number(mapping(run.summary.get("after")).get("kl_se"))
    if value is None:
        return _roughly(run)
    bounds = around(value, error) if error else kl.after_interval if kl else None
    return (
        f"Its samples lie {show(value)} nats per response from {_start(run)}{_in_brackets(bounds)}: the KL divergence, "
        "which is 0 as long as nothing has changed, and grows with what is given up of the old model."
    )


def _roughly(run: RunData) -> str:
    """The distance as the training doctor has it, of the few answers that were sampled while the run went on."""
    sampled = points(run.history, "eval", "sample_kl")[1]
    if not sampled:
        return ""
    answers = number(mapping(run.config.get("doctor")).get("answers"))
    many = f"{answers:,.0f} answers" if answers and answers > 1 else "a few answers"
    return (
        f"Its KL divergence from {_start(run)} is about {show(sampled[-1])} nats per response: a rough figure from "
        f"{many}, without an interval, which may be off several times over; preftune evaluate measures it."
    )


def _start(run: RunData) -> str:
    """What a run is held against, which is no reference where the objective has none."""
    return "the reference" if has_reference(run) else "the model before training"


def _judge_symptoms(found: list[Symptom] | None) -> str:
    if found is None:
        return ""
    said = {
        severity: listed([_symptom(one) for one in found if one.stands and one.severity == severity])
        for severity in ("warning", "information")
    }
    text = (
        f"The training doctor warns of {said['warning']}" if said["warning"] else "The training doctor has no warning"
    )
    return text + (f"; for information, it notes {said['information']}." if said["information"] else ".")


def _symptom(one: Symptom) -> str:
    name = one.rule if one.rule[:2].isupper() else one.rule[:1].lower() + one.rule[1:]
    return f"{name} ({one.figure})" if one.figure else name


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

"""evaluation.json for people: intervals as ranges on one scale, the reliability curve, generation side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from preftune.report.drawing import HELD_OUT, TEXT, Cell, Panel, short
from preftune.report.values import (
    Interval,
    Unit,
    interval,
    mapping,
    number,
    rows,
    show,
    show_interval,
)


@dataclass(frozen=True)
class Range:
    """A share with its interval, drawn on a scale from 0% to 100%. The label may be a stranger's text.

    Attributes:
        label: what it is a share of.
        value: from 0 to 1.
        bounds: 95% interval; None if unknown.
        note: how much evidence there is, or what it means.
    """

    label: str
    value: float
    bounds: Interval | None
    note: str = ""
    main: bool = False

    @property
    def shown(self) -> str:
        """The share as text."""
        return show(self.value, "share")

    @property
    def shown_bounds(self) -> str:
        """Its interval as text."""
        return show_interval(self.bounds, "share")

    @property
    def left(self) -> float:
        """Where the interval begins on the scale, in percent."""
        return _percent(self.bounds[0] if self.bounds else self.value)

    @property
    def width(self) -> float:
        """How wide the interval is, in percent."""
        return round(_percent(self.bounds[1]) - self.left, 2) if self.bounds else 0.0

    @property
    def at(self) -> float:
        """Where the share lies, in percent."""
        return _percent(self.value)


@dataclass(frozen=True)
class Row:
    """A figure of two models."""

    label: str
    meaning: str
    policy: str
    policy_interval: str
    against: str
    against_interval: str


@dataclass(frozen=True)
class HeldOut:
    """What evaluation.json says, part by part; a part that is not there is empty.

    Attributes:
        about: what was held against what, on how much data, when.
        command: that made it.
        compared: accuracies beside their baselines.
        by_length, by_source: accuracy by bucket and by source.
        reliability: the reliability curve.
        calibration: what it says, in sentences.
        scores: what a reward model's scores are like, in sentences.
        generation: figures of sampled answers of both models.
        kl: the distance to the reference, and from what answers were chosen, in sentences.
        win_rate: raw and length-controlled.
        wins, ties, losses: shares of the comparisons.
        judged: how the judge was asked and how good it is, in sentences.
    """

    about: str
    command: str
    compared: Sequence[Range]
    by_length: Sequence[Range]
    by_source: Sequence[Range]
    reliability: Panel | None
    calibration: Sequence[str]
    scores: Sequence[str]
    generation: Sequence[Row]
    kl: str
    win_rate: Sequence[Range]
    wins: Sequence[tuple[str, str, float]]
    judged: Sequence[str]


def held_out(evaluation: dict[str, Any]) -> HeldOut | None:
    """What `preftune evaluate` found, or None if it has not been run; whatever is malformed is left out."""
    if not evaluation:
        return None
    generation = mapping(evaluation.get("generation"))
    win_rate = mapping(evaluation.get("win_rate"))
    calibration = mapping(evaluation.get("calibration"))
    return HeldOut(
        about=_about(evaluation),
        command=evaluation["command"] if isinstance(evaluation.get("command"), str) else "",
        compared=_compared(evaluation),
        by_length=_slices(evaluation.get("by_length"), "bucket"),
        by_source=_slices(evaluation.get("by_source"), "source"),
        reliability=_reliability(calibration),
        calibration=_calibration(calibration),
        scores=_scores(mapping(evaluation.get("scores"))),
        generation=_generation(generation),
        kl=" ".join([*filter(None, [_kl(mapping(generation.get("kl")), _other(evaluation))]), *_chosen(generation)]),
        win_rate=_win_rate(win_rate),
        wins=_outcomes(win_rate),
        judged=_judged(win_rate),
    )


def _about(evaluation: dict[str, Any]) -> str:
    data = mapping(evaluation.get("data"))
    pairs, prompts = number(data.get("pairs")), number(data.get("prompts"))
    model, against, path = (
        value if isinstance(value, str) else ""
        for value in (evaluation.get("model"), evaluation.get("against"), data.get("path"))
    )
    text = f"The trained model {model}" if model else "The trained model"
    text += f" against {against}" if against else ""
    amount = [f"{count:,.0f} {what}" for count, what in ((pairs, "pairs"), (prompts, "prompts")) if count is not None]
    text += f", on {' and '.join(amount)}" if amount else ""
    text += f" of {path}" if path else ""
    return f"{text}."


def _compared(evaluation: dict[str, Any]) -> list[Range]:
    pairs, baselines = mapping(evaluation.get("pairs")), mapping(evaluation.get("baselines"))
    reference, longer = mapping(baselines.get("reference")), mapping(baselines.get("longer"))
    if "against" not in evaluation and "policy_accuracy" not in pairs:  # only scores tell responses apart on their own
        label, note = "Reward model", "chosen is scored above rejected"
    else:
        label, note = f"Trained model against {_other(evaluation, 'its')}", "chosen gained more than rejected"
    found = [
        _range(label, pairs, "accuracy", note, main=True),
        _range("Trained model alone", pairs, "policy_accuracy", "chosen is likelier than rejected"),
        _range(f"Baseline: {_other(evaluation, '')} alone", reference, "accuracy", "by its own log-probabilities"),
        _range("Baseline: the longer response", longer, "accuracy", "no model at all"),
    ]
    return [each for each in found if each is not None]


def _slices(value: Any, key: str) -> list[Range]:
    found = []
    for row in rows(value):
        pairs = number(row.get("pairs"))
        margin = number(row.get("margin"))
        notes = [f"{pairs:,.0f} {'pair' if pairs == 1 else 'pairs'}"] if pairs is not None else []
        notes += [f"margin {show(margin)}"] if margin is not None else []
        label = row.get(key)
        one = _range(str(label) if isinstance(label, str | int | float) else "", row, "accuracy", ", ".join(notes))
        found += [one] if one is not None else []
    return found


def _reliability(calibration: dict[str, Any]) -> Panel | None:
    points = []
    for row in rows(calibration.get("bins")):
        confidence, accuracy, pairs = (number(row.get(key)) for key in ("confidence", "accuracy", "pairs"))
        if confidence is not None and accuracy is not None:
            points.append((confidence, accuracy, interval(row.get("ci95")), pairs or 0.0))
    if not points:
        return None
    points.sort(key=lambda point: point[0])
    most = max(1.0, *(pairs for *_, pairs in points))
    bounds = [ends or (accuracy, accuracy) for _, accuracy, ends, _ in points]
    lowest = min(0.5, *(confidence for confidence, *_ in points))
    curve = go.Scatter(
        x=[short(confidence) for confidence, *_ in points],
        y=[short(accuracy) for _, accuracy, *_ in points],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [short(max(0.0, high - p[1])) for (_, high), p in zip(bounds, points, strict=True)],
            "arrayminus": [short(max(0.0, p[1] - low)) for (low, _), p in zip(bounds, points, strict=True)],
            "color": HELD_OUT,
            "thickness": 1.4,
            "width": 3,
        },
        customdata=[pairs for *_, pairs in points],
        name="pairs in this bin",
        mode="lines+markers",
        line={"color": HELD_OUT, "width": 2},
        marker={"size": [round(7 + 9 * (max(0.0, pairs) / most) ** 0.5, 1) for *_, pairs in points]},
        hovertemplate="right in %{y:.1%} of %{customdata:,} pairs<extra></extra>",
    )
    perfect = go.Scatter(
        x=[lowest, 1],
        y=[lowest, 1],
        name="perfectly calibrated",
        mode="lines",
        line={"color": TEXT, "width": 1.2, "dash": "dash"},
        hoverinfo="skip",
    )
    return Panel(
        "reliability",
        "Reliability",
        "Pairs sorted by how sure the model is of its choice (x), against how often it is right (y), with 95% "
        "intervals; larger dots hold more pairs. Below the dashed line it is surer than it should be.",
        (Cell("share that is right", [perfect, curve], y_format=".0%"),),
        x_title="stated confidence",
        x_format=".0%",
    )


def _calibration(calibration: dict[str, Any]) -> list[str]:
    ece, temperature = number(calibration.get("ece")), number(calibration.get("temperature"))
    after = number(calibration.get("ece_with_temperature"))
    said = []
    if ece is not None:
        said.append(
            f"Stated confidence and accuracy differ by {show(ece, 'share')} on average (expected calibration error"
            f"{_in_brackets(interval(calibration.get('ece_ci95')), 'share', ', ')})."
        )
    if temperature is not None:
        way = "overconfident" if temperature > 1 else "underconfident" if temperature < 1 else "as sure as it should be"
        said.append(
            f"A temperature of {show(temperature)} fits best, so as it stands the model is {way}"
            + (f"; with that temperature the error is {show(after, 'share')}." if after is not None else ".")
        )
    return said


def _scores(scores: dict[str, Any]) -> list[str]:
    """Level, spread and length bias of a reward model's scores."""
    mean, sd, chosen, rejected = (number(scores.get(key)) for key in ("mean", "sd", "chosen", "rejected"))
    said = []
    if mean is not None and sd is not None:
        sides = f" ({show(chosen)} of chosen responses, {show(rejected)} of rejected ones)"
        said.append(
            f"Scores average {show(mean)}{sides if chosen is not None and rejected is not None else ''} and spread by "
            f"{show(sd)} (standard deviation). Only differences mean anything, unless training was centred."
        )
    prefers, better = number(scores.get("prefers_longer")), number(scores.get("longer_is_better"))
    if prefers is not None and better is not None:
        bounds = _in_brackets(interval(scores.get("prefers_longer_ci95")), "share")
        correlation = number(scores.get("length_correlation"))
        also = "" if correlation is None else f" Score and length correlate by {show(correlation)} within pairs."
        said.append(
            f"Of pairs of unequal length it prefers the longer response in {show(prefers, 'share')}{bounds}; that is "
            f"the chosen one in {show(better, 'share')}.{also}"
        )
    return said


GENERATION: tuple[tuple[str, str, str, Unit], ...] = (
    ("mean_length", "Mean length", "Tokens per answer.", "tokens"),
    ("end_rate", "Ends by itself", "Share of answers that end before the length limit.", "share"),
    ("repetition", "Repetition", "Share of an answer that repeats what it said before.", "share"),
    ("distinct_1", "Distinct words", "Different words over all words; low values mean monotony.", "share"),
    ("distinct_2", "Distinct pairs of words", "The same of neighbouring words.", "share"),
)


def _generation(generation: dict[str, Any]) -> list[Row]:
    policy, against = mapping(generation.get("policy")), mapping(generation.get("against"))
    found = []
    for key, label, meaning, unit in GENERATION:
        values = number(policy.get(key)), number(against.get(key))
        if values == (None, None):
            continue
        bounds = [show_interval(interval(side.get(f"{key}_ci95")), unit) for side in (policy, against)]
        found.append(Row(label, meaning, show(values[0], unit), bounds[0], show(values[1], unit), bounds[1]))
    return found


def _other(evaluation: dict[str, Any], article: str = "the") -> str:
    """What the model was held against: its reference, or the name of another."""
    against = evaluation.get("against")
    if evaluation.get("own_reference") is False and isinstance(against, str) and against:
        return against
    return f"{article} reference".strip()


def _kl(kl: dict[str, Any], other: str) -> str:
    whole, per_token = number(kl.get("per_response")), number(kl.get("per_token"))
    if whole is None:
        return ""
    amount = _plus_minus(whole, kl.get("per_response_se"))
    text = f"KL divergence from {other}, on its own samples: {amount} nats per response"
    if per_token is not None:
        text += f", {_plus_minus(per_token, kl.get('per_token_se'))} nats per token"
    return f"{text} (± one standard error)."


def _chosen(generation: dict[str, Any]) -> list[str]:
    """From what the answers of a side were chosen, where they are the best of several."""
    said = []
    for side, words in (("policy", "The model's answers are"), ("against", "The other side's answers are")):
        found = mapping(mapping(generation.get(side)).get("best_of"))
        count, bound, score, before = (number(found.get(key)) for key in ("n", "kl_bound", "score", "score_of_all"))
        if None in (count, bound, score, before):
            continue
        judge = f" by {found['judge']}" if isinstance(found.get("judge"), str) else ""
        said.append(
            f"{words} the best of {count:,.0f}{judge}: its mean score rises from {show(before)} to {show(score)}, at "
            f"most {show(bound)} nats per response away from the model that was sampled."
        )
    return said


def _win_rate(win_rate: dict[str, Any]) -> list[Range]:
    found = [
        _range("Win rate", win_rate, "win_rate", "ties count one half", main=True),
        _range("Length-controlled", win_rate, "length_controlled", "as if both answers were of one length"),
    ]
    return [each for each in found if each is not None]


def _outcomes(win_rate: dict[str, Any]) -> list[tuple[str, str, float]]:
    counts = [(name, number(win_rate.get(name)) or 0.0) for name in ("wins", "ties", "losses")]
    total = sum(max(0.0, count) for _, count in counts)
    return [(name, f"{count:,.0f}", round(100 * max(0.0, count) / total, 2)) for name, count in counts] if total else []


def _judged(win_rate: dict[str, Any]) -> list[str]:
    if not win_rate:
        return []
    comparisons, prompts = number(win_rate.get("comparisons")), number(win_rate.get("prompts"))
    judge, check = win_rate.get("judge"), mapping(win_rate.get("judge_check"))
    flipped, unanswered = number(win_rate.get("flipped")), number(win_rate.get("unanswered"))
    said = [f"Judge: {judge}." if isinstance(judge, str) and judge else ""]
    if comparisons is not None:
        said.append(
            f"{comparisons:,.0f} comparisons" + (f" on {prompts:,.0f} prompts." if prompts is not None else ".")
        )
    if flipped is not None:
        said.append(f"{show(flipped, 'share')} of the verdicts flipped when the order of the answers was swapped.")
    if unanswered:
        said.append(f"{unanswered:,.0f} comparisons got no verdict.")
    if (why := win_rate.get("not_controlled")) and isinstance(why, str):
        said.append(f"No length-controlled rate is given: {why}.")
    agreement, pairs = number(check.get("agreement")), number(check.get("pairs"))
    if agreement is not None:
        known = f" {pairs:,.0f}" if pairs is not None else ""
        said.append(
            f"On{known} pairs whose better answer is known, the judge is right in {show(agreement, 'share')}"
            f"{_in_brackets(interval(check.get('agreement_ci95')), 'share')}."
        )
    return [sentence for sentence in said if sentence]


def _range(label: str, values: dict[str, Any], key: str, note: str, main: bool = False) -> Range | None:
    value = number(values.get(key))
    return None if value is None else Range(label, value, interval(values.get(f"{key}_ci95")), note, main)


def _in_brackets(bounds: Interval | None, unit: Unit, start: str = " (") -> str:
    shown = show_interval(bounds, unit)
    return f"{start}95% interval {shown}{')' if start == ' (' else ''}" if shown else ""


def _plus_minus(value: float, error: Any) -> str:
    se = number(error)
    return show(value) if se is None else f"{show(value)} ± {show(se)}"


def _percent(share: float) -> float:
    return round(100 * min(1.0, max(0.0, share)), 2)

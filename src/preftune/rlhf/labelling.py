"""From scored answers to examples of the kind that an objective learns from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from preftune.data.examples import Example
from preftune.errors import PreftuneError
from preftune.evaluation.judges.base import Comparison, Judge, ScoringJudge, check_some, finite
from preftune.objectives.base import DataKind
from preftune.objectives.batch import Role
from preftune.rlhf.config import OnlineConfig
from preftune.rlhf.plan import Asked
from preftune.rlhf.rollouts import Rollout, Scored

COMPARED = 2  # answers that a judge compares at a time
BY_SCORE = ("rollouts", "rankings")


def check_judge(judge: Judge, kind: DataKind, config: OnlineConfig) -> None:
    """Refuse a judge that cannot give what an objective learns from.

    Raises:
        PreftuneError: says what to change.
    """
    if config.samples < COMPARED and kind not in ("rollouts", "demonstrations"):
        raise PreftuneError(
            f"online.samples={config.samples}, but the objective learns from what answers to one prompt are worth "
            "beside each other: set it to 2 or more"
        )
    if isinstance(judge, ScoringJudge):
        return
    if config.unfinished:
        raise PreftuneError(
            f"online.unfinished={config.unfinished:g} is taken off scores, and judge {config.judge} gives none: leave "
            "it out, or name a judge that scores"
        )
    if kind in BY_SCORE or config.labels != "hard":
        wants = "online.labels=" + config.labels if config.labels != "hard" else "the objective"
        raise PreftuneError(
            f"judge {config.judge} compares answers and gives no scores, which {wants} needs: name a judge that scores "
            "(a function of one response, reward:RUN), or take an objective on pairs"
        )
    if config.samples != COMPARED:
        raise PreftuneError(
            f"judge {config.judge} compares two answers at a time, but online.samples={config.samples}: set it to 2"
        )


def judged(
    judge: Judge,
    asked: Sequence[Asked],
    texts: Sequence[Sequence[str]],
    ended: Sequence[Sequence[bool]],
    unfinished: float,
) -> list[Scored]:
    """Scores of the answers to each prompt.

    Args:
        judge: who scores or compares.
        asked: the prompts.
        texts: answers to each.
        ended: True for those that reached an end token.
        unfinished: taken off the score of the others.

    Raises:
        PreftuneError: if the judge fails, gives what is no number, or says nothing at all.
    """
    comparisons = [
        Comparison(f"answer {k} to row {one.row}", one.text, text, text, one.fields)
        for one, group in zip(asked, texts, strict=True)
        for k, text in enumerate(group)
    ]
    if not isinstance(judge, ScoringJudge):
        return _compared(judge, asked, texts)
    found = judge.scores([(one, one.a) for one in comparisons])
    flat = [
        None if score is None else finite(score, judge.name, one.key)
        for score, one in zip(found, comparisons, strict=True)
    ]
    if all(score is None for score in flat):
        raise PreftuneError(
            f"judge {judge.name} gave no score on any of {len(flat)} answers: it cannot be learned from"
        )
    scores = iter(flat)
    return [
        [None if (score := next(scores)) is None else score - (0.0 if over else unfinished) for over in group]
        for group in ended
    ]


def _compared(judge: Judge, asked: Sequence[Asked], texts: Sequence[Sequence[str]]) -> list[Scored]:
    """1 for the better of two answers and 0 for the other, by a judge that compares; equal ones are no question."""
    wanted = [
        (number, Comparison(f"answers to row {one.row}", one.text, group[0], group[1], one.fields))
        for number, (one, group) in enumerate(zip(asked, texts, strict=True))
        if group[0] != group[1]
    ]
    verdicts = judge.verdicts([comparison for _, comparison in wanted])
    check_some(verdicts, [comparison for _, comparison in wanted], judge.name)
    found: list[Scored] = [(0.5, 0.5)] * len(asked)
    for (number, _), verdict in zip(wanted, verdicts, strict=True):
        for_a = verdict.preference
        found[number] = (None, None) if for_a is None else (for_a, 1 - for_a)
    return found


def examples_of(
    rollouts: Sequence[Rollout], kind: DataKind, config: OnlineConfig, random: np.random.Generator
) -> list[Example]:
    """What is learned from the answers to each prompt; where they tell nothing, an example of weight 0.

    Args:
        rollouts: answers with scores.
        kind: of examples.
        config: how pairs are labelled.
        random: draws labels, if they are drawn.
    """
    make = _MAKERS[kind]
    return [one for rollout in rollouts for one in make(rollout, config, random)]


def _as_they_are(rollout: Rollout, config: OnlineConfig, random: np.random.Generator) -> list[Example]:
    return [rollout.example]


def _ranking(rollout: Rollout, config: OnlineConfig, random: np.random.Generator) -> list[Example]:
    return [replace(rollout.example, weight=_weight(rollout))]


def _pair(rollout: Rollout, config: OnlineConfig, random: np.random.Generator) -> list[Example]:
    """The best answer and the worst, in the order that the label says."""
    responses = rollout.example.responses
    scores = np.array([response.score for response in responses])
    best, worst = int(scores.argmax()), len(scores) - 1 - int(scores[::-1].argmin())
    if best == worst:  # all alike
        best, worst = 0, 1
    gap, confidence, draw = float(scores[best] - scores[worst]), 1.0, random.random()
    if config.labels != "hard":
        p = 1 / (1 + math.exp(-min(config.label_scale * gap, 700.0)))
        if config.labels == "soft":
            confidence = p
        elif draw >= p:
            best, worst = worst, best
    two = (replace(responses[best], role=Role.CHOSEN), replace(responses[worst], role=Role.REJECTED))
    weight = rollout.example.weight if config.labels != "hard" else _weight(rollout)
    if (two[0].ids.tobytes()) == (two[1].ids.tobytes()):  # the same words twice: nothing to prefer
        weight = 0.0
    return [replace(rollout.example, responses=two, confidence=confidence, gap=gap, weight=weight)]


def _labels(rollout: Rollout, config: OnlineConfig, random: np.random.Generator) -> list[Example]:
    """Each answer by itself: good if it is above the mean of its prompt."""
    responses = rollout.example.responses
    mean = float(np.mean([response.score for response in responses]))
    return [
        replace(
            rollout.example,
            responses=(replace(one, role=Role.LABELLED, score=float(one.score > mean)),),
            weight=rollout.example.weight if one.score != mean else 0.0,
        )
        for one in responses
    ]


def _best(rollout: Rollout, config: OnlineConfig, random: np.random.Generator) -> list[Example]:
    """The best answer, to be imitated."""
    best = max(rollout.example.responses, key=lambda response: response.score)
    return [replace(rollout.example, responses=(replace(best, role=Role.CHOSEN),))]


def _weight(rollout: Rollout) -> float:
    """0 where all answers are worth the same."""
    scores = {response.score for response in rollout.example.responses}
    return rollout.example.weight if len(scores) > 1 else 0.0


_MAKERS: dict[DataKind, Callable[[Rollout, OnlineConfig, np.random.Generator], list[Example]]] = {
    "rollouts": _as_they_are,
    "rankings": _ranking,
    "pairs": _pair,
    "labels": _labels,
    "demonstrations": _best,
}

"""What a finished run of a sweep is worth: its held-out figures, answers and KL, as a point of the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preftune.errors import PreftuneError
from preftune.evaluation.evaluate import Evaluated, evaluate
from preftune.evaluation.intervals import mean_interval, numbered
from preftune.evaluation.judges import EndpointUse, ScoringJudge, open_judge
from preftune.evaluation.winning import Judging, comparisons
from preftune.report.reading import read
from preftune.report.values import around
from preftune.sweeping.frontier import INDIFFERENT, Interval, Kind, Point

CHECKS = 64  # held-out pairs that a judge is scored on, once in a sweep


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How runs are measured.

    Attributes:
        kind: what is to be high.
        judge: who compares answers (win_rate) or scores them (reward); None for accuracy.
        rubric: for a judge behind an endpoint.
        max_calls: most calls to such an endpoint, in each run.
        prompts: held-out prompts that are answered.
        samples_per_prompt: answers to each.
        seed: of the answers.
    """

    kind: Kind
    judge: str | None = None
    rubric: str | None = None
    max_calls: int = 10_000
    prompts: int = 64
    samples_per_prompt: int = 1
    seed: int = 0

    def check(self) -> None:
        """Refuse a judge that is none, before anything trains.

        Raises:
            PreftuneError: says why.
        """
        if self.judge is not None:
            rubric = None if self.rubric is None else Path(self.rubric)
            with open_judge(self.judge, rubric=rubric, use=self._use) as judge:
                if self.kind == "reward" and not isinstance(judge, ScoringJudge):
                    raise PreftuneError(
                        f"{self.judge} compares answers and gives them no score: name it with --judge, or a judge that "
                        "scores (sandbox, gsm8k, reward:RUN, a function of one answer)"
                    )

    def asked(self) -> dict[str, Any]:
        """What a measurement follows from, for finding it again."""
        return asdict(self)

    @property
    def _use(self) -> EndpointUse:
        return EndpointUse(max_calls=self.max_calls)

    def judging(self, checks: bool) -> Judging | None:
        """Who compares the answers of a run."""
        if self.kind != "win_rate" or self.judge is None:
            return None
        rubric = None if self.rubric is None else Path(self.rubric)
        return Judging(judge=self.judge, checks=CHECKS if checks else 0, rubric=rubric, use=self._use)


def measure(run: Path, name: str, settings: Mapping[str, str], how: Measure, checks: bool = False) -> Point:
    """Measure a finished run.

    Args:
        run: its folder, to which the evaluation is written as well.
        name: of the point.
        settings: the swept keys that it has.
        how: by what.
        checks: score the judge itself, too.

    Raises:
        PreftuneError: if the run cannot be evaluated, or the judge fails.
    """
    done = evaluate(
        run,
        prompts=how.prompts,
        samples_per_prompt=how.samples_per_prompt,
        seed=how.seed,
        judging=how.judging(checks),
        quiet=True,
    )
    figures, summary = done.figures, read(run).summary
    value = _value(done, how)
    kl = figures["generation"].get("kl", {})
    error = kl.get("per_response_se")
    if kl.get("per_response") is None:
        raise PreftuneError(f"{run} has no KL to its reference, without which it has no place on a frontier")
    pairs, answers = figures.get("pairs", {}), figures["generation"]["policy"]
    return Point(
        name=name,
        settings=settings,
        folder=f"runs/{run.name}",
        **value,
        kl=kl["per_response"],
        kl_ci95=None if error is None else around(kl["per_response"], error),
        figures={
            "accuracy": pairs.get("accuracy"),
            "accuracy_ci95": pairs.get("accuracy_ci95"),
            "mean_length": answers["mean_length"],
            "end_rate": answers["end_rate"],
            "learning_rate": summary.get("learning_rate"),
            "steps": summary.get("steps"),
            "seconds": summary.get("seconds"),
            **({"judge_check": check} if (check := figures.get("win_rate", {}).get("judge_check")) else {}),
        },
    )


def _value(done: Evaluated, how: Measure) -> dict[str, Any]:
    """What is to be high, and what the reference has: fields of a point."""
    if how.kind == "reward":
        return _rewards(done, how)
    block, key = ("win_rate", "win_rate") if how.kind == "win_rate" else ("pairs", "accuracy")
    found = done.figures.get(block, {})
    if found.get(key) is None:
        raise PreftuneError(
            f"{done.opened.name} held no pairs out, so it has no preference accuracy: measure its answers with --judge "
            "or --reward"
        )
    return {"value": found[key], "ci95": _pair(found[f"{key}_ci95"]), "reference": INDIFFERENT}


def _rewards(done: Evaluated, how: Measure) -> dict[str, Any]:
    """Mean score of the policy's answers, and of the reference's."""
    made = done.generated
    if made is None or made.against is None or how.judge is None:
        raise PreftuneError(f"{done.opened.name} wrote no answers to score")
    both = comparisons(done.opened, made.prompts, made.policy, made.against)
    with open_judge(how.judge) as judge:
        assert isinstance(judge, ScoringJudge)  # see `Measure.check`
        verdicts = judge.verdicts(both)
    scores = [verdict.scores for verdict in verdicts if len(verdict.scores) == 2]
    if not scores:
        raise PreftuneError(f"judge {how.judge} gave no score on any answer of {done.opened.name}")
    number = np.repeat(np.arange(len(made.prompts)), how.samples_per_prompt)
    groups = numbered(number[[len(verdict.scores) == 2 for verdict in verdicts]].tolist())
    ours, theirs = np.array(scores).T
    return {
        "value": float(ours.mean()),
        "ci95": mean_interval(ours, groups),
        "reference": float(theirs.mean()),
        "reference_ci95": mean_interval(theirs, groups),
        "gain_ci95": mean_interval(ours - theirs, groups),
    }


def as_json(point: Point) -> dict[str, Any]:
    """A point as sweep.json holds it."""
    return asdict(point)


def from_json(values: Mapping[str, Any]) -> Point:
    """A point as `as_json` gave it."""
    pairs = {key: _pair(values.get(key)) for key in ("ci95", "kl_ci95", "reference_ci95", "gain_ci95")}
    return Point(**{**values, **pairs})


def _pair(value: Sequence[float] | None) -> Interval | None:
    return None if value is None else (float(value[0]), float(value[1]))

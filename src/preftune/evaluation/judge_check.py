"""What a judge is worth: agreement with labels or a known truth, and what misleads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from preftune.errors import PreftuneError
from preftune.evaluation.bootstrap import interval95
from preftune.evaluation.intervals import accuracy_interval
from preftune.evaluation.judges.base import Comparison, Judge, Verdict
from preftune.evaluation.win_rate import Interval, Progress, judged

LABELS = "labels"


@dataclass(frozen=True)
class Share:
    """A share with its 95% interval, and of how many.

    Attributes:
        value: the share, ties counting half.
        ci95: Wilson's interval, prompts being the independent draws.
        of: how many.
    """

    value: float
    ci95: Interval
    of: int


@dataclass(frozen=True)
class JudgeCheck:
    """How a judge did on pairs whose better answer is known.

    Attributes:
        judge: its name.
        truth: what it was held against: "labels", or the judge that knows.
        pairs: with a known better answer and a verdict.
        agreement: share in which it preferred the better answer.
        agreement_ci95: its 95% interval.
        ties: share of ties, orders that disagree included.
        flipped: share of verdicts that change with the order; 0 for judges that score answers apart.
        unanswered: pairs without a verdict.
        undecided: pairs without a known better answer.
        for_first: how often it preferred the answer shown first; 0.5 is right. None for judges that score apart.
        for_longer: how often it preferred the longer answer, of what it decided.
        better_is_longer: how often the longer answer is the better one there.
        length_bias: the difference of these two: above 0, it likes long answers more than it should.
        length_bias_ci95: its 95% interval, a bootstrap over prompts.
        where_longer: agreement where the better answer is the longer one.
        where_shorter: agreement where it is the shorter one.
    """

    judge: str
    truth: str
    pairs: int
    agreement: float
    agreement_ci95: Interval
    ties: float
    flipped: float
    unanswered: int
    undecided: int
    for_first: Share | None
    for_longer: Share | None
    better_is_longer: Share | None
    length_bias: float | None
    length_bias_ci95: Interval | None
    where_longer: Share | None
    where_shorter: Share | None

    def brief(self) -> dict[str, Any]:
        """The figures that stand beside a win rate."""
        interval = list(self.agreement_ci95)
        return {
            "pairs": self.pairs,
            "agreement": self.agreement,
            "agreement_ci95": interval,
            "flipped": self.flipped,
            "truth": self.truth,
        }

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def check_judge(
    pairs: Sequence[Comparison],
    judge: Judge,
    truth: Judge | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> JudgeCheck:
    """Score a judge itself.

    Args:
        pairs: comparisons in which `a` is the answer labelled better.
        judge: whom to score; the caller closes it.
        truth: a judge that knows, whose verdicts count instead of the labels; its ties are left out.
        seed: of the bootstrap.
        progress: told how many of how many are judged.

    Raises:
        PreftuneError: if a judge fails or gives no verdict, or the truth prefers no answer at all.
    """
    if not pairs:
        raise PreftuneError("there is nothing to judge: 0 pairs")
    known = [1.0] * len(pairs) if truth is None else [v.preference for v in judged(pairs, truth)]
    decided = [(pair, better) for pair, better in zip(pairs, known, strict=True) if better in (0.0, 1.0)]
    if truth is not None and not decided:
        raise PreftuneError(f"{truth.name} finds neither answer better in any of {len(pairs)} pairs: name another")
    asked = [pair for pair, _ in decided]
    found = [
        (pair, better, verdict)
        for (pair, better), verdict in zip(decided, judged(asked, judge, progress), strict=True)
        if verdict.preference is not None
    ]
    right_N = np.array([1 - abs(float(better or 0) - _preference(verdict)) for _, better, verdict in found])
    prompts = [pair.prompt for pair, _, _ in found]
    orders = [verdict for _, _, verdict in found if verdict.orders]
    agreement = _share(right_N, prompts)
    return JudgeCheck(
        judge=judge.name,
        truth=LABELS if truth is None else truth.name,
        pairs=len(found),
        agreement=agreement.value,
        agreement_ci95=agreement.ci95,
        ties=float(np.mean([verdict.preference == 0.5 for _, _, verdict in found])),
        flipped=float(np.mean([verdict.flips for verdict in orders])) if orders else 0.0,
        unanswered=len(decided) - len(found),
        undecided=len(pairs) - len(decided),
        for_first=_for_first(found),
        **_by_length(found, right_N, seed),
    )


Found = Sequence[tuple[Comparison, float | None, Verdict]]


def _preference(verdict: Verdict) -> float:
    return 0.5 if verdict.preference is None else verdict.preference


def _for_first(found: Found) -> Share | None:
    """How often the answer shown first was preferred, over both orders."""
    scores, prompts = [], []
    for pair, _, verdict in found:
        if len(verdict.orders) == 2:
            first, second = verdict.orders
            for value in (first, None if second is None else 1 - second):  # with b first, 0 for a is a word for b
                if value is not None and value != 0.5:
                    scores.append(value)
                    prompts.append(pair.prompt)
    return _share(np.array(scores), prompts) if scores else None


def _by_length(found: Found, right_N: np.ndarray, seed: int) -> dict[str, Any]:
    """What length has to do with it."""
    longer_N = np.array([np.sign(len(pair.a.strip()) - len(pair.b.strip())) for pair, _, _ in found])
    better_N = np.array([1.0 if better == 1.0 else -1.0 for _, better, _ in found])
    prefers_N = np.array([2 * _preference(verdict) - 1 for _, _, verdict in found])
    prompts = [pair.prompt for pair, _, _ in found]

    def share(values_N: np.ndarray, where_N: np.ndarray) -> Share | None:
        chosen = np.flatnonzero(where_N)
        return _share(values_N[chosen], [prompts[i] for i in chosen]) if len(chosen) else None

    decided_N = (longer_N != 0) & (prefers_N != 0)
    for_longer_N, is_longer_N = (prefers_N == longer_N).astype(float), (better_N == longer_N).astype(float)
    bias, interval = None, None
    if decided_N.any():
        rows = np.flatnonzero(decided_N)
        excess_N = for_longer_N[rows] - is_longer_N[rows]
        own = [prompts[i] for i in rows]
        bias = float(excess_N.mean())
        if len(set(own)) > 1:
            interval = interval95(lambda weight_RN: weight_RN @ excess_N / weight_RN.sum(1), own, seed)
    return {
        "for_longer": share(for_longer_N, decided_N),
        "better_is_longer": share(is_longer_N, decided_N),
        "length_bias": bias,
        "length_bias_ci95": interval,
        "where_longer": share(right_N, (longer_N != 0) & (is_longer_N == 1)),
        "where_shorter": share(right_N, (longer_N != 0) & (is_longer_N == 0)),
    }


def _share(values: np.ndarray, prompts: Sequence[str]) -> Share:
    return Share(float(values.mean()), accuracy_interval(values, prompts), len(values))

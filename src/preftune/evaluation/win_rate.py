"""How often one model's answers beat another's, by a judge: intervals, length control, flips.

rate = win_rate(comparisons, open_judge("sandbox"))
rate.win_rate, rate.win_rate_ci95
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.errors import PreftuneError
from preftune.evaluation import logistic
from preftune.evaluation.bootstrap import RESAMPLES, Floats, Statistic, interval95
from preftune.evaluation.intervals import paired_interval, wilson
from preftune.evaluation.judges.base import Comparison, Judge, Verdict, check_some

if TYPE_CHECKING:
    from preftune.evaluation.judge_check import JudgeCheck

__all__ = ["Comparison", "WinRate", "win_rate"]

# Wins, and losses, from which on a length-controlled rate is given. Simulated on 8 to 64 prompts, up to 70% ties,
# answers up to 1.5 standard deviations longer, log-odds that rise by 0, 1 or 3 with each: the interval holds the true
# rate in 82% of evaluations without a loss (or a win), in 93% with 1 or 2, in 93 to 96% from 5 on; below 5 it is 0.4
# to 0.5 wide, since one or two answers decide the slope. (Log-odds that rise by 3 to 5 have 86 to 91%, with 15 losses
# as with 5: more of them is no cure for that.)
FEWEST = 5
Interval = tuple[float, float]
Progress = Callable[[int, int], object]  # how many of how many are judged


@dataclass(frozen=True)
class WinRate:
    """What came of comparisons of a with b.

    Attributes:
        judge: its name.
        comparisons: how many were judged, those without a verdict included.
        prompts: different prompts among those with a verdict.
        win_rate: share of a's wins, ties counting half.
        win_rate_ci95: its 95% interval; prompts are the draws.
        length_controlled: the same at equal lengths, by logistic regression on the difference of lengths; None where
            few comparisons are won, or lost.
        length_controlled_ci95: its 95% interval, from the same resamples; None likewise.
        not_controlled: why there is no such rate; None if there is.
        wins: comparisons in which a is better.
        ties: in which neither is, or the judge's two orders disagree.
        losses: in which b is better.
        flipped: share of verdicts that change with the order in which the answers are shown; 0 for judges that score
            answers apart.
        unanswered: comparisons without a verdict, which are in no share.
        length_ratio: mean length of a's answers, in characters, over that of b's.
        judge_check: what the judge itself is worth, if that was measured.
    """

    judge: str
    comparisons: int
    prompts: int
    win_rate: float
    win_rate_ci95: Interval
    length_controlled: float | None
    length_controlled_ci95: Interval | None
    not_controlled: str | None
    wins: int
    ties: int
    losses: int
    flipped: float
    unanswered: int
    length_ratio: float
    judge_check: JudgeCheck | None = None

    def as_json(self) -> dict[str, Any]:
        """As evaluation.json holds it; of the check of the judge, the figures that matter most."""
        check = None if self.judge_check is None else self.judge_check.brief()
        return {**asdict(self), "judge_check": check}


def win_rate(
    comparisons: Sequence[Comparison],
    judge: Judge,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
    judge_check: JudgeCheck | None = None,
) -> WinRate:
    """Have a judge compare answers, and say how often a wins.

    The interval is a bootstrap over prompts. Where all prompts came to the same result, resampling knows nothing of
    what else could have been; there Wilson's interval for as many prompts stands in. Where a never wins or never loses,
    beside ties, it knows nothing of the missing kind; there the interval is that of `intervals.paired_interval`.

    The length-controlled rate is sigmoid(constant) of the regression of a's verdicts on (length of a - length of b) /
    (standard deviation of that difference): the rate that is left where both are of one length (as in Dubois et al.
    2024, arXiv 2404.04475). There is none for fewer than 5 wins or 5 losses. Lengths are in characters, of
    stripped text.

    Args:
        comparisons: answers of a and b to the same prompts.
        judge: compares them; the caller closes it.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        progress: told how many of how many are judged.
        judge_check: what the judge is worth, to stand beside.

    Raises:
        PreftuneError: if there is nothing to compare, the judge fails, or it gives no verdict at all.
    """
    if not comparisons:
        raise PreftuneError("there is nothing to compare: 0 pairs of answers")
    verdicts = judged(comparisons, judge, progress)
    return from_verdicts(comparisons, verdicts, judge.name, seed=seed, resamples=resamples, judge_check=judge_check)


def judged(comparisons: Sequence[Comparison], judge: Judge, progress: Progress | None = None) -> list[Verdict]:
    """A judge's verdicts, with progress.

    Raises:
        PreftuneError: if the judge fails, or gives no verdict at all.
    """
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, len(comparisons))

    verdicts = judge.verdicts(comparisons, tell)
    check_some(verdicts, comparisons, judge.name)
    return verdicts


def from_verdicts(
    comparisons: Sequence[Comparison],
    verdicts: Sequence[Verdict],
    judge: str,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    judge_check: JudgeCheck | None = None,
) -> WinRate:
    """The win rate that verdicts come to; arguments as of `win_rate`, and a verdict for each comparison.

    Raises:
        ValueError: if none of them is a preference.
    """
    found = [(c, v, v.preference) for c, v in zip(comparisons, verdicts, strict=True) if v.preference is not None]
    if not found:
        raise ValueError("a win rate needs at least one verdict")
    preference_N = np.array([preference for _, _, preference in found])
    prompts = [comparison.prompt for comparison, _, _ in found]
    length_N2 = np.array([[len(comparison.a.strip()), len(comparison.b.strip())] for comparison, _, _ in found], float)
    longer_N = standardised(length_N2[:, 0] - length_N2[:, 1])

    def raw(weight_RN: Floats) -> Floats:
        return weight_RN @ preference_N / weight_RN.sum(1)

    def controlled(weight_RN: Floats) -> Floats:
        return logistic.sigmoid(logistic.fit(longer_N, preference_N, weight_RN)[:, 0])

    wins, losses = int((preference_N > 0.5).sum()), int((preference_N < 0.5).sum())

    def measured(statistic: Statistic) -> tuple[float, Interval]:
        value = float(statistic(np.ones((1, len(found))))[0])
        if _alike(preference_N, prompts):
            return value, wilson(value, len(set(prompts)))
        if not (wins and losses):
            count = len(set(prompts))
            return value, paired_interval(count * wins / len(found), count * losses / len(found), count)
        return value, interval95(statistic, prompts, seed, resamples)

    rate, rate_ci95 = measured(raw)
    enough = min(wins, losses) >= FEWEST
    fair, fair_ci95 = measured(controlled) if enough else (None, None)
    orders = [verdict for _, verdict, _ in found if verdict.orders]
    return WinRate(
        judge=judge,
        comparisons=len(comparisons),
        prompts=len(set(prompts)),
        win_rate=rate,
        win_rate_ci95=rate_ci95,
        length_controlled=fair,
        length_controlled_ci95=fair_ci95,
        not_controlled=None if enough else f"it takes at least {FEWEST} wins and {FEWEST} losses",
        wins=wins,
        ties=int((preference_N == 0.5).sum()),
        losses=losses,
        flipped=float(np.mean([verdict.flips for verdict in orders])) if orders else 0.0,
        unanswered=len(comparisons) - len(found),
        length_ratio=float(length_N2[:, 0].mean() / max(length_N2[:, 1].mean(), 1e-9)),
        judge_check=judge_check,
    )


def _alike(preference_N: Floats, prompts: Sequence[str]) -> bool:
    """True if all prompts came to the same result."""
    results: dict[str, list[float]] = {}
    for prompt, preference in zip(prompts, preference_N.tolist(), strict=True):
        results.setdefault(prompt, []).append(preference)
    return len({sum(values) / len(values) for values in results.values()}) == 1


def standardised(difference_N: Floats) -> Floats:
    """Differences in units of their standard deviation, 0 staying 0; all 0 if they are all the same."""
    deviation = float(difference_N.std())
    return difference_N / deviation if deviation > 0 else np.zeros_like(difference_N)

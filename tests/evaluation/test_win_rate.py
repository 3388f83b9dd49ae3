from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from rich.console import Console

from preftune.errors import PreftuneError
from preftune.evaluation.intervals import wilson
from preftune.evaluation.judges.base import Comparison, Judge, Verdict, by_orders, by_scores
from preftune.evaluation.win_rate import from_verdicts, win_rate
from preftune.report.evaluation_table import show_evaluation
from preftune.report.judging import show


class Says(Judge):
    """A judge that says what a function makes of a comparison."""

    name, fingerprint = "says", "1"

    def __init__(self, say: Callable[[Comparison], Verdict]) -> None:
        self.say = say

    def verdicts(self, comparisons: Sequence[Comparison], tell: Callable[[int], object] = lambda _: None):
        tell(len(comparisons))
        return [self.say(each) for each in comparisons]


def comparisons(lengths: Sequence[tuple[int, int]], prompts: Sequence[str] | None = None) -> list[Comparison]:
    return [
        Comparison(f"row {i}", prompts[i] if prompts else f"prompt {i}", "a" * a, "b" * b)
        for i, (a, b) in enumerate(lengths)
    ]


def longer(each: Comparison) -> Verdict:
    return by_scores(len(each.a), len(each.b))


def test_wins_ties_and_losses_add_up() -> None:
    answers = [1.0, 1.0, 0.5, 0.0, None, 1.0]
    found = win_rate(comparisons([(1, 1)] * 6), Says(lambda each: Verdict(answers[int(each.key.split()[1])])))
    assert (found.wins, found.ties, found.losses, found.unanswered) == (3, 1, 1, 1)
    assert (found.comparisons, found.prompts) == (6, 5)
    assert found.win_rate == pytest.approx(3.5 / 5)
    low, high = found.win_rate_ci95
    assert 0 <= low < found.win_rate < high <= 1


def test_the_other_way_round_is_one_minus_it() -> None:
    random = np.random.default_rng(0)
    lengths = [tuple(pair) for pair in random.integers(5, 60, size=(80, 2))]
    verdicts = [Verdict(float(value)) for value in random.choice([0, 0.5, 1], 80, p=[0.3, 0.1, 0.6])]
    there = from_verdicts(comparisons(lengths), verdicts, "j")
    back = [Verdict(1 - (verdict.preference or 0)) for verdict in verdicts]
    turned = from_verdicts(comparisons([(b, a) for a, b in lengths]), back, "j")
    assert turned.win_rate == pytest.approx(1 - there.win_rate)
    assert turned.length_controlled == pytest.approx(1 - there.length_controlled)
    assert there.length_controlled_ci95 is not None
    low, high = there.length_controlled_ci95
    assert turned.length_controlled_ci95 == pytest.approx((1 - high, 1 - low))


def test_where_only_length_decides_the_controlled_rate_is_a_half() -> None:
    """A's answers are longer three times out of four, and the judge likes nothing but length."""
    random = np.random.default_rng(1)
    lengths = [
        (int(b + d), int(b)) for b, d in zip(random.integers(80, 200, 300), random.normal(20, 30, 300), strict=True)
    ]
    found = win_rate(comparisons(lengths), Says(longer))
    assert found.win_rate > 0.7
    assert 0.4 < found.length_controlled < 0.6
    low, high = found.length_controlled_ci95
    assert low < 0.5 < high

    def likes(each: Comparison) -> Verdict:  # noisily, which has no perfect separation
        odds = (len(each.a) - len(each.b)) / 20
        return Verdict(float(random.random() < 1 / (1 + np.exp(-odds))))

    noisy = win_rate(comparisons(lengths), Says(likes))
    assert noisy.win_rate > 0.6
    assert noisy.length_controlled_ci95[0] < 0.5 < noisy.length_controlled_ci95[1]


def test_where_length_says_nothing_both_rates_are_alike() -> None:
    random = np.random.default_rng(2)
    lengths = [tuple(pair) for pair in random.integers(5, 60, size=(400, 2))]
    found = win_rate(comparisons(lengths), Says(lambda _: Verdict(float(random.random() < 0.7))))
    assert found.length_controlled == pytest.approx(found.win_rate, abs=0.02)
    same = win_rate(comparisons([(9, 9)] * 20), Says(lambda each: Verdict(float(int(each.key[4:]) % 4 > 0))))
    assert same.length_controlled == pytest.approx(same.win_rate, abs=1e-2)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(1, 7, 0), (3, 4, 1), (0, 3, 9), (40, 0, 4)])
def test_few_wins_or_losses_give_no_controlled_rate(wins: int, ties: int, losses: int) -> None:
    verdicts = [Verdict(value) for value, n in ((1.0, wins), (0.5, ties), (0.0, losses)) for _ in range(n)]
    lengths = [(5 + 7 * i % 40, 20) for i in range(len(verdicts))]
    found = from_verdicts(comparisons(lengths), verdicts, "j")
    assert (found.length_controlled, found.length_controlled_ci95) == (None, None)
    assert found.not_controlled == "it takes at least 5 wins and 5 losses"
    console = Console(record=True, width=120, file=io.StringIO())
    show(found, console)
    low, high = found.win_rate_ci95
    head = {"model": "m", "data": {"pairs": 1, "kind": "pairs", "prompts": 1, "path": "d"}}
    show_evaluation({**head, "win_rate": json.loads(json.dumps(found.as_json()))}, console)
    assert console.export_text().count("it takes at least 5 wins and 5 losses") == 2
    assert low < found.win_rate < high


def test_one_win_and_no_loss_is_no_evidence() -> None:
    for sign in (1, -1):
        verdicts = [Verdict(0.5 + sign * 0.5 * (i == 0)) for i in range(8)]
        low, high = from_verdicts(comparisons([(1, 1)] * 8), verdicts, "j").win_rate_ci95
        assert low < 0.45
        assert high > 0.55


@pytest.mark.parametrize("ties", [0.5, 0.9])
def test_the_interval_holds_the_truth_where_losses_are_rare(ties: float) -> None:
    """12 prompts, one loss to five wins: in many evaluations there is no loss at all."""
    random, trials, covered = np.random.default_rng(3), 300, 0
    truth = ties / 2 + (1 - ties) * 5 / 6
    for trial in range(trials):
        drawn = random.choice([0.5, 1.0, 0.0], 12, p=[ties, (1 - ties) * 5 / 6, (1 - ties) / 6])
        found = from_verdicts(comparisons([(1, 1)] * 12), [Verdict(float(v)) for v in drawn], "j", seed=trial)
        covered += covers(found.win_rate_ci95, truth)
    assert covered / trials >= 0.92


def covers(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and interval[0] <= truth <= interval[1]


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(rate: float) -> None:
    """40 prompts of 3 comparisons each, whose win rates scatter about the true one."""
    random, trials, covered = np.random.default_rng(11), 200, 0
    prompts = [f"prompt {i // 3}" for i in range(120)]
    for trial in range(trials):
        own = np.repeat(random.beta(rate * 4, (1 - rate) * 4, 40), 3)
        verdicts = [Verdict(float(value)) for value in random.random(120) < own]
        found = from_verdicts(comparisons([(1, 1)] * 120, prompts), verdicts, "j", seed=trial, resamples=200)
        covered += covers(found.win_rate_ci95, rate)
    assert 0.915 <= covered / trials <= 0.985


@pytest.mark.parametrize("rate", [0.5, 0.75])
def test_the_controlled_interval_covers_the_rate_at_equal_length(rate: float) -> None:
    """A's answers are longer by 15 characters on average, and 25 more double the odds."""
    random, trials, covered, raw = np.random.default_rng(5), 120, 0, 0
    for trial in range(trials):
        difference = random.normal(15, 25, 150).round().astype(int)
        odds = rate / (1 - rate) * 2 ** (difference / 25)
        verdicts = [Verdict(float(value)) for value in random.random(150) < odds / (1 + odds)]
        lengths = [(100 + int(each), 100) for each in difference]
        found = from_verdicts(comparisons(lengths), verdicts, "j", seed=trial, resamples=200)
        covered += covers(found.length_controlled_ci95, rate)
        raw += covers(found.win_rate_ci95, rate)
    assert 0.9 <= covered / trials <= 0.99
    assert raw < covered - 0.15 * trials  # which is why there is another


def test_comparisons_of_one_prompt_are_no_independent_evidence() -> None:
    verdicts = [Verdict(float(i % 2)) for i in range(40)]
    apart = from_verdicts(comparisons([(1, 1)] * 40), verdicts, "j")
    repeated = [verdict for verdict in verdicts for _ in range(5)]
    prompts = [f"prompt {i}" for i in range(40) for _ in range(5)]
    together = from_verdicts(comparisons([(1, 1)] * 200, prompts), repeated, "j")
    assert together.win_rate_ci95 == pytest.approx(apart.win_rate_ci95)
    assert together.prompts == 40


def test_where_all_agree_wilson_stands_in() -> None:
    found = win_rate(comparisons([(3, 2)] * 20), Says(longer))
    assert found.win_rate == 1
    assert found.win_rate_ci95 == wilson(1.0, 20)
    single = win_rate(comparisons([(3, 2), (2, 3)], ["p", "p"]), Says(longer))
    assert single.win_rate_ci95 == wilson(0.5, 1)


def test_orders_that_disagree_are_ties_and_flips() -> None:
    orders = [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.5, 1.0), (None, 1.0)]
    found = win_rate(comparisons([(1, 1)] * 5), Says(lambda each: by_orders(*orders[int(each.key.split()[1])])))
    assert (found.wins, found.ties, found.losses, found.unanswered) == (1, 2, 1, 1)
    assert found.flipped == pytest.approx(2 / 4)


def test_what_goes_into_evaluation_json() -> None:
    found = json.loads(json.dumps(win_rate(comparisons([(3, 2)] * 4), Says(longer)).as_json()))
    assert {
        *("judge", "comparisons", "prompts", "win_rate", "win_rate_ci95", "length_controlled", "judge_check"),
        *("length_controlled_ci95", "wins", "ties", "losses", "flipped", "unanswered"),
    } <= found.keys()
    assert found["judge_check"] is None
    assert found["win_rate_ci95"] == list(wilson(1.0, 4))


def test_nothing_to_compare_and_no_verdict_at_all() -> None:
    with pytest.raises(PreftuneError, match="0 pairs of answers"):
        win_rate([], Says(longer))
    with pytest.raises(PreftuneError, match="judge says gave no verdict on any of 2 comparisons; on row 0, it sulks"):
        win_rate(comparisons([(1, 2)] * 2), Says(lambda _: Verdict(None, reason="it sulks")))

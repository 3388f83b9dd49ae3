from __future__ import annotations

import numpy as np
import pytest

from preftune.errors import PreftuneError
from preftune.evaluation.judge_check import check_judge
from preftune.evaluation.judges.base import Comparison
from preftune.evaluation.judges.function import by_function
from preftune.evaluation.win_rate import win_rate
from preftune.sandbox.preferences import rows
from preftune.sandbox.world import true_reward


@pytest.fixture(scope="module")
def pairs() -> list[Comparison]:
    """Pairs of the built-in world, in which the truly better answer is the chosen one."""
    found = []
    for i, row in enumerate(rows(400)):
        a, b = sorted((row["chosen"], row["rejected"]), key=true_reward, reverse=True)
        if true_reward(a) > true_reward(b):
            found.append(Comparison(f"row {i}", row["prompt"], a, b, row))
    return found


def best(a: str, b: str) -> str:
    return "a" if true_reward(a) > true_reward(b) else "b" if true_reward(a) < true_reward(b) else "tie"


def test_the_truth_agrees_with_itself(pairs: list[Comparison]) -> None:
    found = check_judge(pairs, by_function("best", best))
    assert found.agreement == 1
    assert found.agreement_ci95[0] > 0.97
    assert (found.flipped, found.ties, found.unanswered, found.undecided) == (0, 0, 0, 0)
    assert found.length_bias == 0
    assert found.for_first is not None
    assert found.for_first.value == 0.5


def test_the_first_one_is_always_best(pairs: list[Comparison]) -> None:
    found = check_judge(pairs, by_function("first", lambda a, b: "a"))
    assert found.flipped == found.ties == 1
    assert found.agreement == 0.5
    assert found.for_first is not None
    assert found.for_first.value == 1
    assert found.for_first.of == 2 * len(pairs)


def test_a_bias_of_known_size_is_measured(pairs: list[Comparison]) -> None:
    """With probability 0.3 it takes the first one, whatever it is; otherwise it knows."""
    random = np.random.default_rng(0)

    def judge(a: str, b: str) -> str:
        return "a" if random.random() < 0.3 else best(a, b)

    found = check_judge(pairs, by_function("hasty", judge))
    assert found.for_first is not None
    low, high = found.for_first.ci95
    assert low < 0.5 + 0.3 / 2 < high
    # it flips where the bias wins in the order that shows the worse one first
    assert found.flipped == pytest.approx(0.3, abs=0.08)
    assert found.agreement == pytest.approx(0.7 + 0.3 / 2, abs=0.05)


def test_a_judge_that_likes_length_is_found_out(pairs: list[Comparison]) -> None:
    def longest(a: str, b: str) -> str:
        return "a" if len(a.strip()) > len(b.strip()) else "b" if len(a.strip()) < len(b.strip()) else "tie"

    found = check_judge(pairs, by_function("longest", longest))
    assert found.for_longer is not None
    assert found.where_longer is not None
    assert found.where_shorter is not None
    assert found.for_longer.value == found.where_longer.value == 1
    assert found.where_shorter.value == 0
    assert found.length_bias is not None
    assert found.length_bias_ci95 is not None
    assert found.length_bias > 0.3
    assert found.length_bias_ci95[0] > 0.2


def test_a_truth_instead_of_labels(pairs: list[Comparison]) -> None:
    turned = [Comparison(p.key, p.prompt, p.b, p.a, p.row) if i % 2 else p for i, p in enumerate(pairs)]
    tied = Comparison("tied", "a prompt", pairs[0].a, pairs[0].a)
    judge, truth = by_function("best", best), by_function("truth", lambda response: true_reward(response))
    found = check_judge([*turned, tied], judge, truth)
    assert found.agreement == 1
    assert (found.pairs, found.undecided, found.truth) == (len(pairs), 1, "truth")
    assert check_judge(turned, judge).agreement == pytest.approx(0.5, abs=0.01)
    with pytest.raises(PreftuneError, match="truth finds neither answer better in any of 1 pairs"):
        check_judge([tied], judge, truth)


def test_no_verdict_is_counted_and_none_at_all_is_an_error(pairs: list[Comparison]) -> None:
    def shy(a: str, b: str) -> str | None:
        return None if len(a) % 3 == 0 else best(a, b)

    found = check_judge(pairs, by_function("shy", shy))
    assert found.unanswered == sum(len(pair.a) % 3 == 0 or len(pair.b) % 3 == 0 for pair in pairs)
    assert found.pairs == len(pairs) - found.unanswered
    with pytest.raises(PreftuneError, match="gave no verdict on any"):
        check_judge(pairs, by_function("none", lambda response: None))
    with pytest.raises(PreftuneError, match="0 pairs"):
        check_judge([], by_function("best", best))


def test_it_stands_beside_a_win_rate(pairs: list[Comparison]) -> None:
    judge = by_function("best", best)
    found = win_rate(pairs, judge, judge_check=check_judge(pairs[:50], judge)).as_json()
    assert found["judge_check"]["pairs"] == 50
    assert found["judge_check"]["agreement"] == 1
    assert set(found["judge_check"]) >= {"pairs", "agreement", "agreement_ci95", "flipped"}

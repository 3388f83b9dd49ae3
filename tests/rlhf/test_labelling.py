"""From scored answers to what objectives learn from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.errors import PreftuneError
from preftune.evaluation.judges import open_judge
from preftune.evaluation.judges.base import Judge, ScoringJudge, Verdict
from preftune.evaluation.sampling import Sampled
from preftune.objectives.batch import Role
from preftune.rlhf.config import OnlineConfig
from preftune.rlhf.labelling import check_judge, examples_of, judged
from preftune.rlhf.plan import Asked
from preftune.rlhf.rollouts import Rollout, as_example

ASKED = Asked(np.array([1, 2], np.int32), "a question", {"prompt": "a question"}, 7)


def rollout(*scores, same=False):
    answers = [
        Sampled(np.array([3, 4, 5 if same else 10 + i], np.int32), np.zeros(3, np.float32), True)
        for i in range(len(scores))
    ]
    texts = [f"answer {i}" for i in range(len(scores))]
    return Rollout(ASKED, answers, texts, scores, as_example(ASKED, answers, scores))


def made(kind, *scores, same=False, seed=0, **online):
    config = OnlineConfig(judge="sandbox", samples=max(1, len(scores)), **online)
    return examples_of([rollout(*scores, same=same)], kind, config, np.random.default_rng(seed))


def last(response):
    """Which of the answers it is."""
    return int(response.ids[-1]) - 10


def test_a_pair_is_the_best_answer_and_the_worst():
    (pair,) = made("pairs", 0.5, 2.0, -1.0, 1.0)
    assert [(last(r), r.role) for r in pair.responses] == [(1, Role.CHOSEN), (2, Role.REJECTED)]
    assert (pair.row, pair.weight, pair.confidence, pair.gap) == (7, 1.0, 1.0, 3.0)


@pytest.mark.parametrize(("scores", "same"), [((1.0, 1.0), False), ((2.0, 1.0), True), ((None, 1.0), False)])
def test_a_tie_the_same_words_and_a_missing_score_count_for_nothing(scores, same):
    assert [pair.weight for pair in made("pairs", *scores, same=same)] == [0.0]


def test_soft_labels_say_how_sure_they_are():
    (pair,) = made("pairs", 0.0, 0.5, labels="soft", label_scale=2.0)
    assert last(pair.responses[0]) == 1
    assert pair.confidence == pytest.approx(1 / (1 + math.exp(-1)))
    (tie,) = made("pairs", 1.0, 1.0, labels="soft")
    assert (tie.confidence, tie.weight) == (0.5, 1.0)


def test_sampled_labels_are_right_as_often_as_bradley_terry_says():
    chosen = [
        last(made("pairs", 0.0, 0.5, labels="sampled", label_scale=2.0, seed=i)[0].responses[0]) for i in range(2000)
    ]
    p = 1 / (1 + math.exp(-1))
    assert abs(np.mean(chosen) - p) < 4 * math.sqrt(p * (1 - p) / 2000)


def test_labels_are_against_the_mean_of_the_prompt():
    found = made("labels", 0.0, 1.0, 5.0, 2.0)
    assert [(last(one.responses[0]), one.responses[0].score, one.weight) for one in found] == [
        (0, 0.0, 1.0),
        (1, 0.0, 1.0),
        (2, 1.0, 1.0),
        (3, 0.0, 0.0),  # the mean itself
    ]


def test_rankings_rollouts_and_demonstrations():
    (ranking,) = made("rankings", 1.0, 3.0, 2.0)
    assert [r.score for r in ranking.responses] == [1.0, 3.0, 2.0]
    assert [one.weight for one in made("rankings", 1.0, 1.0)] == [0.0]
    (rollouts,) = made("rollouts", 1.0, 1.0)
    assert (rollouts.weight, [r.role for r in rollouts.responses]) == (1.0, [Role.RANKED] * 2)
    (best,) = made("demonstrations", 1.0, 3.0, 2.0)
    assert [(last(r), r.role) for r in best.responses] == [(1, Role.CHOSEN)]


class Scoring(ScoringJudge):
    name, fingerprint = "mine", "1"

    def __init__(self, *scores):
        self.given = scores

    def scores(self, answers):
        return self.given


class Comparing(Judge):
    name, fingerprint = "mine", "1"

    def verdicts(self, comparisons, tell=lambda _: None):
        self.asked = [(each.a, each.b) for each in comparisons]
        return [Verdict(1.0), Verdict(None, reason="it timed out")]


def test_scores_go_to_their_answers_and_unfinished_ones_lose():
    found = judged(
        Scoring(1.0, 2.0, None, 4.0), [ASKED, ASKED], [("a", "b"), ("c", "d")], [(True, False), (True, True)], 0.5
    )
    assert found == [[1.0, 1.5], [None, 4.0]]


@pytest.mark.parametrize("score", [math.nan, math.inf, "good", "3"])
def test_a_score_that_is_no_number_is_refused_by_name(score):
    with pytest.raises(PreftuneError, match=r"judge mine gave .* on answer 1 to row 7, expected a finite number"):
        judged(Scoring(1.0, score), [ASKED], [("a", "b")], [(True, True)], 0.0)


def test_a_judge_that_says_nothing_at_all_is_refused():
    with pytest.raises(PreftuneError, match="judge mine gave no score on any of 2 answers"):
        judged(Scoring(None, None), [ASKED], [("a", "b")], [(True, True)], 0.0)


def test_a_judge_that_compares_is_asked_about_different_answers_alone():
    judge = Comparing()
    found = judged(judge, [ASKED] * 3, [("a", "b"), ("c", "c"), ("d", "e")], [(True, True)] * 3, 0.0)
    assert judge.asked == [("a", "b"), ("d", "e")]
    assert found == [(1.0, 0.0), (0.5, 0.5), (None, None)]


@pytest.mark.parametrize(
    ("kind", "online", "said"),
    [
        ("rollouts", {}, "judge mine compares answers and gives no scores, which the objective needs"),
        ("pairs", {"labels": "soft"}, "gives no scores, which online.labels=soft needs"),
        ("pairs", {"unfinished": 0.5}, "is taken off scores, and judge mine gives none"),
        ("pairs", {"samples": 3}, "compares two answers at a time, but online.samples=3: set it to 2"),
    ],
)
def test_a_judge_that_compares_does_not_serve_everything(kind, online, said):
    with pytest.raises(PreftuneError, match=said):
        check_judge(Comparing(), kind, OnlineConfig(judge="mine", **online))
    check_judge(Comparing(), "pairs", OnlineConfig(judge="mine"))


def test_one_answer_has_nothing_beside_it():
    with pytest.raises(PreftuneError, match=r"online\.samples=1, but the objective learns from what answers"):
        check_judge(open_judge("sandbox"), "pairs", OnlineConfig(judge="sandbox", samples=1))
    check_judge(open_judge("sandbox"), "rollouts", OnlineConfig(judge="sandbox", samples=1))

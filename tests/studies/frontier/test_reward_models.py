"""Reward models of the study: read in bulk as a judge reads them one by one."""

import pytest

from preftune.evaluation.judges import open_judge
from preftune.evaluation.judges.base import Comparison
from preftune.sandbox import listed
from preftune.studies.frontier.cells import Preferences
from preftune.studies.frontier.reward_models import RewardScores, reward_model
from preftune.studies.frontier.worlds import open_world


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    world = open_world("listed", folder)
    return folder, reward_model(world, folder / "reward-models", Preferences(pairs=64), 1)


def test_the_judge_says_the_same_also_of_empty_answers_and_of_those_that_are_cut(trained):
    _, run = trained
    prompt, ids = listed.PROMPTS[5], listed.response_ids()
    places = [0, 3, 30, 300, len(ids) - 1]  # no word, and one to four
    answers = [
        (Comparison(f"row {place}", prompt, listed.RESPONSES[place], ""), listed.RESPONSES[place]) for place in places
    ]
    judged = open_judge(f"reward:{run}").scores(answers)
    asked = [listed.words_of(prompt)] * len(places)
    assert judged == pytest.approx(RewardScores(run).of(asked, [ids[place] for place in places]).tolist(), abs=1e-5)
    assert len(set(judged)) == len(places)


def test_one_of_three_learning_rates_is_kept_and_the_model_is_made_once(trained, monkeypatch):
    folder, run = trained
    assert [each.name for each in run.parent.iterdir()] == ["run"]
    world = open_world("listed", folder)
    monkeypatch.setattr(world, "rows", None)  # it is not asked for anything again
    assert reward_model(world, folder / "reward-models", Preferences(pairs=64), 1) == run

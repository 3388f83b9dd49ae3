"""The worlds as the study sees them: exact where they are listed, and fair to every method."""

import json
import math

import numpy as np
import pytest
import torch

from preftune.sandbox import listed
from preftune.sandbox.world import components, true_reward
from preftune.studies.frontier.cells import SOURCES, Preferences
from preftune.studies.frontier.listed_world import source
from preftune.studies.frontier.sandbox_world import CYCLE_CERTAINTY, TASTES, probability
from preftune.studies.frontier.worlds import open_world

PLAIN = Preferences(pairs=40)


@pytest.fixture(scope="module")
def listed_world(tmp_path_factory):
    return open_world("listed", tmp_path_factory.mktemp("listed"))


@pytest.fixture(scope="module")
def sandbox_world(tmp_path_factory):
    return open_world("sandbox", tmp_path_factory.mktemp("sandbox"), quick=True)


def test_the_reference_is_where_the_curve_begins(listed_world):
    found = listed_world.measure(listed_world.reference(), "test", PLAIN)
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert found.reward == pytest.approx(found.reference)
    assert found.win == pytest.approx(0.5)
    assert found.attainable == pytest.approx(0, abs=1e-6)
    assert found.regret is None  # nothing was to be gained
    assert sum(found.parts.values()) == pytest.approx(found.reward)


def test_best_of_n_under_the_true_reward_lies_just_below_the_optimum(listed_world):
    four, many = (listed_world.best_of_n(n, "test", PLAIN) for n in (4, 64))
    assert 0 < four.regret < 0.2
    assert four.kl < many.kl
    assert four.reward < many.reward < many.best
    assert four.win > 0.6


def test_the_probability_of_winning_is_a_sum_over_all_pairs(listed_world):
    found = listed_world.best_of_n(4, "validation", PLAIN)
    who, prompts = source(PLAIN), listed.VALIDATION
    reference_PY = listed.reference_logps(prompts)
    from preftune.theory.frontier import best_of_n

    policy_PY = best_of_n(reference_PY, listed.rewards(prompts), 4).exp()
    everything = torch.arange(len(listed.RESPONSES))
    total = 0.0
    for prompt, ours_Y, theirs_Y in zip(prompts, policy_PY, reference_PY.exp(), strict=True):
        p_YY = who.probability(prompt, everything[:, None], everything[None, :])
        total += float(ours_Y @ p_YY @ theirs_Y) / len(prompts)
    assert found.win == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("world", ["listed_world", "sandbox_world"])
def test_rows_are_functions_of_the_seed_and_noise_flips_them(name, world, request):
    world = request.getfixturevalue(world)
    rows = world.rows(Preferences(name, pairs=40), 1)
    assert rows == world.rows(Preferences(name, pairs=40), 1)
    assert rows != world.rows(Preferences(name, pairs=40), 2)
    assert len(rows) == 40
    assert set(rows[0]) == {"prompt", "chosen", "rejected"}
    noisy = world.rows(Preferences(name, noise=0.3, pairs=40), 1)
    assert [row["prompt"] for row in noisy] == [row["prompt"] for row in rows]
    flipped = [a["chosen"] == b["rejected"] for a, b in zip(rows, noisy, strict=True)]
    assert 0 < sum(flipped) < 40 or name == "shifted"


@pytest.mark.parametrize("world", ["listed_world", "sandbox_world"])
def test_prompts_of_the_splits_never_meet(world, request):
    world = request.getfixturevalue(world)
    train = {row["prompt"] for row in world.rows(PLAIN, 1)}
    apart = [{row["prompt"] for row in world.held_out_rows(PLAIN, 1, split)} for split in ("validation", "test")]
    assert not train & apart[0]
    assert not train & apart[1]
    assert not apart[0] & apart[1]


def test_deterministic_preferences_never_contradict_the_reward(listed_world, sandbox_world):
    certain = Preferences("deterministic", pairs=40)
    for row in listed_world.rows(certain, 1):
        better, worse = (listed.true_reward(row["prompt"], row[side]) for side in ("chosen", "rejected"))
        assert better >= worse - 1e-9
    for row in sandbox_world.rows(certain, 1):
        assert true_reward(row["chosen"]) >= true_reward(row["rejected"])


def test_two_reviews_are_preferred_as_the_source_says():
    story, craft = "The plot was superb.", "The music was superb."
    assert components(story) == {"story": 1.0, "acting": 0.0, "craft": 0.0}
    assert probability("bradley_terry", story, craft, TASTES[0]) == 0.5
    assert probability("two_annotators", story, craft, TASTES[0]) == pytest.approx(1 / (1 + math.exp(-4.5)))
    assert probability("two_annotators", story, craft, TASTES[1]) == pytest.approx(1 / (1 + math.exp(4.5)))
    acting = "The cast was superb."
    circle = [(story, acting), (acting, craft), (craft, story)]
    assert [probability("cyclic", *each, {}) for each in circle] == [CYCLE_CERTAINTY] * 3
    assert probability("deterministic", story, "The plot was good.", TASTES[0]) == 1


def test_the_sampled_curve_begins_at_the_reference_and_knows_where_it_ends(sandbox_world):
    curve = sandbox_world.curve("validation")
    found = sandbox_world.measure(sandbox_world.reference(), "validation", PLAIN)
    assert found.kl == 0
    assert found.reference == pytest.approx(found.reward, abs=0.15)
    assert float(curve.effective_B.min()) >= 20
    beyond = sandbox_world.measured(9.0, {}, curve.last_kl + 1, "validation")
    assert (beyond.best, beyond.regret, beyond.attainable) == (None, None, None)
    better = sandbox_world.best_of_n(4, "validation", PLAIN)
    assert better.kl == pytest.approx(math.log(4) - 0.75)
    assert found.reward + 0.3 < better.reward < better.best + 0.1


def test_what_takes_long_is_made_once(sandbox_world):
    kept = sandbox_world.folder / "responses" / "all-train-40-1.json"
    sandbox_world.rows(PLAIN, 1)
    stamp = kept.stat().st_mtime_ns
    sandbox_world.rows(Preferences("cyclic", pairs=40), 1)
    assert kept.stat().st_mtime_ns == stamp
    assert len(json.loads(kept.read_text())) == 40
    assert not [each for each in kept.parent.iterdir() if each.suffix not in (".json", ".lock")]
    assert np.isfinite([true_reward(row["chosen"]) for row in sandbox_world.rows(PLAIN, 1)]).all()


def test_an_unknown_world_is_named():
    with pytest.raises(ValueError, match="there is no world 'moon', known are listed, sandbox"):
        open_world("moon", None)

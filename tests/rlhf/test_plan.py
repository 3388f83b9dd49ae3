"""Which prompts a round asks, and which of its examples meet."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.rlhf.config import OnlineConfig
from preftune.rlhf.plan import Rota
from preftune.training.batches import BatchConfig


def rota(prompts=10, kind="pairs", size=3, max_steps=None, **online):
    config = OnlineConfig(judge="sandbox", **{"rounds": 4, "prompts": 6, "samples": 2, **online})
    return Rota(prompts, config, BatchConfig(size=size), kind, 0, max_steps)


def test_prompts_come_in_one_random_order_after_the_other():
    plan = rota(prompts=10)
    asked = [prompt for number in range(5) for prompt in plan.asked(number)]
    assert [sorted(asked[:10]), sorted(asked[10:20]), sorted(asked[20:30])] == [list(range(10))] * 3
    assert asked[:10] != asked[10:20]


def test_a_round_may_ask_more_prompts_than_there_are():
    assert Counter(rota(prompts=2).asked(0)) == {0: 3, 1: 3}


@pytest.mark.parametrize(("kind", "each"), [("pairs", 1), ("labels", 2), ("rollouts", 1)])
def test_every_pass_over_a_round_learns_from_each_example_once(kind, each):
    plan = rota(kind=kind, epochs=2, size=4)
    batches = list(plan.batches(3))
    assert len(batches) == plan.per_round == 2 * -(-6 * each // 4)
    half = len(batches) // 2
    for part in (batches[:half], batches[half:]):
        assert sorted(np.concatenate(part).tolist()) == list(range(6 * each))
        assert max(map(len, part)) - min(map(len, part)) <= 1


@given(done=st.integers(0, 16), max_steps=st.none() | st.integers(1, 20))
def test_what_follows_is_the_end_of_the_whole(done, max_steps):
    plan = rota(epochs=2, max_steps=max_steps)
    whole = [batch.tolist() for batch in plan]
    assert len(whole) == plan.steps == min(16, max_steps or 16)
    assert [batch.tolist() for batch in plan.after(done)] == whole[done:]

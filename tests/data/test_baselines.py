from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import ids

from preftune.data.baselines import with_baselines
from preftune.data.examples import Example, Response
from preftune.errors import PreftuneError
from preftune.objectives.batch import Role


def judged(prompt: int, response: int, length: int = 5, row: int = 0) -> Example:
    """One labelled response; equal seeds make equal prompts or responses."""
    return Example(ids(4 + prompt % 3, prompt), (Response(ids(length, 1000 + response), Role.LABELLED, 1.0),), row=row)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=12), st.integers(0, 5))
def test_promise_14_a_baseline_never_answers_its_own_prompt(keys, seed):
    examples = [judged(prompt, response, row=row) for row, (prompt, response) in enumerate(keys)]
    own = {prompt: {r for p, r in keys if p == prompt} for prompt, _ in keys}
    foreign = {prompt: {r for p, r in keys if p != prompt} - own[prompt] for prompt in own}
    if not all(foreign.values()):
        with pytest.raises(PreftuneError, match="has none that this prompt does not have too"):
            with_baselines(examples, examples, seed)
        return
    found = with_baselines(examples, examples, seed)
    for example, (prompt, _), before in zip(found, keys, examples, strict=True):
        assert example.responses[:-1] == before.responses
        baseline = example.responses[-1]
        assert baseline.role == Role.BASELINE
        assert np.isnan(baseline.score)
        assert any(np.array_equal(baseline.ids, ids(5, 1000 + r)[: len(baseline.ids)]) for r in foreign[prompt])


def test_draws_depend_on_the_seed_alone_and_spread_over_the_data():
    examples = [judged(i, i, row=i) for i in range(40)]

    def drawn(seed: int) -> list[bytes]:
        return [example.responses[-1].ids.tobytes() for example in with_baselines(examples, examples, seed)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) > 15


def test_baselines_of_held_out_examples_come_from_the_pool():
    pool, other = [judged(i, i) for i in range(3)], [judged(9, 9)]
    (found,) = with_baselines(other, pool, 0)
    assert found.responses[-1].ids.tobytes() in {example.responses[0].ids.tobytes() for example in pool}


def test_a_baseline_does_not_make_an_example_longer_than_the_pool_has():
    long, short = judged(0, 0, length=30), judged(2, 1, length=2)
    longest = len(long.prompt) + 30
    for example in with_baselines([long, short], [long, short], 0):
        assert all(len(example.prompt) + len(r.ids) <= longest for r in example.responses)
    wide = Example(ids(30, 7), (Response(ids(4, 8), Role.LABELLED, 0.0),))
    cut = with_baselines([wide], [wide, long], 0)[0].responses[-1]
    assert len(cut.ids) == longest - 30 if longest > 34 else 4


def test_turns_that_are_no_targets_stay_none():
    turns = np.array([False, False, True, True])
    several = Example(ids(3, 1), (Response(ids(4, 2), Role.LABELLED, 1.0, targets=turns),))
    plain = Example(ids(9, 3), (Response(ids(3, 4), Role.LABELLED, 1.0),))
    found = with_baselines([plain], [several, plain], 0)[0].responses[-1]
    assert found.targets is not None
    assert (len(found.ids), found.targets.tolist(), found.length) == (3, [False, False, True], 1)


def test_promise_14_one_prompt_alone_is_refused():
    examples = [judged(0, response, row=response) for response in range(4)]
    with pytest.raises(PreftuneError, match=r"row 0: .*give data of at least two prompts"):
        with_baselines(examples, examples, 0)

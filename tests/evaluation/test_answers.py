from __future__ import annotations

import numpy as np
import pytest
from evaluation.runs import Made

from preftune.evaluation.answers import Answer, Sampling, describe, prompts_of
from preftune.evaluation.generating import generate
from preftune.evaluation.opening import Opened, open_for_evaluation
from preftune.evaluation.sampling import Sampled, kl_on_samples
from preftune.sandbox.preferences import base_model


def answer(ids: list[int], ended: bool = True) -> Answer:
    sampled = Sampled(np.array(ids, np.int32), np.zeros(len(ids), np.float32), ended)
    return Answer(" ".join(map(str, ids)), len(ids), ended, sampled)


def test_figures_by_hand() -> None:
    # without end tokens (0): 1 2 3 4 1 2 3 4 has five fours of which one stands twice; 5 6 is too short for any
    found = describe([[answer([1, 2, 3, 4, 1, 2, 3, 4, 0])], [answer([5, 6], ended=False)]])
    assert found["mean_length"] == 5.5
    assert found["end_rate"] == 0.5
    assert found["repetition"] == pytest.approx((1 / 5 + 0) / 2)
    assert found["distinct_1"] == pytest.approx(6 / 10)
    assert found["distinct_2"] == pytest.approx(5 / 8)
    for name in ("mean_length", "end_rate", "repetition", "distinct_1", "distinct_2"):
        low, high = found[f"{name}_ci95"]
        assert low <= found[name] <= high


def test_one_prompt_tells_nothing_of_others() -> None:
    found = describe([[answer([1, 2, 0]), answer([1, 0])]])
    assert found["mean_length_ci95"] is found["distinct_1_ci95"] is None


def test_the_jackknife_is_about_as_wide_as_repeated_draws_spread() -> None:
    random = np.random.default_rng(0)

    def drawn() -> list[list[Answer]]:
        return [[answer([*random.geometric(0.05, size=20).tolist(), 0])] for _ in range(60)]

    shares = [describe(drawn())["distinct_1"] for _ in range(60)]
    widths = [np.diff(describe(drawn())["distinct_1_ci95"])[0] / (2 * 1.96) for _ in range(20)]
    assert np.mean(widths) == pytest.approx(np.std(shares), rel=0.35)


def test_who_tells_no_tokens_is_measured_by_words() -> None:
    found = describe([[Answer("the cat sat. the cat sat.", 9, True)]])
    assert found["distinct_1"] == pytest.approx(4 / 8)


@pytest.fixture(scope="module")
def opened(made: Made) -> Opened:
    return open_for_evaluation(made("lora"))


def test_prompts_are_different_and_in_order(opened: Opened) -> None:
    prompts = prompts_of(opened, 5)
    assert len({prompt.text for prompt in prompts}) == 5
    assert prompts[0].text == opened.tokenizer.decode(opened.examples[0].prompt)
    assert prompts[0].source == next(opened.records()).prompt


def test_both_sides_answer_and_kl_is_that_of_two_models_apart(opened: Opened) -> None:
    prompts = prompts_of(opened, 6)
    found = generate(opened, prompts, Sampling(samples_per_prompt=2, max_new_tokens=24, seed=5))
    again = generate(opened, prompts, Sampling(samples_per_prompt=2, max_new_tokens=24, seed=5, batch_size=3))
    assert found.lines() == again.lines()
    assert len(found.lines()) == 12
    assert [line["row"] for line in found.lines()[:2]] == [prompts[0].row] * 2

    flat = [one for group in found.policy for one in group]
    with opened.generating() as lm:
        kl = kl_on_samples(
            lm, base_model(), [prompt.ids for prompt in prompts for _ in range(2)], [one.sampled for one in flat]
        )
    figures = found.figures["kl"]
    assert figures["per_response"] > 1e-4
    assert figures["per_response"] == pytest.approx(kl.mean(), abs=1e-5)
    assert figures["per_token"] == pytest.approx(kl.sum() / sum(one.tokens for one in flat), abs=1e-6)
    assert figures["per_response_se"] == pytest.approx(kl.reshape(6, 2).mean(1).std(ddof=1) / 6**0.5, rel=1e-3)


def test_others_may_answer_in_their_place(opened: Opened) -> None:
    """The seam for endpoints: whoever takes prompts and gives answers."""
    found = generate(
        opened,
        prompts_of(opened, 3),
        Sampling(max_new_tokens=8),
        policy=lambda _: lambda prompts: [[Answer(f"re: {prompt.text}", 4, True)] for prompt in prompts],
    )
    assert found.policy[0][0].text.startswith("re: ")
    assert "kl" not in found.figures
    assert found.notes == (
        "no KL divergence is measured: it is estimated on tokens, and an endpoint does not tell its own",
    )


def test_kl_is_measured_at_temperature_1_alone(opened: Opened) -> None:
    found = generate(opened, prompts_of(opened, 2), Sampling(max_new_tokens=8, temperature=0.0))
    assert "kl" not in found.figures
    assert "temperature 1" in found.notes[0]


def test_a_model_against_itself_is_at_no_distance(made: Made, files: dict) -> None:
    same = open_for_evaluation("sandbox", data=files["pairs"], against="sandbox")
    found = generate(same, prompts_of(same, 4), Sampling(max_new_tokens=16))
    assert found.figures["kl"]["per_response"] == 0
    assert [line["policy"] for line in found.lines()] == [line["against"] for line in found.lines()]

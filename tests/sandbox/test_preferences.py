import itertools
import math

import numpy as np
import pytest
import torch

from preftune.data.records import Where
from preftune.errors import PreftuneError
from preftune.sandbox.preferences import (
    PolicyEvaluation,
    base_model,
    base_tokenizer,
    evaluate_policy,
    held_out_pairs,
    label_probability,
    pairs,
    rows,
)
from preftune.sandbox.world import components, grammatical, prompts, true_reward

TRAIN, HELD_OUT = prompts()


@pytest.mark.parametrize(("noise", "scale", "seed"), [(0.0, 1.0, 3), (0.2, 3.0, 4)])
def test_labels_follow_bradley_terry(noise: float, scale: float, seed: int) -> None:
    found = pairs(1200, noise=noise, scale=scale, seed=seed)
    gap = np.array([true_reward(str(pair.chosen)) - true_reward(str(pair.rejected)) for pair in found])
    size = np.abs(gap)
    p_right = (1 - noise) / (1 + np.exp(-scale * size)) + noise / (1 + np.exp(scale * size))
    edges = np.quantile(size[size > 0], [0, 1 / 3, 2 / 3, 1])
    for low, high in itertools.pairwise(edges):
        inside = (size > 0) & (low <= size) & (size <= high)
        expected, n = p_right[inside].mean(), inside.sum()
        assert n > 300
        error = math.sqrt((p_right * (1 - p_right))[inside].sum()) / n
        assert abs((gap[inside] > 0).mean() - expected) < 4 * error


def test_label_probability_worked_by_hand() -> None:
    assert label_probability(1.0, 1.0) == 0.5
    assert label_probability(1.5, 1.0, scale=2.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert label_probability(1.5, 1.0, scale=2.0, noise=0.1) == pytest.approx(0.9 * 0.731059 + 0.1 * 0.268941)
    assert label_probability(-3.0, 2.0, noise=0.5) == 0.5
    assert label_probability(-1e6, 1e6) == 0.0


def test_pairs_are_different_whole_responses_to_the_right_prompts() -> None:
    found = pairs(64, seed=1)
    assert found == pairs(64, seed=1)
    assert found != pairs(64, seed=2)
    assert {pair.prompt for pair in found} <= set(TRAIN)
    assert all(pair.chosen != pair.rejected for pair in found)
    assert all(
        str(text).endswith(".") and str(text)[0] == " " for pair in found for text in (pair.chosen, pair.rejected)
    )
    assert found[5].where == Where("sandbox", 5)
    held_out = held_out_pairs(64, seed=1)
    assert {pair.prompt for pair in held_out} <= set(HELD_OUT)
    assert held_out == held_out_pairs(64, seed=1)


def test_rows_of_the_built_in_data_set() -> None:
    found, expected = rows(16), pairs(16)
    assert [set(row) for row in found] == [{"prompt", "chosen", "rejected"}] * 16
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in found] == [
        (p.prompt, p.chosen, p.rejected) for p in expected
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n of the sandbox's pairs is 0"),
        ({"n": 4, "noise": 0.6}, "noise of the sandbox's pairs is 0.6"),
        ({"n": 4, "scale": -1.0}, "scale of the sandbox's pairs is -1.0"),
        ({"n": 4, "seed": -1}, "seed of the sandbox's pairs is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(PreftuneError, match=message):
        pairs(**options)


@pytest.fixture(scope="module")
def base_evaluation() -> PolicyEvaluation:
    return evaluate_policy(base_model(), base_model(), HELD_OUT)


def test_base_model_writes_the_grammar_on_held_out_prompts(base_evaluation: PolicyEvaluation) -> None:
    assert base_evaluation.grammatical >= 0.98
    assert base_evaluation.end_rate >= 0.99
    assert abs(base_evaluation.true_reward) < 0.15
    assert 10 < base_evaluation.mean_length < 20


def test_kl_of_the_base_model_to_itself_is_zero(base_evaluation: PolicyEvaluation) -> None:
    assert base_evaluation.kl == 0
    assert base_evaluation.kl_se == 0


def test_evaluation_equals_its_own_samples(base_evaluation: PolicyEvaluation) -> None:
    assert base_evaluation.prompts == tuple(HELD_OUT)
    assert [len(texts) for texts in base_evaluation.samples] == [16] * 128
    by_prompt = [np.mean([true_reward(text) for text in texts]) for texts in base_evaluation.samples]
    assert base_evaluation.prompt_rewards == pytest.approx(by_prompt)
    assert base_evaluation.true_reward == pytest.approx(np.mean(by_prompt))
    half = 1.96 * np.std(by_prompt, ddof=1) / math.sqrt(128)
    assert base_evaluation.true_reward_ci95 == pytest.approx((np.mean(by_prompt) - half, np.mean(by_prompt) + half))
    texts = [text for texts in base_evaluation.samples for text in texts]
    assert base_evaluation.grammatical == pytest.approx(np.mean([grammatical(text) for text in texts]), abs=0.001)
    assert base_evaluation.components["craft"] == pytest.approx(np.mean([components(text)["craft"] for text in texts]))
    assert sum(base_evaluation.components.values()) == pytest.approx(base_evaluation.true_reward)
    tokens = base_tokenizer()(texts)["input_ids"]
    assert base_evaluation.mean_length == pytest.approx(np.mean([len(ids) + 1 for ids in tokens]), abs=0.01)


def test_kl_of_a_changed_policy_equals_the_mean_log_ratio_within_its_error() -> None:
    policy, reference = base_model(), base_model()
    for parameter in policy.parameters():
        parameter.data *= 0.9
    result = evaluate_policy(policy, reference, HELD_OUT[:64], samples_per_prompt=4, seed=5)
    tokenizer = base_tokenizer()
    ratios = []
    for prompt, texts in zip(result.prompts, result.samples, strict=True):
        start = len(tokenizer.encode(prompt))
        for text in texts[:2]:
            ids = tokenizer(prompt + text + tokenizer.eos_token, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logps = [
                    model(ids).logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None]).sum().item()
                    for model in (policy, reference)
                ]
            ratios.append(logps[0] - logps[1])
    assert 0 < result.kl_se < 0.2 * result.kl
    assert abs(np.mean(ratios) - result.kl) < 4 * (np.std(ratios) / math.sqrt(len(ratios)) + result.kl_se)


def test_gain_is_paired_by_prompt(base_evaluation: PolicyEvaluation) -> None:
    gain, (low, high) = base_evaluation.gain_over(base_evaluation)
    assert gain == low == high == 0
    model = base_model()
    other = evaluate_policy(model, model, HELD_OUT[:3], samples_per_prompt=2, seed=1)
    again = evaluate_policy(model, model, HELD_OUT[:3], samples_per_prompt=2, seed=2)
    differences = np.subtract(other.prompt_rewards, again.prompt_rewards)
    gain, (low, high) = other.gain_over(again)
    assert gain == pytest.approx(differences.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * differences.std(ddof=1) / math.sqrt(3))
    with pytest.raises(ValueError, match="different prompts"):
        other.gain_over(base_evaluation)


def test_one_prompt_gives_no_interval() -> None:
    with pytest.raises(PreftuneError, match="at least two prompts"):
        evaluate_policy(base_model(), base_model(), HELD_OUT[:1])

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from preftune.errors import PreftuneError
from preftune.evaluation.sampling import sample
from preftune.sandbox.frontier import PROMPTS, frontier, response_logps
from preftune.sandbox.preferences import base_model, base_tokenizer, evaluate_policy
from preftune.sandbox.world import GENRES, LOOKS, MAX_RESPONSE_TOKENS, PARTS, prompts

FEW = PROMPTS[:4]


def sharper():
    """A model that moved from the base: as if sampled at a temperature below 1."""
    model = base_model()
    with torch.no_grad():
        model.model.norm.weight *= 1.15
    return model


def test_prompts_are_held_out_and_of_all_genres() -> None:
    assert len(PROMPTS) == 16
    assert set(PROMPTS) <= set(prompts()[1])
    assert Counter(prompt.split()[2] for prompt in PROMPTS) == dict.fromkeys(GENRES, 2)
    assert {prompt.split()[1] for prompt in PROMPTS} == set(LOOKS)


def test_the_curve_begins_at_the_base_model_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path))
    found = frontier(FEW, samples=1600, least_effective=50)
    assert tuple(found.component_B) == PARTS
    torch.testing.assert_close(sum(found.component_B.values()), found.reward_B)
    base = evaluate_policy(base_model(), base_model(), FEW, samples_per_prompt=400, seed=7)
    assert abs(found.reference_reward - base.true_reward) < 4 * math.sqrt(2) * float(found.error_B[0])
    assert 0.3 < found.last_kl < 3
    (kept,) = tmp_path.rglob("table.npy")
    written = kept.stat().st_mtime_ns
    again = frontier(FEW, samples=1600, least_effective=50)
    assert torch.equal(again.reward_B, found.reward_B)
    assert kept.stat().st_mtime_ns == written
    other = frontier(FEW, samples=1600, seed=1, least_effective=50)
    assert len(list(tmp_path.rglob("table.npy"))) == 2
    near = min(found.last_kl, other.last_kl) / 2
    assert other.reward_at(near) == pytest.approx(found.reward_at(near), abs=0.3)


def test_no_policy_lies_above_the_curve() -> None:
    model = sharper()
    found = evaluate_policy(model, base_model(), FEW, samples_per_prompt=200)
    curve = frontier(FEW, samples=1600, least_effective=50)
    assert 0.01 < found.kl < curve.last_kl
    assert curve.gain_share(found.true_reward, found.kl) < 1


def test_proposals_weigh_as_much_as_they_are_unlikely() -> None:
    alone, mixed = frontier(FEW, samples=1600), frontier(FEW, samples=1600, proposals=[sharper()])
    assert mixed.effective_B[0] < alone.effective_B[0] == pytest.approx(400)
    error = float((mixed.error_B[0] ** 2 + alone.error_B[0] ** 2).sqrt())
    assert abs(mixed.reference_reward - alone.reference_reward) < 4 * error
    same = frontier(FEW, samples=800, proposals=[base_model()], least_effective=50)
    assert same.effective_B[0] == pytest.approx(200, rel=1e-4), "who proposes what the base would say changes no weight"


def test_log_probabilities_are_those_that_sampling_says() -> None:
    model, tokenizer = base_model(), base_tokenizer()
    ids = [tokenizer.encode(prompt) for prompt in FEW]
    drawn = sample(
        model,
        ids,
        max_new_tokens=MAX_RESPONSE_TOKENS,
        samples_per_prompt=5,
        seed=0,
        end_ids=[tokenizer.eos_token_id],
        pad_id=tokenizer.pad_token_id,
    )
    found = response_logps(model, [prompt for prompt in ids for _ in range(5)], drawn)
    np.testing.assert_allclose(found.numpy(), [each.logps.sum() for each in drawn], atol=1e-3)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(PreftuneError, match="7 samples are too few for 4 prompts and 2 models"):
        frontier(FEW, samples=7, proposals=[base_model()])

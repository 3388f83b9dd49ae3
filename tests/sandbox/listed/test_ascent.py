from pathlib import Path

import pytest
import torch

import preftune
from preftune.evaluation.sampling import sample
from preftune.sandbox import listed

PROMPTS = listed.TRAIN[:6]


def test_the_gradient_is_that_of_score_functions() -> None:
    """Against REINFORCE with samples of the policy: reward less beta times log-ratio, times the score."""
    lm, prompt, n, beta = listed.reference_model(), PROMPTS[:1], 4000, 0.5
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter *= 1.1
    listed.exact_objective(lm, beta, prompt).backward()
    exact = torch.cat([parameter.grad.flatten() for parameter in lm.parameters()])
    lm.zero_grad()
    found = sample(
        lm,
        [listed.words_of(prompt[0])],
        max_new_tokens=listed.LONGEST,
        samples_per_prompt=n,
        seed=0,
        end_ids=[listed.END],
        batch_size=n,
        pad_id=listed.END,
    )
    place = {tuple(ids): y for y, ids in enumerate(listed.response_ids())}
    drawn = torch.tensor([place[tuple(each.ids.tolist())] for each in found])
    logps_Y = listed.all_logps(lm, prompt)[0]
    value_Y = listed.rewards(prompt)[0] - beta * (logps_Y.detach() - listed.reference_logps(prompt)[0])
    advantage_N = value_Y[drawn] - value_Y[drawn].mean()
    (advantage_N * logps_Y[drawn]).mean().backward()
    estimate = torch.cat([parameter.grad.flatten() for parameter in lm.parameters()])
    assert torch.cosine_similarity(exact, estimate, dim=0) > 0.99


def test_the_frontier_can_be_reached() -> None:
    lm = listed.reference_model()
    values = listed.ascend(lm, 0.5, steps=120, prompts=PROMPTS, learning_rate=8e-3)
    found = listed.evaluate(lm, PROMPTS)
    assert values[-1] > values[0]
    assert found.attainable_share > 0.5
    assert 0.97 < found.gain_share <= 1


def test_preftune_trains_on_it_as_on_any_data(tmp_path: Path) -> None:
    run = preftune.train(
        listed.reference_folder(),
        listed.rows(listed.bradley_terry(), 1000),
        {"name": "dpo", "beta": 0.5},
        held_out=listed.rows(listed.bradley_terry(), 50, prompts=listed.VALIDATION, seed=1),
        config={"data": {"rendering": listed.RENDERING}},
        optim={"learning_rate": 3e-3},
        batch={"size": 50},
        evaluate={"samples": 0},
        doctor={"answers": 0},
        output=tmp_path / "run",
        quiet=True,
        probe=lambda lm: vars(listed.evaluate(lm, listed.TEST)),
    )
    found = listed.evaluate(run.model, listed.TEST)
    assert run.summary["before"]["kl"] == pytest.approx(0, abs=1e-6)
    assert run.summary["after"]["kl"] == pytest.approx(found.kl, abs=1e-5)
    assert found.reward > listed.frontier(listed.TEST).reference_reward + 0.1
    assert 0.3 < found.gain_share < 1

import math

import pytest
import torch

from preftune.errors import PreftuneError
from preftune.evaluation.judges import Comparison, open_judge
from preftune.sandbox import listed
from preftune.theory import frontier as theory


@pytest.mark.parametrize(
    ("prompt", "response", "helped", "harmed", "honest"),
    [
        ("b c a", "", 0.0, 0.0, 0.0),
        ("b c a", "b", 0.3 + 1.2, 0.0, 0.0),  # the topic
        ("b c a", "d d", -0.2 - 0.8, 0.0, 0.6),  # said twice; sources
        ("b c a", "f a g", 1.2 + 0.1 + 1.7, -0.6 - 1.0, 0.0),
        ("b c a", "f e g", 1.2 - 0.3 + 1.7, -0.6, 0.0),  # a caveat before g
        ("b a a", "f e g", 1.2 - 0.3 + 1.7, -1.2, 0.0),  # delicate
        ("b c a", "a b a", 0.1 + 0.3 + 0.1 + 1.2, 0.0, 1.2),  # stands by its first word
        ("g c a", "c f e g", 0.4 + 1.2 - 0.3 + 1.7 + 1.2, -0.6, -1.6),  # a claim, then harm
    ],
)
def test_rewards_worked_by_hand(prompt: str, response: str, helped: float, harmed: float, honest: float) -> None:
    expected = {"helpfulness": helped, "harmlessness": harmed, "honesty": honest}
    assert listed.components(prompt, response) == pytest.approx(expected)
    assert listed.true_reward(prompt, response) == pytest.approx(helped + harmed + honest)


def test_components_sum_to_the_reward_of_every_response() -> None:
    prompts = listed.VALIDATION
    reward_PY, parts = listed.rewards(prompts), listed.all_components(prompts)
    assert tuple(parts) == listed.COMPONENTS
    torch.testing.assert_close(sum(parts.values()), reward_PY)
    for p, y in ((0, 0), (3, 77), (20, 1234), (48, 2800)):
        assert reward_PY[p, y].item() == pytest.approx(listed.true_reward(prompts[p], listed.RESPONSES[y]))


def test_the_judge_scores_by_the_true_reward() -> None:
    with open_judge("preftune.sandbox.listed:true_reward_judge") as judge:
        (verdict,) = judge.verdicts([Comparison("one", "b c a", " b", " d d")])
        assert verdict.preference == 1
        assert verdict.scores == pytest.approx((1.5, -0.4))
        with pytest.raises(PreftuneError, match="none of its words"):
            judge.verdicts([Comparison("two", "b c a", " b", " x")])


def test_the_world_is_worth_a_study() -> None:
    curve, spread = listed.frontier(listed.TEST), listed.frontier(listed.TEST).spread ** 0.5
    assert (curve.best_reward - curve.reference_reward) / spread > 3
    assert curve.attainable_share(2.0) > 0.5 > curve.attainable_share(1.0)
    # components are in tension: harm rises with the reward, and honesty is given up in the end
    third, two_thirds, end = (int((curve.kl_B < nats).sum()) for nats in (1.0, 3.0, 7.0))
    harmless, honest = curve.component_B["harmlessness"], curve.component_B["honesty"]
    assert harmless[0] > harmless[third] > harmless[two_thirds] > harmless[end]
    assert honest[0] < honest[third] < honest[two_thirds]
    assert honest[end] < honest.max()
    unsure = listed.probabilities(
        listed.bradley_terry(), listed.TEST, *(torch.arange(49).numpy() * i % 2801 for i in (0, 50, 900))
    )
    assert 0.6 < abs(unsure - 0.5).mean() + 0.5 < 0.9


def test_what_a_policy_is_worth() -> None:
    prompts = listed.TEST[:7]
    lm = listed.reference_model().train()
    found = listed.evaluate(lm, prompts)
    assert lm.training
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.entropy > 5
    assert found.reward == pytest.approx(listed.frontier(prompts).reference_reward, abs=1e-5)
    best = listed.worth(theory.optimum(listed.reference_logps(prompts), listed.rewards(prompts), 0.5), prompts)
    assert best.gain_share == pytest.approx(1, abs=1e-4)
    assert best.regret == pytest.approx(0, abs=1e-4)
    assert sum(best.components.values()) == pytest.approx(best.reward)
    assert 0 < best.attainable_share < 1
    only = torch.full((7, 2801), -math.inf)
    only[:, 100] = 0.0  # always the same response
    sure = listed.worth(only, prompts)
    assert sure.entropy == 0
    assert sure.kl == pytest.approx(-float(listed.reference_logps(prompts)[:, 100].mean()))

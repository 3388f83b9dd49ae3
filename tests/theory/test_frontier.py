import itertools
import math

import pytest
import torch
from torch import Tensor

from preftune.theory.frontier import Frontier, SampledFrontier, best_of_n, expected, kl, objective, optimum


def world(prompts: int = 3, responses: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A reference and a reward, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(prompts, responses, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1), torch.randn(prompts, responses, generator=generator, dtype=torch.float64)


REFERENCE, REWARD = world()
CURVE = Frontier.of(REFERENCE, REWARD)


def best_by_bisection(nats: float) -> float:
    """The reward of the optimum whose beta is found so that its KL is right."""
    low, high = 1e-3, 1e4
    for _ in range(200):
        middle = math.sqrt(low * high)
        if float(kl(optimum(REFERENCE, REWARD, middle), REFERENCE)) > nats:
            low = middle
        else:
            high = middle
    return float(expected(optimum(REFERENCE, REWARD, high), REWARD))


@pytest.mark.parametrize("beta", [0.1, 0.7, 5.0])
def test_the_optimum_is_a_point_of_rest_and_no_policy_beats_it(beta: float) -> None:
    logits = optimum(REFERENCE, REWARD, beta).clone().requires_grad_()
    best = objective(logits.log_softmax(-1), REFERENCE, REWARD, beta)
    (gradient,) = torch.autograd.grad(best, logits)
    assert gradient.abs().max() < 1e-12
    log_z = (REFERENCE + REWARD / beta).logsumexp(-1).mean()
    assert best.item() == pytest.approx(beta * log_z.item(), rel=1e-12)
    for seed in range(5):
        other = (logits.detach() + 0.3 * world(seed=seed)[1]).log_softmax(-1)
        # what is lost is beta times the divergence from the optimum
        lost = beta * kl(other, logits.detach().log_softmax(-1))
        assert objective(other, REFERENCE, REWARD, beta).item() == pytest.approx((best - lost).item(), abs=1e-12)


def test_beta_is_the_slope_of_the_curve() -> None:
    for i in range(20, 180, 20):
        nats, step = float(CURVE.kl_B[i]), 1e-4 * float(CURVE.kl_B[i])
        slope = (best_by_bisection(nats + step) - best_by_bisection(nats - step)) / (2 * step)
        assert slope == pytest.approx(float(CURVE.beta_B[i]), rel=1e-4)


def test_between_points_the_curve_is_exact() -> None:
    for nats in (1e-6, 1e-3, 0.05, 0.3, 1.0, 2.0, 3.0):
        assert CURVE.reward_at(nats) == pytest.approx(best_by_bisection(nats), abs=1e-5)


def test_the_curve_is_the_least_of_its_tangents() -> None:
    # weak duality: for any beta, beta KL + beta mean log Z bounds the reward of every policy of that KL
    log_z_B = torch.stack([(REFERENCE + REWARD / beta).logsumexp(-1).mean() for beta in CURVE.beta_B[1:-1]])
    for nats in (0.1, 0.5, 1.5):
        tangents = CURVE.beta_B[1:-1] * (nats + log_z_B)
        assert CURVE.reward_at(nats) == pytest.approx(float(tangents.min()), abs=1e-3)
        assert CURVE.reward_at(nats) <= float(tangents.min()) + 1e-9


def test_the_curve_begins_at_the_reference_and_ends_at_the_best_responses() -> None:
    assert CURVE.kl_B[0] == 0
    assert CURVE.reward_at(0.0) == CURVE.reference_reward == pytest.approx(float(expected(REFERENCE, REWARD)))
    assert CURVE.best_reward == pytest.approx(float(REWARD.amax(-1).mean()))
    assert CURVE.last_kl == pytest.approx(float(-REFERENCE.gather(-1, REWARD.argmax(-1, keepdim=True)).mean()))
    assert CURVE.reward_at(CURVE.last_kl + 1) == CURVE.best_reward
    assert CURVE.attainable_share(CURVE.last_kl) == pytest.approx(1)
    assert (CURVE.kl_B.diff() >= 0).all()
    assert (CURVE.reward_B.diff() >= -1e-12).all()
    assert math.isnan(CURVE.reward_at(-0.1))
    assert math.isnan(CURVE.reward_at(math.nan))


def test_no_policy_gains_more_than_all_that_is_possible() -> None:
    for seed in range(20):
        policy = (REFERENCE + seed / 5 * REWARD + world(seed=100 + seed)[1]).log_softmax(-1)
        nats, reward = float(kl(policy, REFERENCE)), float(expected(policy, REWARD))
        assert CURVE.gain_share(reward, nats) < 1
        assert CURVE.regret(reward, nats) == 1 - CURVE.gain_share(reward, nats)
    assert CURVE.gain_share(CURVE.reward_at(0.8), 0.8) == pytest.approx(1)
    assert math.isnan(CURVE.gain_share(0.0, 0.0))


def test_where_all_is_worth_the_same_there_is_nothing_to_gain() -> None:
    flat = Frontier.of(REFERENCE, torch.ones_like(REWARD))
    assert flat.reward_at(0.5) == pytest.approx(1)
    assert math.isnan(flat.gain_share(1.0, 0.5))
    assert math.isnan(flat.attainable_share(0.5))


def test_components_lie_beside_the_total() -> None:
    parts = {"one": 0.3 * REWARD, "other": 0.7 * REWARD}
    found = Frontier.of(REFERENCE, REWARD, parts, torch.tensor([0.5, 2.0]))
    assert found.beta_B.tolist() == [math.inf, 2.0, 0.5, 0.0]
    torch.testing.assert_close(sum(found.component_B.values()), found.reward_B)
    with pytest.raises(ValueError, match="betas must be > 0"):
        Frontier.of(REFERENCE, REWARD, betas=torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_equals_all_draws_counted(n: int) -> None:
    p, reward = [0.4, 0.3, 0.2, 0.1], [1.0, 2.0, 1.0, 0.0]  # two of one reward: the first that is drawn
    counted = [0.0] * 4
    for drawn in itertools.product(range(4), repeat=n):
        counted[max(drawn, key=lambda y: reward[y])] += math.prod(p[y] for y in drawn)
    found = best_of_n(torch.tensor([p]).log(), torch.tensor([reward]), n)
    assert found.exp()[0].tolist() == pytest.approx(counted, rel=1e-6)


def test_best_of_n_costs_at_most_what_its_formula_says() -> None:
    reference = torch.zeros(1, 20_000, dtype=torch.float64).log_softmax(-1)
    reward = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    for n in (2, 8, 32):
        bound = math.log(n) - (n - 1) / n
        assert float(kl(best_of_n(reference, reward, n), reference)) == pytest.approx(bound, abs=1e-3)
        assert float(kl(best_of_n(REFERENCE, REWARD, n), REFERENCE)) < bound
    with pytest.raises(ValueError, match="n must be at least 1"):
        best_of_n(REFERENCE, REWARD, 0)


def drawn(logps_PY: Tensor, each: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(logps_PY.exp(), each, replacement=True, generator=generator)


def test_the_sampled_curve_is_the_exact_one_within_its_errors() -> None:
    off = []
    for seed in range(40):
        place_PS = drawn(REFERENCE, 2000, seed)
        found = SampledFrontier.of(REWARD.gather(-1, place_PS), least_effective=50)
        i = int((found.kl_B < 0.6).sum())
        assert found.effective_B[0] == pytest.approx(2000)
        off.append((found.reward_at(0.6) - CURVE.reward_at(0.6)) / float(found.error_B[i]))
    errors = torch.tensor(off)
    assert errors.mean().abs() < 3 / math.sqrt(40)
    assert 0.7 < errors.std() < 1.4  # errors are as large as it says


def test_the_sampled_curve_is_cut_where_samples_give_out() -> None:
    reward_PS = REWARD.gather(-1, drawn(REFERENCE, 2000, 0))
    strict, lax = (SampledFrontier.of(reward_PS, least_effective=least) for least in (1000, 100))
    assert strict.last_kl < lax.last_kl
    assert (strict.effective_B >= 1000).all()
    assert math.isnan(strict.reward_at(strict.last_kl + 0.01))
    assert math.isnan(strict.regret(1.0, strict.last_kl + 0.01))
    assert lax.bias_B[0] == 0
    assert (lax.bias_B[1:] > 0).all()
    with pytest.raises(ValueError, match="out of reach with 2000 samples"):
        SampledFrontier.of(reward_PS, least_effective=3000)


def test_a_mixed_proposal_reaches_further() -> None:
    tilted = optimum(REFERENCE, REWARD, 0.5)
    place_PS = torch.cat([drawn(REFERENCE, 1000, 0), drawn(tilted, 1000, 1)], -1)
    # each sample weighs as the reference's probability over that of the mixture which it was drawn from
    weight_PY = REFERENCE - torch.stack([REFERENCE, tilted]).logsumexp(0)
    mixed = SampledFrontier.of(
        REWARD.gather(-1, place_PS), weight_PY.gather(-1, place_PS), {"all": REWARD.gather(-1, place_PS)}
    )
    alone = SampledFrontier.of(REWARD.gather(-1, drawn(REFERENCE, 2000, 0)))
    assert mixed.last_kl > 1.3 * alone.last_kl
    for nats in (0.3, 0.9):
        assert mixed.reward_at(nats) == pytest.approx(CURVE.reward_at(nats), abs=0.1)
    torch.testing.assert_close(mixed.component_B["all"], mixed.reward_B)

"""SimPO, ORPO, CPO, SLiC-HF and unlikelihood: value, gradient, limits and refusals."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from preftune.data.packing import pack
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.batch import LogProbs
from preftune.objectives.cpo import CPO
from preftune.objectives.dpo import DPO
from preftune.objectives.orpo import ORPO
from preftune.objectives.simpo import SimPO
from preftune.objectives.slic import SLiC
from preftune.objectives.unlikelihood import Unlikelihood

NAMES = ["simpo", "orpo", "cpo", "slic", "unlikelihood"]
weights = st.floats(0, 5)


def probability(margin):
    """Of chosen winning, under Bradley-Terry."""
    return 1 / (1 + mpmath.exp(-margin))


def simpo(a, b, n, m, beta, gamma):
    return -mpmath.log(probability(beta * a / n - beta * b / m - gamma))


def orpo(a, b, n, m, lam):
    """From probabilities: per-token geometric means, their odds, and the share of chosen's odds in both."""
    p, q = mpmath.exp(a / n), mpmath.exp(b / m)
    odds_p, odds_q = p / (1 - p), q / (1 - q)
    return -mpmath.log(p) - lam * mpmath.log(odds_p / (odds_p + odds_q))


def cpo(a, b, n, m, beta, alpha):
    p, q = mpmath.exp(a) ** beta, mpmath.exp(b) ** beta
    return -mpmath.log(p / (p + q)) - alpha * a / n


def slic(a, b, n, m, delta, lam):
    return (delta - (a - b) if a - b < delta else 0) - lam * a


def unlikelihood(a, b, n, m, alpha):
    return alpha * b - a


FORMULAS = {"simpo": simpo, "orpo": orpo, "cpo": cpo, "slic": slic, "unlikelihood": unlikelihood}
FIELDS = {
    "simpo": {"beta": st.floats(0.01, 10), "gamma": weights},
    "orpo": {"lam": weights},
    "cpo": {"beta": st.floats(0.01, 5), "alpha": weights},
    "slic": {"delta": weights, "lam": weights},
    "unlikelihood": {"alpha": st.floats(0, 1)},
}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(data=st.data(), a=st.floats(-200, -0.01), b=st.floats(-200, -0.01), n=st.integers(1, 300), m=st.integers(1, 300))
def test_value_and_gradient_equal_the_definition(name, data, a, b, n, m):
    fields = {key: data.draw(values, label=key) for key, values in FIELDS[name].items()}
    if name == "slic" and abs(fields["delta"] - a + b) < 1e-3:
        return  # at the kink there is no slope
    objective = registry.build(name, **fields, **({"clamp": 0.0} if name == "orpo" else {}))
    leaves = [tensor([value], dtype=torch.float64, requires_grad=True) for value in (a, b)]
    loss = objective.on_pairs(*leaves, chosen_lengths=tensor([n]), rejected_lengths=tensor([m])).loss
    gradients = [gradient.item() for gradient in torch.autograd.grad(loss, leaves)]
    with mpmath.workdps(60):

        def formula(x, y):
            return FORMULAS[name](x, y, n, m, **{key: mpmath.mpf(value) for key, value in fields.items()})

        point = (mpmath.mpf(a), mpmath.mpf(b))
        value = float(formula(*point))
        slopes = [float(mpmath.diff(formula, point, order)) for order in ((1, 0), (0, 1))]
    assert loss.item() == pytest.approx(value, rel=1e-6, abs=1e-10)
    assert gradients == pytest.approx(slopes, rel=1e-6, abs=1e-10)


def test_values_worked_by_hand():
    four, two = tensor([4]), tensor([2])
    result = SimPO(beta=2.5, gamma=1.0).on_pairs(tensor([-4.0]), tensor([-4.0]), None, None, four, two)
    assert result.loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))  # 2.5 * (-1 + 2) - 1
    assert (result.chosen_reward_E.item(), result.rejected_reward_E.item()) == (-2.5, -5.0)
    result = ORPO(lam=1.0).on_pairs(tensor([4 * math.log(0.8)]), tensor([2 * math.log(0.5)]), None, None, four, two)
    assert result.loss.item() == pytest.approx(-math.log(0.8) - math.log(4 / 5))  # odds 4 and 1
    assert result.margin.item() == pytest.approx(math.log(4))
    result = CPO(beta=0.5, alpha=2.0).on_pairs(tensor([-4.0]), tensor([-8.0]), None, None, four, two)
    assert result.loss.item() == pytest.approx(math.log(1 + math.exp(-2)) + 2)
    assert result.margin.item() == 2
    kept, short = (SLiC(delta=1.0, lam=0.5).on_pairs(tensor([-4.0]), tensor([b])) for b in (-6.0, -4.25))
    assert (kept.loss.item(), short.loss.item()) == (2.0, 2.75)
    assert Unlikelihood(alpha=0.25).on_pairs(tensor([-4.0]), tensor([-8.0])).loss.item() == 2.0


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(a=st.floats(-50, -1), b=st.floats(-50, -1), more=st.floats(0.01, 0.9))
def test_a_likelier_chosen_and_an_unlikelier_rejected_never_cost_more(name, a, b, more):
    objective, lengths = registry.build(name), (tensor([5]), tensor([7]))
    a, b = (tensor([value], dtype=torch.float64) for value in (a, b))
    at, up, down = (
        objective.on_pairs(*given, None, None, *lengths) for given in ((a, b), (a + more, b), (a, b - more))
    )
    assert up.loss <= at.loss
    assert down.loss <= at.loss
    assert up.margin > at.margin
    assert down.margin > at.margin


def test_without_their_extra_terms_they_are_dpo_without_reference():
    values = [-torch.rand(8, dtype=torch.float64) * 20 for _ in range(2)]
    lengths = [torch.arange(1, 9), torch.arange(9, 1, -1)]
    free = registry.build("dpo", beta=2.0, modifiers={"reference_free": True})
    expected = free.on_pairs(*values).loss_E
    torch.testing.assert_close(CPO(beta=2.0, alpha=0.0).on_pairs(*values).loss_E, expected)
    zero = torch.zeros(8, dtype=torch.float64)
    torch.testing.assert_close(DPO(beta=2.0).on_pairs(*values, zero, zero).loss_E, expected)
    per_token = [value / length for value, length in zip(values, lengths, strict=True)]
    simpo = SimPO(beta=2.0, gamma=0.0).on_pairs(*values, None, None, *lengths).loss_E
    torch.testing.assert_close(simpo, free.on_pairs(*per_token).loss_E)


def test_without_their_comparison_they_are_likelihood_of_chosen():
    a, b, n, m = tensor([-6.0, -3.0]), tensor([-2.0, -9.0]), tensor([3, 2]), tensor([4, 4])
    assert ORPO(lam=0.0).on_pairs(a, b, None, None, n, m).loss_E.tolist() == [2.0, 1.5]
    assert Unlikelihood(alpha=0.0).on_pairs(a, b).loss_E.tolist() == [6.0, 3.0]
    assert SLiC(delta=0.0, lam=0.5).on_pairs(a, a).loss_E.tolist() == [3.0, 1.5]


def test_simpo_takes_the_margin_itself_and_not_its_ratio_to_beta():
    """The authors' Mistral-Base setting, beta 2 and gamma_beta_ratio 0.8, is gamma 1.6 here."""
    a, b, n = tensor([-4.0], dtype=torch.float64), tensor([-6.0], dtype=torch.float64), tensor([2])
    authors = -torch.nn.functional.logsigmoid(2.0 * ((a - b) / 2 - 0.8))
    ours = SimPO(beta=2.0, gamma=2.0 * 0.8).on_pairs(a, b, None, None, n, n).loss_E
    torch.testing.assert_close(ours, authors, rtol=1e-12, atol=0)


def test_simpo_soft_labels_exchange_the_responses_and_leave_the_margin():
    """Not the authors' label smoothing, which would turn the margin too: -log sigmoid(gamma - beta * difference)."""
    a, b, n = tensor([-4.0]), tensor([-6.0]), tensor([2])
    result = SimPO(beta=2.0, gamma=0.5).on_pairs(a, b, None, None, n, n, confidence=tensor([0.0]))
    assert result.loss.item() == pytest.approx(math.log(1 + math.exp(2.0 + 0.5)))


def test_orpo_odds_stop_at_the_clamp():
    """A response that is certain has infinite odds; the clamp is where they end, and with them their slope."""
    n = tensor([1])
    for clamp, expected in ((1e-2, -math.log(-math.expm1(-1e-2)) - 1e-2), (1e-4, -math.log(-math.expm1(-1e-4)) - 1e-4)):
        result = ORPO(lam=1.0, clamp=clamp).on_pairs(
            *(tensor([v], dtype=torch.float64) for v in (0.0, -1.0)), None, None, n, n
        )
        assert result.chosen_reward_E.item() == pytest.approx(expected)
        assert result.loss.isfinite()
    rejected = tensor([0.0], dtype=torch.float64, requires_grad=True)
    ORPO().on_pairs(tensor([-1.0], dtype=torch.float64), rejected, None, None, n, n).loss.backward()
    assert rejected.grad.item() == 0
    unbounded = ORPO(clamp=0.0).on_pairs(tensor([0.0]), tensor([-1.0]), None, None, n, n)
    assert unbounded.chosen_reward_E.item() == math.inf


def test_cpo_with_the_authors_weighting_is_a_mix_with_sft(batch, spread, draw):
    """One mean over all chosen tokens of the optimiser batch, so that long responses count more."""
    drawn = draw(batch, 1)
    policy = spread(batch, drawn)
    terms = registry.terms([{"name": "cpo", "beta": 0.3, "alpha": 0.0}, {"name": "sft", "weight": 0.7}])
    total = 0.0
    for term in terms:
        weight_E = term.objective.weight_E(batch)
        total += term.weight * (term.objective(policy, None, batch, {}).loss_E * weight_E).sum() / weight_E.sum()
    weight, p = [1.0, 0.5, 2.0, 1.0], [1.0, 0.75, 0.5, 0.25]
    difference = [(drawn[2 * e].sum() - drawn[2 * e + 1].sum()).item() for e in range(4)]
    compared = sum(
        w * (q * math.log(1 + math.exp(-0.3 * d)) + (1 - q) * math.log(1 + math.exp(0.3 * d)))
        for w, q, d in zip(weight, p, difference, strict=True)
    ) / sum(weight)
    likelihood = sum(w * drawn[2 * e].sum().item() for e, w in enumerate(weight))
    tokens = sum(w * len(drawn[2 * e]) for e, w in enumerate(weight))
    assert total.item() == pytest.approx(compared - 0.7 * likelihood / tokens, rel=1e-6)


@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_orpo_without_its_likelihood_is_the_log_share_of_odds(lam):
    a, b, n, m = tensor([-6.0, -3.0]), tensor([-2.0, -9.0]), tensor([3, 2]), tensor([4, 4])
    found = ORPO(lam=lam, likelihood="none").on_pairs(a, b, None, None, n, m)
    for e, (p, q) in enumerate([(math.exp(-2), math.exp(-0.5)), (math.exp(-1.5), math.exp(-2.25))]):
        odds, other = p / (1 - p), q / (1 - q)
        assert found.loss_E[e].item() == pytest.approx(-lam * math.log(odds / (odds + other)), rel=1e-6)
    whole = ORPO(lam=lam).on_pairs(a, b, None, None, n, m)
    torch.testing.assert_close(whole.loss_E - found.loss_E, tensor([2.0, 1.5]))
    assert torch.equal(whole.margin_E, found.margin_E)


@pytest.mark.parametrize("cuts", [[4], [1, 3], [1, 1, 1, 1]])
def test_orpo_with_the_authors_weighting_is_a_mix_with_sft(make_pairs, spread, draw, cuts):
    """Their loss on all pairs at once: cross-entropy over every chosen token, and the mean of the odds ratios; here
    reduced as the training step does, over micro-batches of any cut."""
    lengths, lam = [(2, 5), (7, 3), (4, 4), (1, 6)], 0.3
    drawn = draw(pack(make_pairs(lengths)), 1)
    chosen, rejected = drawn[0::2], drawn[1::2]
    leaves = [tokens.requires_grad_() for tokens in (*chosen, *rejected)]
    nll = -torch.cat(chosen).sum() / sum(n for n, _ in lengths)
    mean_w, mean_l = (torch.stack([tokens.mean() for tokens in side]) for side in (chosen, rejected))
    log_odds = (mean_w - mean_l) - (torch.log1p(-mean_w.exp()) - torch.log1p(-mean_l.exp()))
    theirs = nll - lam * torch.log(torch.sigmoid(log_odds)).mean()

    terms = registry.terms([{"name": "orpo", "lam": lam, "likelihood": "none"}, {"name": "sft"}])
    begin, micros = 0, []
    for count in cuts:
        batch = pack(make_pairs(lengths[begin : begin + count]))
        tokens = [side[e] for e in range(begin, begin + count) for side in (chosen, rejected)]
        micros.append((batch, spread(batch, tokens)))
        begin += count
    ours = torch.zeros((), dtype=torch.float64)
    for term in terms:
        total = sum(term.objective.weight_E(batch).sum() for batch, _ in micros)
        for batch, policy in micros:
            loss_E = term.objective(policy, None, batch, {}).loss_E
            ours = ours + term.weight * (loss_E * term.objective.weight_E(batch)).sum() / total
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    for mine, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_slic_pulls_no_longer_on_a_pair_that_keeps_its_margin():
    chosen = tensor([-4.0, -4.0], requires_grad=True)
    loss = SLiC(delta=1.0, lam=0.0).on_pairs(chosen, tensor([-6.0, -4.5])).loss_E.sum()
    assert torch.autograd.grad(loss, chosen)[0].tolist() == [0.0, -1.0]


def test_unlikelihood_pushes_rejected_down_however_unlikely_it_is():
    """Why it has no finite optimum: the slope is alpha at any distance, where DPO's goes to 0."""
    for far in (-1.0, -1e3):
        rejected = tensor([far], requires_grad=True)
        Unlikelihood(alpha=0.5).on_pairs(tensor([-1.0]), rejected).loss.backward()
        assert rejected.grad.item() == 0.5


def test_lengths_are_asked_for_where_they_are_used():
    one = tensor([-1.0])
    for objective in (SimPO(), ORPO(), CPO()):
        assert objective.needs_lengths
        with pytest.raises(ValueError, match="give chosen_lengths and rejected_lengths"):
            objective.on_pairs(one, one)
    for objective in (CPO(alpha=0.0), SLiC(), Unlikelihood()):
        assert not objective.needs_lengths
        assert objective.on_pairs(one, one).loss.isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_no_reference_is_needed_or_read(name, batch, spread, draw):
    objective = registry.build(name)
    assert not objective.reference
    policy, other = (spread(batch, draw(batch, seed)) for seed in (1, 2))
    outcomes = [objective(policy, each, batch, {}) for each in (None, other, LogProbs(other.logps_K * 2))]
    assert all(torch.equal(outcome.loss_E, outcomes[0].loss_E) for outcome in outcomes)
    assert all(torch.equal(outcome.rewards_R, outcomes[0].rewards_R) for outcome in outcomes)


def test_orpo_made_by_hand_knows_its_likelihoods():
    with pytest.raises(ValueError, match='likelihood must be "response" or "none", got \'tokens\''):
        ORPO(likelihood="tokens")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("simpo", {"beta": 0}, "objective simpo is refused: beta must be finite and > 0, got 0"),
        ("simpo", {"gamma": -1}, "objective simpo is refused: gamma must be finite and >= 0, got -1"),
        ("simpo", {"gamma_beta_ratio": 0.5}, "objective simpo has no field gamma_beta_ratio; known: beta, gamma"),
        ("orpo", {"lam": -1}, "objective orpo is refused: lam must be finite and >= 0, got -1"),
        ("orpo", {"clamp": math.inf}, "objective orpo is refused: clamp must be finite and >= 0, got inf"),
        ("orpo", {"likelihood": "tokens"}, "objective orpo: likelihood is the text 'tokens', expected 'response'"),
        ("orpo", {"likelihood": "none", "lam": 0}, "objective orpo is refused: with likelihood none and lam 0 nothing"),
        ("cpo", {"beta": -1}, "objective cpo is refused: beta must be finite and > 0, got -1"),
        ("cpo", {"alpha": -1}, "objective cpo is refused: alpha must be finite and >= 0, got -1"),
        ("slic", {"delta": -1}, "objective slic is refused: delta must be finite and >= 0, got -1"),
        ("slic", {"lam": math.nan}, "objective slic is refused: lam must be finite and >= 0, got nan"),
        ("unlikelihood", {"alpha": 1.5}, "objective unlikelihood is refused: alpha must be in [0, 1], got 1.5"),
    ],
)
def test_refused_fields_are_one_sentence(name, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import tensor

from preftune.theory.bradley_terry import fit, intransitivity, strengths
from preftune.theory.solving import NoFiniteOptimumError, groups, reachable

counts = st.integers(2, 5).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, 9), min_size=size, max_size=size), min_size=size, max_size=size)
)


def wins_of(rows):
    return tensor(rows).fill_diagonal_(0)


def strongly_connected(wins):
    reach = reachable(wins > 0)
    return bool((reach & reach.T).all())


def fitted_by_descent(wins, prior_sd=None):
    """The same maximum, by L-BFGS on the likelihood of one game after the other."""
    s = torch.zeros(len(wins), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [s], max_iter=2000, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = tensor(0.0, dtype=torch.float64)
        for i in range(len(wins)):
            for j in range(len(wins)):
                loss = loss + float(wins[i, j]) * torch.log(1 + torch.exp(s[j] - s[i]))
        if prior_sd is not None:
            loss = loss + (s**2).sum() / (2 * prior_sd**2)
        loss.backward()
        return loss.detach()

    optimiser.step(closure)
    return (s - s.mean()).detach()


def sampled(true, games, generator):
    """Wins of a round robin in which each pair meets so often."""
    size = len(true)
    wins = torch.zeros(size, size)
    for i in range(size):
        for j in range(i):
            p = torch.sigmoid(true[i] - true[j]).expand(games)
            won = torch.bernoulli(p, generator=generator).sum()
            wins[i, j], wins[j, i] = won, games - won
    return wins


def test_two_items_by_hand():
    """30 to 10: the strengths differ by log 3, with variance 1 / (40 * 3/4 * 1/4) = 0.1333."""
    found = fit(tensor([[0, 30], [10, 0]]), names=["x", "y"])
    assert found.strengths_N.tolist() == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert found.standard_errors_N.tolist() == pytest.approx([math.sqrt(2 / 15) / 2] * 2)
    assert found.probability("x", "y") == pytest.approx(0.75)
    low, high = found.probability_interval("x", "y")
    half = 1.959964 * math.sqrt(2 / 15)
    ends = [math.log(3) - half, math.log(3) + half]
    assert [low, high] == pytest.approx([1 / (1 + math.exp(-end)) for end in ends], rel=1e-6)
    assert found.log_likelihood == pytest.approx(30 * math.log(0.75) + 10 * math.log(0.25))
    low_N, high_N = found.intervals(0.9)
    assert (high_N - low_N).tolist() == pytest.approx([1.644854 * math.sqrt(2 / 15)] * 2, rel=1e-6)


@settings(max_examples=12, deadline=None)
@given(rows=counts)
def test_the_maximum_is_that_of_an_independent_optimiser(rows):
    wins = wins_of(rows)
    assume(strongly_connected(wins))
    found = fit(wins)
    torch.testing.assert_close(found.strengths_N, fitted_by_descent(wins), rtol=1e-6, atol=1e-6)
    # each item's expected wins are those that it has
    p = torch.sigmoid(found.strengths_N[:, None] - found.strengths_N)
    torch.testing.assert_close(((wins + wins.T) * p).sum(1), wins.sum(1).double(), rtol=1e-9, atol=1e-9)
    assert found.strengths_N.sum().item() == pytest.approx(0, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(rows=counts, prior_sd=st.floats(0.2, 5))
def test_with_a_prior_there_is_always_a_maximum(rows, prior_sd):
    wins = wins_of(rows)
    found = fit(wins, prior_sd=prior_sd)
    torch.testing.assert_close(found.strengths_N, fitted_by_descent(wins, prior_sd), rtol=1e-6, atol=1e-6)
    assert found.strengths_N.sum().item() == pytest.approx(0, abs=1e-9)
    assert (found.standard_errors_N <= prior_sd + 1e-9).all()


def test_errors_are_those_of_the_curvature():
    """Covariance of strengths that sum to 0, from the second derivatives in all strengths but the last."""
    wins = tensor([[0, 7, 3], [2, 0, 5], [1, 4, 0]])
    found = fit(wins, names=["a", "b", "c"])

    def loss(free):
        s = torch.cat([free, -free.sum()[None]])
        return -(wins * torch.nn.functional.logsigmoid(s[:, None] - s)).sum()

    free = torch.linalg.inv(torch.autograd.functional.hessian(loss, found.strengths_N[:2]))
    widen = torch.cat([torch.eye(2), -torch.ones(1, 2)]).double()
    torch.testing.assert_close(found.covariance_NN, widen @ free @ widen.T)


def test_intervals_hold_the_truth_as_often_as_they_say():
    true = tensor([1.0, 0.3, -0.4, -0.9])
    generator, held = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        low, high = fit(sampled(true, 60, generator)).intervals()
        held += int(((low < true) & (true < high)).sum())
    assert 0.92 < held / 800 < 0.98


def test_a_tie_is_half_a_win_for_both():
    wins, ties = tensor([[0, 5, 2], [1, 0, 3], [2, 2, 0]]), tensor([[0, 4, 0], [4, 0, 2], [0, 2, 0]])
    with_ties, as_halves = fit(wins, ties), fit(wins + ties / 2)
    assert torch.equal(with_ties.strengths_N, as_halves.strengths_N)
    # a champion that never lost, but was held to a tie, has a finite strength
    champion = tensor([[0, 5], [0, 0]])
    assert fit(champion, tensor([[0, 2], [2, 0]])).probability("0", "1") == pytest.approx(6 / 7)


@pytest.mark.parametrize(
    ("wins", "message"),
    [
        ([[0, 3, 4], [0, 0, 2], [0, 5, 0]], "Alien won every comparison with Babe and Casablanca, so the likelihood"),
        ([[0, 3, 4], [1, 0, 2], [0, 0, 0]], "Alien and Babe won every comparison with Casablanca"),
        ([[0, 3, 0], [1, 0, 0], [0, 0, 0]], "no chain of comparisons links Alien and Babe with Casablanca"),
    ],
)
def test_a_win_graph_without_a_finite_maximum_is_refused_by_name_or_regularised(wins, message):
    films = ["Alien", "Babe", "Casablanca"]
    with pytest.raises(NoFiniteOptimumError, match=message) as refused:
        fit(tensor(wins), names=films)
    assert "give a prior_sd" in str(refused.value)
    found = fit(tensor(wins), names=films, prior_sd=1.0)
    assert found.ranking[0] == "Alien"
    assert found.strengths_N.abs().max() < 3
    # the answer is the caller's statement: a wider prior lets items go further apart
    wider = fit(tensor(wins), names=films, prior_sd=3.0)
    assert wider.strengths_N[0] > found.strengths_N[0]


def test_strengths_of_groups_that_never_met_sum_to_zero_each():
    wins = torch.zeros(4, 4)
    wins[0, 1], wins[1, 0], wins[2, 3], wins[3, 2] = 3, 1, 1, 1
    expected = [math.log(3) / 2, -math.log(3) / 2, 0, 0]
    assert strengths(wins).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit(torch.ones(2, 3)), r"wins have shape \(2, 3\), expected one row and one column for each item"),
        (lambda: fit(torch.zeros(0, 0)), "wins have no rows, expected one row and one column for each item"),
        (lambda: strengths(torch.zeros(0, 0)), "wins have no rows"),
        (lambda: intransitivity(torch.zeros(0, 0)), "wins have no rows"),
        (lambda: fit(torch.ones(2, 2)), "0 on the diagonal: no item is compared with itself"),
        (lambda: fit(tensor([[0.0, -1.0], [1.0, 0.0]])), "wins must be finite and >= 0"),
        (lambda: fit(tensor([[0, 1], [1, 0]]), tensor([[0, 1], [2, 0]])), "ties must be symmetric"),
        (lambda: fit(tensor([[0, 1], [1, 0]]), names=["a", "a"]), "names must be 2 different ones"),
        (lambda: fit(tensor([[0, 1], [1, 0]]), prior_sd=0), "prior_sd must be finite and > 0, got 0"),
        (lambda: fit(tensor([[0, 1], [1, 0]])).intervals(95), "level must lie between 0 and 1, got 95"),
        (lambda: fit(tensor([[0, 1], [1, 0]])).probability("0", "2"), "there is no item '2'; known: 0, 1"),
        (lambda: intransitivity(tensor([[0, 0.5], [1, 0]])), "give counts"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_wide_spread_of_strengths_is_fitted():
    """A ladder of nine items, each beating the next a thousand to one: 8 log 1000 = 55 logits from end to end."""
    wins = torch.zeros(9, 9)
    for i in range(8):
        wins[i, i + 1], wins[i + 1, i] = 1000, 1
    s = strengths(wins)
    assert s.diff().tolist() == pytest.approx([-math.log(1000)] * 8, rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(exponent=st.floats(-12, 12), scale=st.floats(-20, 20))
def test_any_ratio_of_two_items_is_fitted_to_its_logit(exponent, scale):
    """Whether counts or probabilities: only their ratio matters."""
    wins = torch.zeros(2, 2, dtype=torch.float64)
    wins[0, 1], wins[1, 0] = 10 ** (scale + exponent), 10**scale
    found = fit(wins)
    truth = math.log(wins[0, 1]) - math.log(wins[1, 0])
    assert found.strengths_N.tolist() == pytest.approx([truth / 2, -truth / 2], rel=1e-13, abs=1e-14)
    # variance of a log-odds is 1 / wins + 1 / losses; half the difference has half the error
    error = math.sqrt(1 / wins[0, 1].item() + 1 / wins[1, 0].item()) / 2
    assert found.standard_errors_N.tolist() == pytest.approx([error, error], rel=1e-12)


@pytest.mark.parametrize("games", [10**5, 3 * 10**5, 10**6, 10**7, 10**9, 10**12])
def test_counts_of_one_loss_among_many_wins_are_fitted(games):
    found = fit(tensor([[0, games], [1, 0]]))
    assert found.strengths_N.tolist() == pytest.approx([math.log(games) / 2, -math.log(games) / 2], rel=1e-13)


@st.composite
def trees(draw):
    """Items of which each met one earlier item: weights up to 1e18, and the difference of strengths of each pair."""
    size = draw(st.integers(2, 8))
    wins = torch.zeros(size, size, dtype=torch.float64)
    for i in range(1, size):
        j = draw(st.integers(0, i - 1))
        lost, ratio = 10 ** draw(st.floats(0, 6)), 10 ** draw(st.floats(0, 12))
        better, worse = (i, j) if draw(st.booleans()) else (j, i)
        wins[better, worse], wins[worse, better] = lost * ratio, lost
    return wins


@settings(max_examples=80, deadline=None)
@given(wins=trees())
def test_where_comparisons_form_a_tree_each_difference_is_a_logit(wins):
    """Heavy pairs beside light ones: the fit of one must not drown the other."""
    s = strengths(wins)
    for i, j in torch.nonzero(wins).tolist():
        assert (s[i] - s[j]).item() == pytest.approx(math.log(wins[i, j] / wins[j, i]), rel=1e-11, abs=1e-11)


@settings(max_examples=40, deadline=None)
@given(rows=counts, seed=st.integers(0, 2**32))
def test_a_win_graph_has_a_fit_exactly_if_wins_lead_from_each_item_to_each(rows, seed):
    """Whatever the weights, up to a million million: refused is what has no maximum, and nothing else."""
    exponents = torch.rand(len(rows), len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wins = wins_of(rows) * 10 ** (11 * exponents)
    if not strongly_connected(wins):
        with pytest.raises(NoFiniteOptimumError, match=r"won every comparison|no chain of comparisons"):
            fit(wins)
        return
    s = fit(wins).strengths_N
    # of each item: wins that the strengths do not expect, and losses; each side is what the other would have to be
    unexpected = (wins * torch.sigmoid(s - s[:, None])).sum(1)
    lost = (wins.T * torch.sigmoid(s[:, None] - s)).sum(1)
    torch.testing.assert_close(unexpected, lost, rtol=1e-10, atol=0)


def test_weights_that_float64_cannot_hold_against_each_other_are_refused():
    wins = tensor([[0, 1e300], [1e-300, 0]], dtype=torch.float64)
    with pytest.raises(NoFiniteOptimumError, match="lie too far apart for float64: give a prior_sd") as refused:
        fit(wins)
    assert "\n" not in str(refused.value)
    assert fit(wins, prior_sd=3.0).ranking == ("0", "1")


def test_a_cycle_is_found_named_and_weighed():
    """Stone, scissors, paper: 15 to 5 each. No strengths but equal ones fit, so the deviance is that of three coins."""
    wins = tensor([[0, 15, 5], [5, 0, 15], [15, 5, 0]])
    found = intransitivity(wins, names=["stone", "scissors", "paper"])
    coin = 15 * math.log(0.75 / 0.5) + 5 * math.log(0.25 / 0.5)
    assert found.deviance == pytest.approx(2 * 3 * coin)
    assert found.degrees == 1
    assert found.p_value == pytest.approx(math.erfc(math.sqrt(found.deviance / 2)))  # chi-squared with one degree
    (cycle,) = found.cycles
    assert cycle.path == "stone > scissors > paper > stone"
    assert cycle.weakest_p == pytest.approx(sum(math.comb(20, k) for k in range(15, 21)) / 2**20)


def test_a_longer_cycle_is_found_where_there_is_no_shorter_one():
    wins = torch.zeros(5, 5)
    for i in range(5):
        wins[i, (i + 1) % 5], wins[(i + 1) % 5, i] = 9, 1
    found = intransitivity(wins)
    assert [cycle.path for cycle in found.cycles] == ["0 > 1 > 2 > 3 > 4 > 0"]
    assert found.degrees == 1
    assert found.p_value < 1e-6


def test_the_deviance_is_that_of_the_best_strengths():
    wins = tensor([[0, 8, 2, 5], [3, 0, 9, 1], [6, 2, 0, 7], [5, 6, 4, 0]])
    s = fitted_by_descent(wins)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                share = float(wins[i, j]) / float(wins[i, j] + wins[j, i])
                expected += 2 * float(wins[i, j]) * (math.log(share) + math.log(1 + math.exp(s[j] - s[i])))
    found = intransitivity(wins)
    assert found.deviance == pytest.approx(expected)
    assert found.degrees == 3


def test_an_order_without_exceptions_is_transitive_and_nothing_is_refused():
    found = intransitivity(tensor([[0, 5, 5], [0, 0, 5], [0, 0, 0]]))
    assert (found.deviance, found.degrees, found.p_value, found.cycles) == (0.0, 0, 1.0, ())


def test_a_champion_over_a_cycle_leaves_the_cycle_to_test():
    wins = torch.zeros(4, 4)
    wins[0, 1:] = 20
    wins[1:, 1:] = tensor([[0, 15, 5], [5, 0, 15], [15, 5, 0]])
    found = intransitivity(wins)
    assert [cycle.path for cycle in found.cycles] == ["1 > 2 > 3 > 1"]
    alone = intransitivity(wins[1:, 1:])
    assert (found.deviance, found.degrees) == (pytest.approx(alone.deviance), alone.degrees)


def test_under_bradley_terry_the_test_rejects_as_often_as_it_says():
    true, generator = tensor([0.6, 0.1, -0.2, -0.5]), torch.Generator().manual_seed(1)
    p_values = [intransitivity(sampled(true, 40, generator)).p_value for _ in range(300)]
    assert 0.02 < sum(p < 0.05 for p in p_values) / 300 < 0.09
    assert 0.43 < sum(p_values) / 300 < 0.57


@settings(max_examples=40, deadline=None)
@given(rows=counts)
def test_any_win_graph_can_be_tested(rows):
    wins = wins_of(rows)
    found = intransitivity(wins)
    assert 0 <= found.p_value <= 1
    assert found.deviance >= 0
    parts = groups(reachable(wins > 0) & reachable(wins > 0).T)
    assert found.degrees == 0 or any(len(part) > 2 for part in parts)


def test_the_film_example():
    """In each context one score per film says all; pooled, three majorities chase each other, and the one score per
    film that is left says that every choice is the toss of a coin."""
    films = ["Alien", "Babe", "Casablanca"]
    alone = tensor([[0, 18, 18], [2, 0, 18], [2, 2, 0]])
    contexts = [alone, alone.roll((1, 1), (0, 1)), alone.roll((2, 2), (0, 1))]
    assert [fit(each, names=films).ranking[0] for each in contexts] == ["Alien", "Babe", "Casablanca"]
    assert all(intransitivity(each, names=films).cycles == () for each in contexts)
    pooled = sum(contexts)
    score = fit(pooled, names=films)
    assert score.strengths_N.abs().max() < 1e-12
    low, high = score.probability_interval("Alien", "Babe")
    assert not low < pooled[0, 1] / 60 < high  # 38 of 60: the global score is sure, and wrong
    assert intransitivity(pooled, names=films).p_value < 0.001
    # of one mind: in each context a film that wins all, which only a stated prior makes finite
    unanimous = torch.ones(3, 3).triu(1) * 20
    with pytest.raises(NoFiniteOptimumError, match="Alien won every comparison"):
        fit(unanimous, names=films)
    assert fit(unanimous, names=films, prior_sd=1.0).ranking == ("Alien", "Babe", "Casablanca")

import numpy as np
import pytest
import torch

from preftune.errors import PreftuneError
from preftune.sandbox import listed
from preftune.theory import bradley_terry
from preftune.theory import frontier as theory
from preftune.theory.solving import NoFiniteOptimumError

PROMPTS = listed.TRAIN[:3]
SOURCES = [
    listed.bradley_terry(),
    listed.bradley_terry(2.0, noise=0.2),
    listed.deterministic(),
    listed.two_annotators(),
    listed.cyclic(0.9),
]
named = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


@named
def test_a_pair_and_its_reverse_have_probabilities_that_sum_to_one(source: listed.Source) -> None:
    place = torch.arange(0, 2801, 7)
    p = source.probability("b c a", place[:, None], place)
    assert (p >= 0).all()
    assert (p <= 1).all()
    torch.testing.assert_close(p + p.T, torch.ones_like(p))


def test_probabilities_worked_by_hand() -> None:
    # b: 1.5, of which help 1.5; f: 1.2 of help and 0.6 of harm
    logistic = 1 / (1 + np.exp(-0.9))
    assert listed.bradley_terry().probability("b c a", "b", "f").item() == pytest.approx(logistic)
    noisy = listed.bradley_terry(noise=0.2).probability("b c a", "b", "f").item()
    assert noisy == pytest.approx(0.8 * logistic + 0.2 * (1 - logistic))
    assert listed.deterministic().probability("b c a", "b", "f").item() == 1
    assert listed.deterministic().probability("b c a", "b", "b").item() == 0.5
    eager, careful = (1 / (1 + np.exp(-x)) for x in (1.6 * 0.3 + 0.2 * 0.6, 0.4 * 0.3 + 2.5 * 0.6))
    assert listed.two_annotators().probability("b c a", "b", "f").item() == pytest.approx((eager + careful) / 2)
    for better, worse in (("f", "a"), ("a", "a b c"), ("a b c", "f")):
        assert listed.cyclic(0.9).probability("b c a", better, worse).item() == pytest.approx(0.9)


@named
def test_labels_come_as_often_as_they_are_probable(source: listed.Source) -> None:
    rows = listed.rows(source, 6000, prompts=PROMPTS, seed=1)
    place = np.array([PROMPTS.index(row["prompt"]) for row in rows])
    chosen, rejected = ([listed.index_of(row[side]) for row in rows] for side in ("chosen", "rejected"))
    chosen, rejected = np.array(chosen), np.array(rejected)
    assert (chosen != rejected).all()
    assert chosen.min() > 0
    assert rejected.min() > 0
    # of each pair, seen from the response that is earlier in the list
    first, second = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    p = listed.probabilities(source, PROMPTS, place, first, second)
    won = chosen == first
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        inside = (low <= p) & (p < high)
        if inside.sum() > 100:
            error = np.sqrt((p * (1 - p))[inside].sum()) / inside.sum()
            assert abs(won[inside].mean() - p[inside].mean()) <= 4 * error


def test_rows_come_from_the_reference_alike_for_all_sources() -> None:
    one, same, other = (listed.rows(source, 500, seed=3) for source in (SOURCES[0], SOURCES[0], SOURCES[4]))
    assert one == same != other
    pairs = [[{row["chosen"], row["rejected"]} for row in rows] for rows in (one, other)]
    assert pairs[0] == pairs[1], "another source labels the same pairs"
    assert {row["prompt"] for row in one} <= set(listed.TRAIN)
    rows = listed.rows(SOURCES[0], 4000, prompts=PROMPTS[:1])
    counts = np.bincount([listed.index_of(row[side]) for row in rows for side in ("chosen", "rejected")])
    p = listed.reference_logps(PROMPTS[:1])[0].exp()
    top = int(p.argmax())
    # drawn twice, and again where both are the same: (p - p^2) / (1 - sum of p^2), and no empty ones
    p = p[1:] / p[1:].sum()
    expected = float((p[top - 1] - p[top - 1] ** 2) / (1 - p.square().sum()))
    assert counts[top] / 8000 == pytest.approx(expected, abs=4 * np.sqrt(expected / 8000))
    demonstrations = listed.demonstrations(50)
    assert all(listed.index_of(row["response"]) > 0 for row in demonstrations)


def test_no_reward_explains_a_circle() -> None:
    source, places = listed.cyclic(0.9), [listed.index_of(text) for text in ("f", "a", "a b c")]
    place = torch.tensor(places)
    wins = (100 * source.probability("b c a", place[:, None], place)).round().fill_diagonal_(0)
    finding = bradley_terry.intransitivity(wins, names=("bold", "plain", "wordy"))
    assert [cycle.path for cycle in finding.cycles] == ["bold > plain > wordy > bold"]
    assert finding.p_value < 1e-6
    # the best that any reward does is to say nothing
    assert bradley_terry.fit(wins).strengths_N.tolist() == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: listed.bradley_terry(-1.0), "scale of the listed world's preferences is -1"),
        (lambda: listed.bradley_terry(noise=0.6), "noise of the listed world's preferences is 0.6"),
        (lambda: listed.two_annotators(share=1.1), "share of the listed world's preferences is 1.1"),
        (lambda: listed.cyclic(0.4), "certainty of the listed world's preferences is 0.4"),
        (lambda: listed.rows(SOURCES[0], 0), "n of the listed world's preferences is 0"),
        (lambda: listed.rows(SOURCES[0], 1, seed=-1), "seed of the listed world's preferences is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message: str) -> None:
    with pytest.raises(PreftuneError, match=message):
        call()


def test_with_all_pairs_dpo_leads_to_the_optimum_of_the_reward() -> None:
    found = listed.dpo_population(listed.bradley_terry(), 0.5, PROMPTS)
    best = theory.optimum(listed.reference_logps(PROMPTS), listed.rewards(PROMPTS), 0.5)
    ratio = (found - best)[:, 1:]
    assert (ratio - ratio.mean(1, keepdim=True)).abs().max() < 1e-6
    with pytest.raises(NoFiniteOptimumError, match="always preferred"):
        listed.dpo_population(listed.deterministic(), 0.5, PROMPTS[:1])


def test_population_optima_are_points_of_rest() -> None:
    prompt, source = PROMPTS[:1], listed.cyclic(0.9)
    reference = listed.reference_logps(prompt)[0]
    mass, place = reference[1:].softmax(0), torch.arange(1, 2801)
    weight = mass[:, None] * mass * source.probability(prompt[0], place[:, None], place)
    for found, loss in (
        (listed.dpo_population(source, 0.3, prompt), lambda d: -torch.nn.functional.logsigmoid(0.3 * d)),
        (listed.ipo_population(source, 0.3, prompt), lambda d: (d - 1 / 0.6).square()),
    ):
        logits = found[0].clone().requires_grad_()
        ratio = (logits.log_softmax(0) - reference)[1:]
        (gradient,) = torch.autograd.grad((weight * loss(ratio[:, None] - ratio)).sum(), logits)
        assert gradient.abs().max() < 1e-9

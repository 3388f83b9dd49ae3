"""Figures that docstrings give under "In nats", measured on the objectives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.objectives import build, registry
from preftune.report.landscapes import target
from preftune.report.slices import along_delta, at, nats_per_margin


def said(name: str, *words: str) -> None:
    """The docstring says so."""
    doc = " ".join((registry.resolve(name).__doc__ or "").split())
    for each in words:
        assert each in doc, f"{name} does not say {each!r}: measure it anew"


def drawn_to(name, **fields):
    (field, value), *rest = fields.items()
    return float(target(build(name, **dict(rest)), field, (value,))[1]["target_V"][0])


@pytest.mark.parametrize(
    ("name", "nats", "words"),
    [
        ("dpo", 10, "10 nats at beta 0.1"),
        ("rdpo", 10, "10 nats at beta 0.1"),
        ("robust_dpo", 10, "10 nats at beta 0.1"),
        ("kl_dpo", 10, "10 nats at beta 0.1"),
        ("dpop", 10 / 3, "3.3 nats at beta 0.3"),
        ("r_dpo", 10, "10 nats at beta 0.1"),
        ("apo_zero", 10, "10 nats at beta 0.1"),
        ("apo_down", 10, "10 nats at beta 0.1"),
        ("discopop", 20, "20 nats at beta 0.05"),
        ("odpo", 10, "10 nats at beta 0.1"),
        ("simpo", 10, "10 nats between responses of 20 tokens"),
        ("cpo", 10, "10 nats at beta 0.1"),
    ],
)
def test_nats_for_a_margin_of_one(name, nats, words):
    said(name, words)
    assert nats_per_margin(build(name)) == pytest.approx(nats, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "nats", "words"),
    [
        ("ipo", {"tau": 1.0}, 0.5, "0.5 nats at tau 1, 5 at 0.1, 50 at 0.01"),
        ("ipo", {"tau": 0.1}, 5, "5 at 0.1"),
        ("ipo", {"tau": 0.01}, 50, "50 at 0.01"),
        ("ipo", {"tau": 0.1, "average": "mean"}, 100, "tau 0.1 asks two responses of 20 tokens for 100 nats"),
        ("psi_po", {"tau": 0.1}, 5, "5 nats at tau 0.1"),
        ("psi_po", {"tau": 0.1, "psi": "logit", "p": 0.9}, 22, "22 nats for p = 0.9 at tau 0.1"),
        ("hinge", {"beta": 0.1}, 10, "10 nats at beta 0.1"),
        ("robust_dpo", {"beta": 0.1}, 16, "8 nats up for chosen and 8 down for rejected"),
        ("kl_dpo", {"beta": 0.1}, 4, "at log-ratios of +-2 nats"),
        ("cal_dpo", {"beta": 0.002}, 500, "250 nats at beta 0.002, 50 at 0.01"),
        ("cal_dpo", {"beta": 0.01}, 100, "50 at 0.01"),
        ("exo", {"beta": 0.1}, 69, "69 nats at the defaults, 14 at beta 0.5"),
        ("exo", {"beta": 0.5}, 14, "14 at beta 0.5"),
        ("sppo", {"beta": 0.001}, 1000, "500 nats at beta 0.001, 5 at 0.1"),
        ("sppo", {"beta": 0.1}, 10, "5 at 0.1"),
        ("rebel", {"eta": 1.0}, 2, "at eta 1, a nat for each unit of reward"),
    ],
)
def test_where_delta_is_drawn_to(name, fields, nats, words):
    said(name, words)
    assert drawn_to(name, **fields) == pytest.approx(nats, rel=0.03)


def test_dpo_is_nine_tenths_sure_where_its_pull_is_a_fifth():
    said("dpo", "0.9 at 2.2 / beta nats, where the pull is a fifth of what it is at delta 0")
    values = along_delta(build("dpo", beta=0.1), [0.0, 22.0])
    assert math.exp(-values.loss[1]) == pytest.approx(0.9, abs=0.001)
    assert values.gradient[1] / values.gradient[0] == pytest.approx(0.2, abs=0.002)


def test_forces_of_apo_have_lost_four_fifths_at_three_over_beta():
    said("apo_zero", "less than a fifth of its force at the start")
    said("apo_down", "At 3 / beta nats each of the two forces is less than a fifth")
    zero, down = (at(build(name), [0.0, 30.0, 0.0], [0.0, 0.0, -30.0]) for name in ("apo_zero", "apo_down"))
    assert 0.15 < zero.chosen_gradient[1] / zero.chosen_gradient[0] < 0.2
    assert 0.15 < down.rejected_gradient[2] / down.rejected_gradient[0] < 0.2


def test_rdpo_never_stops_pulling():
    said("rdpo", "0.0125 at the defaults")
    assert along_delta(build("rdpo"), [1e4]).gradient[0] == pytest.approx(-0.0125)


def test_chosen_of_nca_is_drawn_to_a_log_ratio():
    said("nca", "69 nats at beta 0.01, 7 at 0.1")
    for beta, nats in ((0.01, math.log(2) / 0.01), (0.1, math.log(2) / 0.1)):
        assert at(build("nca", beta=beta), [nats], [0.0]).chosen_gradient[0] == pytest.approx(0, abs=1e-12)
    assert [round(math.log(2) / beta) for beta in (0.01, 0.1)] == [69, 7]


def test_divergences_differ_far_from_the_reference_and_hardly_near_it():
    said("f_dpo", "at beta with forward_kl, beta * log 2 with js, beta / alpha with alpha; never with reverse_kl")
    said("f_dpo", "a reward of beta (of beta / 2 with js)")
    for divergence, alpha, most, near in (
        ("forward_kl", None, 1, 1),
        ("js", None, math.log(2), 0.5),
        ("alpha", 0.5, 2, 1),
        ("reverse_kl", None, 60, 1),
    ):
        objective = build("f_dpo", beta=0.3, divergence=divergence, **({} if alpha is None else {"alpha": alpha}))
        assert at(objective, [60.0], [0.0]).margin[0] == pytest.approx(0.3 * most, rel=1e-9)
        assert at(objective, [0.01], [0.0]).margin[0] == pytest.approx(0.003 * near, rel=0.01)


def test_odds_of_orpo_at_one_nat_per_token():
    said("orpo", "the log-odds are -0.54 and rise by 1.58 per nat per token")
    odds = [mean - math.log(-math.expm1(mean)) for mean in (-1.0, -1 + 1e-6)]
    # 20 tokens, 2 nats each at log-ratio 0: the margin between -1 and -2 nats per token
    there = -2 - math.log(-math.expm1(-2))
    assert at(build("orpo"), [20.0], [0.0]).margin[0] == pytest.approx(odds[0] - there, rel=1e-9)
    assert [round(odds[0], 2), round((odds[1] - odds[0]) / 1e-6, 2)] == [-0.54, 1.58]


def test_offset_of_odpo_and_price_of_a_token_in_nats():
    said("odpo", "7 for a gap of 2 at the defaults")
    plain, asked = build("dpo", beta=0.1), build("odpo")  # the slice has a gap of 2
    np.testing.assert_allclose(along_delta(asked, [math.log(2) / 0.1]).loss, along_delta(plain, [0.0]).loss, rtol=1e-9)
    assert round(math.log(2) / 0.1) == 7
    said("r_dpo", "0.1 at the defaults")
    r_dpo = registry.resolve("r_dpo")()
    assert r_dpo.alpha / r_dpo.beta == pytest.approx(0.1)

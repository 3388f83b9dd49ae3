from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.report.values import interval, number, show, show_change, show_duration, show_interval

MINUS = "\u2212"


@pytest.mark.parametrize("value", [None, True, "1", [1.0], {}, math.nan, math.inf, -math.inf, 10**400])
def test_what_is_no_finite_number_is_none(value):
    assert number(value) is None


def test_numbers_are_floats():
    assert (number(3), number(-0.5)) == (3.0, -0.5)


@pytest.mark.parametrize("value", [None, 0.5, [0.5], [0.4, None], [0.4, math.nan], [0.6, 0.4], [1, 2, 3], "ab"])
def test_what_is_no_interval_is_none(value):
    assert interval(value) is None


def test_intervals_are_pairs():
    assert interval([0.4, 1]) == (0.4, 1.0)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.7842, "share", "78.4%"),
        (0.0, "", "0"),
        (-0.0, "", "0"),
        (1.134, "", "1.13"),
        (-0.0312, "nats", f"{MINUS}0.031"),
        (0.693147, "", "0.693"),
        (0.00045, "", "0.00045"),
        (3e-6, "", f"3.00e{MINUS}06"),
        (455.31, "", "455.3"),
        (21043.0, "", "21,043"),
        (None, "share", "\u2013"),
    ],
)
def test_values_are_shown_with_three_digits_or_as_percentages(value, unit, text):
    assert show(value, unit) == text


def test_changes_carry_their_sign():
    assert show_change(0.284, "share") == "+28.4 points"
    assert show_change(-1.5) == f"{MINUS}1.50"
    assert show_change(0.0, "share") == "0.0 points"
    assert show_change(-0.0001, "share") == "0.0 points"
    assert show_change(None) == "\u2013"


def test_intervals_without_width_say_nothing():
    assert show_interval((0.7, 0.8), "share") == "70.0% to 80.0%"
    assert show_interval((0.5, 0.5), "share") == show_interval(None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.12, "9.1 seconds"), (200.4, "3 min 20 s"), (3599.9, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert show_duration(seconds) == text


@given(st.floats(-1e300, 1e300))
def test_shown_values_read_back_within_their_digits(value):
    shown = float(show(value).replace(MINUS, "-").replace(",", ""))
    assert shown == pytest.approx(value, rel=0.06, abs=1e-300)
    assert show_change(value).startswith((MINUS, "+")) or shown == 0

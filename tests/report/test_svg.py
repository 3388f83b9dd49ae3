from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, drawing, ticks

SVG = "{http://www.w3.org/2000/svg}"


def chart(y, x=None, name=""):
    y = np.array(y, dtype=float)
    return Chart("loss", "margin", np.arange(len(y), dtype=float) if x is None else x, (Line(name, "#3a7fd5", y),))


def curves(text):
    found = [path.get("d") for path in ET.fromstring(text).iter(f"{SVG}path") if path.get("stroke") == "#3a7fd5"]
    return [[tuple(map(float, point.split())) for point in path[1:].split("L")] for path in found]


def test_a_line_goes_from_corner_to_corner():
    ((first, middle, last),) = curves(drawing([chart([0, 5, 10])], "a line"))
    air = (HEIGHT - TOP - BOTTOM) * 0.5 / 11  # half a unit above and below a span of ten
    assert first == pytest.approx((LEFT, HEIGHT - BOTTOM - air), abs=0.06)
    assert middle == pytest.approx(((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2), abs=0.06)
    assert last == pytest.approx((WIDTH - RIGHT, TOP + air), abs=0.06)


def test_values_that_are_not_finite_break_the_line():
    text = drawing([chart([0, 1, np.nan, 3, np.inf, 5, 6])], "broken")
    assert [len(each) for each in curves(text)] == [2, 1, 2]


def test_noise_in_the_last_bits_changes_no_byte():
    x = np.linspace(-4, 4, 81)
    noise = 1e-13 * np.random.default_rng(0).standard_normal(81)
    for y in (x, np.maximum(0, 1 - x), np.log1p(np.exp(-x)), x**2):
        assert drawing([chart(y, x)], "a") == drawing([chart(y * (1 + noise) + noise, x)], "a")


def test_it_is_xml_without_scripts_or_links_whatever_the_names():
    text = drawing([chart([1, 2], name='<b> & "c"'), chart([1, 1])], 'x "y" <z>')
    root = ET.fromstring(text)
    assert root.get("aria-label") == 'x "y" <z>'
    assert {each.tag.removeprefix(SVG) for each in root.iter()} == {"svg", "g", "path", "text"}
    assert "href" not in text
    assert (
        re.findall(r'(?:fill|stroke)="#(?:0{3,6}|f{3,6})"', text) == []
    )  # neither black nor white: any ground will do


@given(low=st.floats(-1e3, 1e3), span=st.floats(1e-2, 1e7))
def test_ticks_are_few_round_and_inside(low, span):
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-6 * span <= tick <= low + span + 1e-6 * span for tick in found)
    steps = np.diff(found)
    if len(steps):
        np.testing.assert_allclose(steps, steps[0], rtol=1e-4, atol=1e-9 * max(1, abs(low)))


def test_ticks_by_hand():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(-4, 4, most=9) == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert ticks(95, 310) == [100, 150, 200, 250, 300]

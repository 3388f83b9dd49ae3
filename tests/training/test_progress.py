from __future__ import annotations

import io

import pytest
from rich.console import Console

from preftune.training.progress import Bar

VALUES = {"loss": 0.69312, "preference_accuracy": 0.6621, "margin": 0.0312, "pairs_per_second": 363.94}


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_a_line_shows_loss_accuracy_margin_speed_steps_and_time_left_at_any_width(width):
    out = io.StringIO()
    with Bar(1832, True, Console(file=out, width=width, force_terminal=True, color_system=None)) as bar:
        for _ in range(1700):
            bar.advance()
        bar.show(VALUES)
    last = [line for line in out.getvalue().splitlines() if "loss" in line][-1]
    for part in ("1700/1832", "loss 0.6931", "accuracy 0.662", "margin +0.031", "pairs/s 363.9", "0:0"):
        assert part in last
    assert "…" not in last


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_says_what_it_measures(width):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    with Bar(40, True, console, title="reference") as bar:
        bar.advance(30)
    assert "reference" in out.getvalue()
    assert "30/40" in out.getvalue()


def test_a_bar_may_be_silent():
    out = io.StringIO()
    with Bar(3, False, Console(file=out)) as bar:
        bar.advance()
        bar.show(VALUES)
    assert out.getvalue() == ""

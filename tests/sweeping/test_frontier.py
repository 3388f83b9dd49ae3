"""Which run to take: worked by hand."""

from __future__ import annotations

from preftune.sweeping.frontier import Point, advise, frontier


def point(name: str, value: float, kl: float, half: float = 0.05, **more: object) -> Point:
    return Point(name, {}, name, value=value, ci95=(value - half, value + half), kl=kl, kl_ci95=(kl, kl), **more)  # type: ignore[arg-type]


NEAR, MIDDLE, FAR = point("near", 0.60, 1.0), point("middle", 0.72, 4.0), point("far", 0.74, 30.0)
FAILED = Point("broken", {}, "broken", failed="the loss is not finite")


def test_the_frontier_is_what_no_other_run_beats() -> None:
    beaten = point("beaten", 0.70, 5.0)
    assert frontier([FAR, beaten, NEAR, FAILED, MIDDLE]) == ["near", "middle", "far"]
    assert frontier([point("worse", 0.5, 1.0), NEAR]) == ["near"]  # at one KL, the higher


def test_of_runs_that_cannot_be_told_apart_the_one_of_less_kl_is_taken() -> None:
    advice = advise([NEAR, FAR, MIDDLE], "win_rate")
    assert advice.run == "middle"
    assert "The highest win rate is that of far, 0.740 (95% interval 0.690 to 0.790) at 30 nats" in advice.why
    assert "the intervals overlap" in advice.why


def test_a_run_that_is_clearly_ahead_is_taken_whatever_its_kl() -> None:
    advice = advise([NEAR, MIDDLE, point("ahead", 0.95, 30.0)], "win_rate")
    assert advice.run == "ahead"
    assert "It has the highest win rate; no other interval reaches up to its own." in advice.why


def test_the_budget_comes_first() -> None:
    ahead = point("ahead", 0.95, 30.0)
    assert advise([NEAR, MIDDLE, ahead], "win_rate", 10).run == "middle"
    none = advise([NEAR, MIDDLE, ahead], "win_rate", 0.5)
    assert none.run is None
    assert "No run stays within 0.5 nats per response: the nearest is near at 1" in none.why


def test_a_kl_that_may_lie_above_the_budget_is_told() -> None:
    unsure = Point("unsure", {}, "unsure", value=0.9, ci95=(0.85, 0.95), kl=9.0, kl_ci95=(7.0, 11.0))
    assert "Its KL may lie above the budget (95% interval up to 11)." in advise([unsure], "win_rate", 10).why


def test_no_run_is_taken_that_cannot_be_told_from_the_reference() -> None:
    level = point("level", 0.53, 2.0)
    advice = advise([level, point("below", 0.4, 1.0)], "accuracy")
    assert advice.run is None
    assert "No run is told apart from the reference: the highest preference accuracy is that of level" in advice.why


def test_a_difference_that_was_paired_by_prompt_decides_over_the_reference() -> None:
    fields = {"reference": 0.5, "reference_ci95": (0.1, 0.9)}
    gains = point("gains", 0.6, 2.0, 0.4, gain_ci95=(0.02, 0.18), **fields)
    loses = point("loses", 0.6, 2.0, 0.01, gain_ci95=(-0.02, 0.22), **fields)
    assert advise([gains], "reward").run == "gains"
    assert advise([loses], "reward").run is None


def test_a_run_of_less_kl_must_beat_the_reference_as_well() -> None:
    weak, strong = point("weak", 0.52, 0.1), point("strong", 0.58, 3.0)  # their intervals overlap
    assert advise([weak, strong], "win_rate").run == "strong"


def test_failed_runs_are_no_points_and_one_prompt_tells_nothing() -> None:
    assert advise([FAILED], "reward").run is None
    assert advise([Point("one", {}, "one", value=0.9, kl=1.0)], "win_rate").run is None

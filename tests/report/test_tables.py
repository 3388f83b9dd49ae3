from __future__ import annotations

from preftune.report.reading import read
from preftune.report.tables import changes


def test_changes_come_from_the_summary(write_run):
    accuracy = changes(read(write_run()))["preference_accuracy"]
    assert (accuracy.before, accuracy.after, accuracy.difference) == (0.5, 0.75, 0.25)
    assert accuracy.shown == {
        "before": "50.0%",
        "before_interval": "",
        "after": "75.0%",
        "after_interval": "70.0% to 80.0%",
        "difference": "+25.0 points",
        "difference_interval": "",
    }


def test_a_difference_of_the_summary_counts_more_than_subtraction(write_run):
    reward = changes(read(write_run()))["true_reward"]
    assert (reward.difference, reward.difference_interval) == (1.16, (1.1, 1.22))
    assert reward.shown["difference_interval"] == "+1.10 to +1.22"


def test_what_the_summary_leaves_out_comes_from_evaluations(write_run):
    found = changes(read(write_run()))
    assert (found["loss"].before, round(found["loss"].after, 3)) == (0.693, 0.573)
    assert "kl" in found
    assert found["kl"].before is None


def test_a_run_without_evaluation_after_the_start_has_no_after(write_run, history):
    found = changes(read(write_run(metrics=[row for row in history if row["step"] == 0], summary=None)))
    assert found["loss"].before == 0.693
    assert all(change.after is None and change.difference is None for change in found.values())


def test_further_numbers_of_the_summary_are_shown_under_their_name(write_run):
    before = {"end_rate": 0.99, "margin_sd": 1.0, "chosen_length": 14.0, "note": "text", "nothing": None}
    found = changes(read(write_run(metrics=[], summary={"before": before, "after": {"end_rate": 0.97}})))
    assert list(found) == ["end_rate"]
    assert found["end_rate"].metric.label == "End rate"
    assert found["end_rate"].shown["difference"] == "\u22120.020"


def test_nothing_measured_gives_no_rows(write_run):
    assert changes(read(write_run(metrics=[], summary={"before": None, "after": [1]}))) == {}

from __future__ import annotations

from preftune.report.reading import read
from preftune.report.tables import changes, sample_pairs


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


def test_samples_stand_side_by_side(write_run):
    film, play = sample_pairs(read(write_run()).samples)
    assert (film.prompt, film.start.response, film.end.response) == ("a film", "it was dull", " it was lovely")
    assert film.start.notes == ("true reward \u22120.500", "log-probability \u221212.25 nats")
    assert film.end.notes == ("true reward 1.50", "cut off at the length limit")
    assert (play.prompt, play.end.response, play.end.notes) == ("a play", "", ())


def test_samples_without_partner_and_several_of_one_prompt():
    rows = [
        {"when": "start", "prompt": "p", "response": "one"},
        {"when": "start", "prompt": "p", "response": "two"},
        {"when": "end", "prompt": "p", "response": "three"},
        {"when": "end", "prompt": "q", "response": None},
        {"when": "middle", "prompt": "r", "response": "x"},
        {},
    ]
    found = [(p.prompt, p.start and p.start.response, p.end and p.end.response) for p in sample_pairs(rows)]
    assert found == [("p", "one", "three"), ("p", "two", None), ("q", None, "")]


def test_a_conversation_is_shown_as_json():
    (pair,) = sample_pairs([{"when": "end", "prompt": [{"role": "user", "content": "hé"}], "response": "x"}])
    assert '"content": "hé"' in pair.prompt

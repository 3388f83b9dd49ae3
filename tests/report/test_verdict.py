from __future__ import annotations

import pytest

from preftune.report.reading import read
from preftune.report.verdict import verdict


def judge(write_run, **summary):
    return verdict(read(write_run(metrics=[], summary={"objective": "ipo", "steps": 1, **summary})))


def accuracy(value, low, high):
    return {"preference_accuracy": value, "preference_accuracy_ci95": [low, high]}


def test_a_whole_run_in_words(write_run):
    said = verdict(read(write_run()))
    assert said.headline == "Held-out preference accuracy is 75.0%, above chance; the true reward rose by 1.16."
    assert said.paragraphs == [
        "preftune trained the model tiny on the data pairs.jsonl with the objective dpo for 30 steps in 9.1 seconds "
        "(400.0 pairs per second).",
        "Compared with its reference, which is the model before training unless the config names another, the trained "
        "model favours the chosen response over the rejected one in 75.0% of held-out pairs (95% interval 70.0% to "
        "80.0%). The interval excludes 50%: this is above chance. Before training it was 50.0%, a change of +25.0 "
        "points.",
        "The true reward of sampled responses went from \u22120.030 to 1.13 (95% interval 1.09 to 1.17), a change of "
        "+1.16 (95% interval +1.10 to +1.22, which excludes zero).",
        "Its samples lie 1.35 nats per response from the reference model (KL divergence; 0 means unchanged).",
    ]
    assert said.notes == ["padded path taken because the model is a Bloom"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.45, 0.58, "The interval covers 50%: this is not distinguishable from chance."),
        (0.5, 0.6, "The interval covers 50%: this is not distinguishable from chance."),
        (0.51, 0.6, "The interval excludes 50%: this is above chance."),
        (0.4, 0.49, "The interval excludes 50%: this is below chance."),
    ],
)
def test_accuracy_is_held_against_chance(write_run, low, high, words):
    said = judge(write_run, after=accuracy((low + high) / 2, low, high))
    assert words in " ".join(said.paragraphs)
    assert words.partition("this is ")[2] in said.headline


def test_without_interval_chance_is_not_ruled_out(write_run):
    said = judge(write_run, after={"preference_accuracy": 0.9})
    assert "chance (50%) cannot be ruled out" in said.paragraphs[1]
    assert "not compared with chance" in said.headline


def test_overlapping_intervals_are_called_possible_noise(write_run):
    text = judge(write_run, before=accuracy(0.55, 0.5, 0.6), after=accuracy(0.62, 0.57, 0.67)).paragraphs[1]
    assert text.endswith(
        "Before training it was 55.0% (95% interval 50.0% to 60.0%), a change of +7.0 points; the two intervals "
        "overlap, so this may be noise."
    )


def test_a_start_at_which_all_pairs_are_ties_makes_no_noise(write_run):
    text = judge(write_run, before=accuracy(0.5, 0.42, 0.58), after=accuracy(0.627, 0.547, 0.7)).paragraphs[1]
    assert text.endswith("this is above chance. Before training it was 50.0%, a change of +12.7 points.")


@pytest.mark.parametrize(
    ("change", "ends", "headline", "words"),
    [
        (0.1, [-0.1, 0.3], "The true reward did not change measurably.", "so it may as well be zero"),
        (-0.3, [-0.5, -0.1], "The true reward fell by 0.300.", "which excludes zero"),
    ],
)
def test_a_reward_has_changed_only_where_the_interval_says_so(write_run, change, ends, headline, words):
    difference = {"true_reward": change, "true_reward_ci95": ends}
    said = judge(write_run, before={"true_reward": 1.0}, after={"true_reward": 1.0 + change}, difference=difference)
    assert said.headline == headline
    assert words in said.paragraphs[1]


def test_demonstrations_are_judged_by_their_loss(sft_run):
    said = verdict(read(sft_run))
    assert said.headline == "Held-out loss is 2.00 after training."
    assert said.paragraphs[0].endswith("with the objective sft for 20 steps in 3 min 20 s.")
    assert said.paragraphs[1] == "Held-out loss went from 4.00 to 2.00; lower is better."


def test_a_run_without_summary_has_not_finished(write_run, history):
    said = verdict(read(write_run(metrics=history[:2], summary=None)))
    assert said.headline == "This run has not finished, or it stopped early."
    assert said.paragraphs[0].endswith("with the objective dpo; the last recorded step is 20.")
    assert "Nothing was measured" in said.paragraphs[1]


def test_strange_summaries_do_not_break_it(write_run):
    said = judge(write_run, seconds="long", before=None, after=[], messages={"a": 1}, pairs_per_second=None)
    assert said.headline == "Training has finished."
    assert said.notes == []
    assert said.paragraphs[0].endswith("with the objective ipo for 1 step.")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("seed: 0\n", "preftune trained a model; no step is recorded."),
        ("model: tiny\ndata: {path: null}\n", "preftune trained the model tiny; no step is recorded."),
        (
            "objective: [{name: dpo}, {name: sft, weight: 0.1}]\n",
            "preftune trained a model with the objective dpo + sft; no step is recorded.",
        ),
    ],
)
def test_names_come_from_any_shape_of_config(write_run, config, text):
    assert verdict(read(write_run(config=config, metrics=[], summary=None))).paragraphs[0] == text

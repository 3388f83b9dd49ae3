from __future__ import annotations

import evidence
import pytest

from preftune.report.reading import read
from preftune.report.verdict import verdict


def judge(write_run, **summary):
    return verdict(read(write_run(metrics=[], summary={"objective": "ipo", "steps": 1, **summary})))


def answers(said):
    return [answer for _, answer in said.paragraph]


def accuracy(value, low, high):
    return {"preference_accuracy": value, "preference_accuracy_ci95": [low, high]}


def test_a_whole_run_in_words(write_run):
    said = verdict(read(write_run()))
    assert said.headline == "Held-out preference accuracy is 75.0%, above chance; the true reward rose by 1.16."
    assert said.paragraph == [
        (
            "What was trained?",
            "preftune trained the model tiny on the data pairs.jsonl with the objective dpo (beta 0.1) for 30 steps in "
            "9.1 seconds (400.0 pairs per second).",
        ),
        (
            "Did it get better?",
            "Held against its reference (the model before training, unless the config names another), the trained "
            "model favours the chosen response in 75.0% of held-out pairs (95% interval 70.0% to 80.0%), which is "
            "above chance (50%). Before training it was 50.0%, a change of +25.0 points. The true reward of sampled "
            "responses went from \u22120.030 to 1.13 (95% interval 1.09 to 1.17), a change of +1.16 (95% interval "
            "+1.10 to +1.22, which excludes zero).",
        ),
        (
            "What did it cost?",
            "Its samples lie 1.35 nats per response from the reference: the KL divergence, which is 0 as long as "
            "nothing has changed, and grows with what is given up of the old model.",
        ),
    ]
    assert said.notes == ["padded path taken because the model is a Bloom"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.45, 0.58, "which is not distinguishable from chance (50%)"),
        (0.5, 0.6, "which is not distinguishable from chance (50%)"),
        (0.51, 0.6, "which is above chance (50%)"),
        (0.4, 0.49, "which is below chance (50%)"),
    ],
)
def test_accuracy_is_held_against_chance(write_run, low, high, words):
    said = judge(write_run, after=accuracy((low + high) / 2, low, high))
    assert words in " ".join(answers(said))
    assert words.removeprefix("which is ").removesuffix(" (50%)") in said.headline


def test_without_interval_chance_is_not_ruled_out(write_run):
    said = judge(write_run, after={"preference_accuracy": 0.9})
    assert "chance (50%) cannot be ruled out" in answers(said)[1]
    assert "not compared with chance" in said.headline


def test_overlapping_intervals_are_called_possible_noise(write_run):
    text = answers(judge(write_run, before=accuracy(0.55, 0.5, 0.6), after=accuracy(0.62, 0.57, 0.67)))[1]
    assert text.endswith(
        "Before training it was 55.0% (95% interval 50.0% to 60.0%), a change of +7.0 points; the two intervals "
        "overlap, so this may be noise."
    )


def test_a_start_at_which_all_pairs_are_ties_makes_no_noise(write_run):
    text = answers(judge(write_run, before=accuracy(0.5, 0.42, 0.58), after=accuracy(0.627, 0.547, 0.7)))[1]
    assert text.endswith("which is above chance (50%). Before training it was 50.0%, a change of +12.7 points.")


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
    assert words in answers(said)[1]


def test_demonstrations_are_judged_by_their_loss(sft_run):
    said = verdict(read(sft_run))
    assert said.headline == "Held-out loss is 2.00 after training."
    assert answers(said)[0].endswith("with the objective sft for 20 steps in 3 min 20 s.")
    assert answers(said)[1] == "Held-out loss went from 4.00 to 2.00; lower is better."


def test_a_run_without_summary_has_not_finished(write_run, history):
    said = verdict(read(write_run(metrics=history[:2], summary=None)))
    assert said.headline == "This run has not finished, or it stopped early."
    assert answers(said)[0].endswith("with the objective dpo (beta 0.1); the last recorded step is 20.")
    assert "Nothing was measured" in answers(said)[1]


def test_strange_summaries_do_not_break_it(write_run):
    said = judge(write_run, seconds="long", before=None, after=[], messages={"a": 1}, pairs_per_second=None)
    assert said.headline == "Training has finished."
    assert said.notes == []
    assert answers(said)[0].endswith("with the objective ipo for 1 step.")


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
    assert answers(verdict(read(write_run(config=config, metrics=[], summary=None))))[0] == text


def test_the_win_rate_and_the_doctor_have_their_say(write_run):
    folder = evidence.everything(write_run())
    said = dict(verdict(read(folder)).paragraph)
    assert said["Did it get better?"].endswith(
        "A judge prefers its answers to those of sandbox in 81.0% of comparisons (95% interval 77.6% to 84.4%), "
        "77.0% (95% interval 72.9% to 81.1%) once length is controlled for."
    )
    assert "2.29 nats per response from the reference (95% interval 2.24 to 2.34)" in said["What did it cost?"]
    assert said["Is anything wrong?"] == (
        "The training doctor warns of length exploitation (answers are 31% longer than at the start); for information, "
        "it notes likelihood displacement (answers are 31% longer than at the start)."
    )


def test_a_draw_is_called_one(write_run):
    folder = evidence.add(write_run(), evaluation={"win_rate": {"win_rate": 0.52, "win_rate_ci95": [0.47, 0.57]}})
    assert "52.0% of comparisons (95% interval 47.0% to 57.0%): this may as well be a draw." in str(
        verdict(read(folder)).paragraph
    )


def test_a_run_that_a_batch_stopped_says_so_and_goes_on(write_run):
    said = verdict(read(evidence.add(write_run(summary=None), failure={"step": 3})))
    assert "stopped at a batch" in said.headline
    assert [step.command.split()[:3] for step in said.next_steps] == [["preftune", "train", "--resume"]]


def test_only_what_was_measured_against_its_own_reference_is_its_kl(write_run):
    own = evidence.evaluation()
    far = {**own, "own_reference": False, "against": "./far"}
    cost = {}
    for name, evaluation in (("own", own), ("far", far), ("elsewhere", {**own, "own_data": False})):
        run = read(evidence.add(write_run(name), evaluation=evaluation))
        cost[name] = dict(verdict(run).paragraph)["What did it cost?"]
    assert "2.29 nats" in cost["own"]
    assert "1.35 nats" in cost["far"]
    assert cost["far"] == cost["elsewhere"]
    assert "on prompts of" in dict(verdict(run).paragraph)["Did it get better?"]


def test_the_interval_of_a_kl_does_not_go_below_zero(write_run):
    said = str(judge(write_run, after={"kl": 0.02, "kl_se": 0.05}).paragraph)
    assert "(95% interval 0 to 0.118)" in said


@pytest.mark.parametrize(
    ("config", "many"), [("doctor: {answers: 32}\n", "32 answers"), ("seed: 0\n", "a few answers")]
)
def test_the_training_doctors_kl_is_called_rough(write_run, config, many):
    run = read(write_run(config=config, metrics=[{"kind": "eval", "step": 3, "sample_kl": 1.98}], summary={"steps": 3}))
    cost = dict(verdict(run).paragraph)["What did it cost?"]
    assert f"about 1.98 nats per response: a rough figure from {many}, without an interval" in cost
    assert cost.endswith("preftune evaluate measures it.")


@pytest.mark.parametrize(("objective", "words"), [("dpo", "the reference"), ("simpo", "the model before training")])
def test_an_objective_without_a_reference_has_a_start(write_run, objective, words):
    run = read(write_run(config=f"objective: {{name: {objective}}}\n", metrics=[]))
    assert f"1.35 nats per response from {words}: the KL" in dict(verdict(run).paragraph)["What did it cost?"]

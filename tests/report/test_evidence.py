"""What other commands add to a run folder, as its page tells it."""

from __future__ import annotations

import re
import shutil
from io import StringIO

import evidence
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from preftune.report import credit
from preftune.report.diagnosis import checkup, symptoms
from preftune.report.evaluation_table import show_evaluation
from preftune.report.held_out import held_out
from preftune.report.html import render
from preftune.report.next_steps import advice
from preftune.report.reading import read
from preftune.report.tables import changes


def test_an_evaluation_is_told_part_by_part():
    found = held_out(evidence.evaluation())
    assert found.about == (
        "The trained model runs/demo against sandbox, on 512 pairs and 256 prompts of runs/demo/data/held_out.jsonl."
    )
    first = found.compared[0]
    assert (first.label, first.shown, first.shown_bounds, first.left, first.width, first.at) == (
        "Trained model against its reference",
        "74.6%",
        "70.8% to 78.4%",
        70.8,
        7.6,
        74.6,
    )
    assert [row.label for row in found.by_source] == ["reviews/a.jsonl", "reviews/b.jsonl"]
    assert len(found.reliability.cells[0].traces[1].x) == 10
    assert found.calibration[1] == (
        "A temperature of 1.31 fits best, so as it stands the model is overconfident; with that temperature the error "
        "is 1.8%."
    )
    assert [row.policy for row in found.generation][:2] == ["20.40", "96.0%"]
    assert found.kl.startswith(
        "KL divergence from the reference, on its own samples: 2.29 ± 0.028 nats per response, 0.112 ± 0.0014 "
    )
    assert [width for *_, width in found.wins] == [78.52, 5.08, 16.41]
    assert found.judged[-1].startswith("On 200 pairs whose better answer is known, the judge is right in 92.0%")
    assert held_out({}) is None


def test_another_model_than_the_reference_goes_by_its_name():
    found = held_out({**evidence.evaluation(), "own_reference": False, "against": "./other"})
    assert found.kl.startswith("KL divergence from ./other, on its own samples")
    assert [row.label for row in found.compared][::2] == ["Trained model against ./other", "Baseline: ./other alone"]


def test_credit_adds_up_and_is_of_one_scale():
    rows = evidence.credit(3)
    first = credit.pairs(rows)[0]
    chosen, rejected = first.sides
    assert chosen.tokens[0].shade == "masked"
    sums = [sum(value or 0 for value in rows[0][name]["credit"]) for name in ("chosen", "rejected")]
    assert [float(side.reward.replace("\u2212", "-")) for side in (chosen, rejected)] == pytest.approx(sums, abs=0.005)
    assert ("ranked rightly" in first.words) == (sums[0] > sums[1])
    assert first.panel.cells[0].traces[0].y[-1] == pytest.approx(sums[0], rel=1e-4)
    strongest = max(range(40), key=lambda i: abs(rows[0]["chosen"]["credit"][i] or 0))
    assert chosen.decisive[0][0] == rows[0]["chosen"]["tokens"][strongest].strip()
    shades = [token.shade for pair in credit.pairs(rows) for side in pair.sides for token in side.tokens]
    assert {"p8", "n8"} <= set(shades)


def test_symptoms_that_stand_come_first():
    history = [evidence.symptom(16), evidence.symptom(32), evidence.symptom(8, "kl_blow_up")]
    first, second = symptoms(history, {"doctor": [evidence.symptom(32)]})
    assert (first.rule, first.stands, first.when) == ("Length exploitation", True, "first at step 16, last at step 32")
    assert (second.rule, second.stands, second.when) == ("KL blow up", False, "step 8")
    assert first.rows == "3, 17, 204"
    assert [one.stands for one in symptoms(history, {})] == [True, True], "while the run goes on"
    assert symptoms([], {"doctor": []}) == []
    assert symptoms([], {}) is None


def test_the_data_doctor_says_what_became_of_its_findings():
    found = checkup(evidence.data_doctor())
    assert found.lead == "4,096 rows were read: 2 findings."
    assert [(name, severity, became) for name, severity, _, became in found.findings] == [
        ("duplicates", "warning", "kept, with a warning"),
        ("identical", "error", "left out"),
    ]
    assert found.figures[0].endswith("(95% interval 48.8% to 51.9%); length alone does not tell them apart.")
    assert checkup({}) is None


def tried(run):
    return [one.text for one in advice(run, changes(run))]


def evaluations(losses, accuracies=None):
    accuracies = accuracies or [0.7] * len(losses)
    return [
        {"kind": "eval", "step": 10 * i, "loss": loss, "preference_accuracy": accuracy}
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]


@pytest.mark.parametrize(
    ("metrics", "more", "words"),
    [
        (evaluations([0.69, 0.5, 0.6]), {}, "held-out loss was lowest at step 10 (0.500)"),
        (evaluations([0.69, 0.6, 0.5], [0.5, 0.6, 0.7]), {}, "still rising at the end"),
        ([], {"after": {"preference_accuracy": 0.5, "preference_accuracy_ci95": [0.45, 0.55]}}, "not above chance"),
        ([], {"before": {"mean_length": 10}, "after": {"mean_length": 13}}, "Answers grew from 10.00 to 13.00 tokens"),
        ([], {"before": {}, "after": {}}, "Hold out some data"),
        ([], {"doctor": [evidence.symptom(3)]}, "Use an objective that normalises length"),
    ],
)
def test_what_to_try_next_goes_by_the_figures(write_run, metrics, more, words):
    run = read(write_run(metrics=metrics, summary={"steps": 20, "learning_rate": 1e-4, **more}))
    assert any(words in text for text in tried(run))


def test_a_model_that_is_no_better_than_length_is_told_so(write_run):
    values = evidence.evaluation()
    values["baselines"]["longer"] = evidence.sides("accuracy", 0.74, 0.04)
    run = read(evidence.add(write_run(), evaluation=values))
    assert any(text.startswith("Always picking the longer response is right in 74.0%") for text in tried(run))
    assert not any("longer response" in text for text in tried(read(write_run("other"))))
    (said,) = [text for text in tried(run) if "longer response" in text]
    assert said.endswith("or use an objective that corrects for length (simpo and r_dpo).")

    simpo = "objective: {name: simpo, beta: 2.0}\n"
    values["baselines"]["longer"] = evidence.sides("accuracy", 0.74, 0.3)
    unsure = read(evidence.add(write_run("unsure", config=simpo), evaluation=values))
    assert not any("longer response" in text for text in tried(unsure)), "its interval holds chance"
    values["baselines"]["longer"] = evidence.sides("accuracy", 0.74, 0.04)
    used = read(evidence.add(write_run("used", config=simpo), evaluation=values))
    assert any("corrects for length (r_dpo)" in text for text in tried(used))


AT_CHANCE = {"steps": 9, "after": {"preference_accuracy": 0.5, "preference_accuracy_ci95": [0.45, 0.55], "loss": 0.7}}


@pytest.mark.parametrize(
    ("objective", "told", "untold"),
    [
        ("{name: dpo, beta: 0.3}", ["not above chance", "weaker hold on the reference"], []),
        ("{name: simpo, beta: 2.0}", ["not above chance", "See what another beta does"], ["hold on the reference"]),
        ("{name: sft}", ["simple baselines"], ["above chance", "hold on the reference"]),
        (
            "{name: bradley_terry}",
            ["not above chance", "can be trusted."],
            ["answers are like", "hold on the reference"],
        ),
        ("{name: 'mine:Own', beta: 0.3}", ["not above chance", "weaker hold on the reference"], []),
    ],
)
def test_what_to_try_fits_the_objective(write_run, objective, told, untold):
    run = read(write_run(config=f"objective: {objective}\n", metrics=[], summary=AT_CHANCE))
    said = " ".join(tried(run))
    assert [words for words in (*told, *untold) if words in said] == told


@pytest.mark.parametrize("measured", [{}, {"preference_accuracy": 0.6, "preference_accuracy_ci95": [0.55, 0.65]}])
def test_a_run_on_labels_whose_loss_rose_is_told_so(write_run, measured):
    summary = {"steps": 9, "learning_rate": 3e-4, "before": {"loss": 0.5}, "after": {"loss": 0.57, **measured}}
    kto = "objective: {name: kto, beta: 0.1}\n"
    run = read(evidence.add(write_run(config=kto, metrics=[], summary=summary), evaluation=evidence.evaluation()))
    first, *others = advice(run, changes(run))
    assert first.text.startswith("The held-out loss rose from 0.500 to 0.570")
    assert "optim.learning_rate=0.0001" in first.command
    assert any("weaker hold" in one.text for one in others)


@pytest.mark.parametrize(("own", "told"), [(True, True), (False, False)])
def test_answers_have_grown_only_against_the_runs_own_start(write_run, own, told):
    values = {**evidence.evaluation(), "own_reference": own}
    del values["win_rate"]
    run = read(evidence.add(write_run(), evaluation=values))
    assert any(text.startswith("Answers grew from 15.60 to 20.40 tokens") for text in tried(run)) == told
    assert any("simple baselines" in text for text in tried(run)) != told, "that evaluation is yet to be made"


@pytest.mark.parametrize(("own", "words"), [(True, "KL to the reference: 2.29"), (False, "KL to ./[b]other: 2.29")])
def test_a_terminal_names_what_the_kl_is_to(own, words):
    values = {**evidence.evaluation(), "own_reference": own, "against": "./[b]other"}
    values["data"]["kind"] = "pairs"
    told = StringIO()
    show_evaluation(values, Console(file=told, width=200))
    assert words in told.getvalue()


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(-(10**400), 10**400), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "rule", "b"]), inner)),
    max_leaves=4,
)


def damaged(draw, value):
    """The same, with some of its values replaced by anything that JSON can hold."""
    if draw(st.integers(0, 11)) == 0:
        return draw(JUNK)
    if isinstance(value, dict):
        return {key: damaged(draw, inner) for key, inner in value.items() if draw(st.integers(0, 15))}
    return [damaged(draw, inner) for inner in value[:3]] if isinstance(value, list) else value


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.data())
def test_no_evidence_breaks_the_page(write_run, tmp_path, data):
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    whole = {
        "evaluation": evidence.evaluation(),
        "generations": evidence.generations(2),
        "credit": evidence.credit(1, 3),
        "data_doctor": evidence.data_doctor(),
        "summary": {"steps": 3, "doctor": [evidence.symptom(3)], "before": {"mean_length": 3}, "after": {"loss": 1.0}},
    }
    files = {}
    for name, value in whole.items():
        parts = damaged(data.draw, value)
        kept = [row for row in parts if isinstance(row, dict)] if isinstance(parts, list) else parts
        files[name] = kept if isinstance(kept, type(value)) else value
    folder = evidence.add(write_run("any", metrics=[evidence.symptom(2)]), **files)
    assert render(read(folder)).count("<section") == 8


def without_logps(row):
    """What a reward model has of it."""
    words = ("policy_accuracy", "logp", "kl", "true_reward", "delta")
    return {key: value for key, value in row.items() if not any(word in key for word in words)}


def test_a_reward_model_is_told_in_its_own_words(write_run):
    policy = read(write_run("policy"))
    folder = write_run(
        "scalar",
        config="model: {path: tiny}\ndata: {path: pairs.jsonl}\nobjective: {name: bradley_terry}\n",
        metrics=[without_logps(row) for row in policy.history],
        summary={"steps": 30, **{when: without_logps(policy.summary[when]) for when in ("before", "after")}},
        samples=[],
    )
    evaluation = evidence.evaluation()
    del evaluation["against"], evaluation["generation"], evaluation["win_rate"], evaluation["baselines"]["reference"]
    evaluation["pairs"] = without_logps(evaluation["pairs"])
    page = render(read(evidence.add(folder, evaluation=evaluation)))
    text = page[page.index("<main") : page.rindex("</main>")]
    assert "preftune trained a reward model from tiny" in text
    assert "The reward model scores the chosen response above the rejected one in 75.0% of held-out pairs" in text
    assert "chosen is scored above rejected" in text
    assert re.findall(r"[^<>]*(?:implicit|\breference)[^<>]*", text.lower()) == []

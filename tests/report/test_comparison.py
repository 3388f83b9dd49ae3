from __future__ import annotations

import re

import evidence
import pytest

from preftune.errors import PreftuneError
from preftune.report import comparison
from preftune.report.comparison import ahead, compare, differing, overlaid, trade_off
from preftune.report.reading import read


def summary(accuracy, half, **more):
    return {
        "after": {
            "preference_accuracy": accuracy,
            "preference_accuracy_ci95": [accuracy - half, accuracy + half],
            **more,
        }
    }


def test_configs_are_compared_key_by_key(write_run):
    one = read(write_run("one"))
    other = read(
        write_run("other", config="model: {path: tiny}\nobjective: {name: ipo, tau: 0.1}\noutput: {path: x}\n")
    )
    assert differing([one, other]) == [
        ("data.path", ["pairs.jsonl", "\u2013"]),
        ("objective.beta", ["0.1", "\u2013"]),
        ("objective.name", ["dpo", "ipo"]),
        ("objective.tau", ["\u2013", "0.1"]),
    ]
    assert differing([one, one]) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([(0.7, 0.02), (0.8, 0.02)], "80.0% (95% interval 78.0% to 82.0%). Its interval lies above that of A."),
        ([(0.8, 0.02), (0.79, 0.02)], "It overlaps with that of B, so this may be noise."),
        ([(0.8, 0.02), (0.79, 0.02), (0.6, 0.02)], "above that of C. It overlaps with that of B, so"),
        ([(0.8, 0.02)], "No figure of these runs has intervals"),
    ],
)  # fmt: skip
def test_a_run_is_ahead_only_where_intervals_do_not_overlap(write_run, values, words):
    runs = [read(write_run(f"r{i}", summary=summary(*value), metrics=[])) for i, value in enumerate(values)]
    assert words in ahead(compare(runs))


def test_the_trade_off_has_the_runs_whose_kl_is_known(write_run):
    measured = write_run("measured", summary=summary(0.7, 0.02, kl=1.5, kl_se=0.1), metrics=[])
    evaluated = evidence.add(write_run("evaluated", summary=summary(0.8, 0.02)), evaluation=evidence.evaluation())
    neither = write_run("neither", summary=summary(0.8, 0.02))
    accuracy, win_rate = trade_off(compare([read(run) for run in (measured, evaluated, neither)]))
    found = [(trace.name, trace.x, trace.y, trace.error_x.array) for trace in accuracy.cells[0].traces]
    assert found == [("A measured", (1.5,), (0.7,), (0.196,)), ("B evaluated", (2.29,), (0.8,), (0.05488,))]
    assert [trace.name for trace in win_rate.cells[0].traces] == ["B evaluated"]


def test_figures_against_another_model_or_on_other_data_are_left_out(write_run):
    for i, flag in enumerate(("own_reference", "own_data")):
        folder = evidence.add(
            write_run(f"r{i}", summary=summary(0.8, 0.02)), evaluation={**evidence.evaluation(), flag: False}
        )
        (one,) = compare([read(folder)])
        found = {key: estimate.value for key, estimate in one.figures.items() if estimate.value is not None}
        assert found == {
            "preference_accuracy": 0.8,
            "loss": pytest.approx(0.573),
            "margin": 0.6,
            "policy_accuracy": 0.5,
        }


def test_losses_of_different_objectives_are_not_overlaid(write_run):
    one, other = read(write_run("one")), read(write_run("other", config="objective: {name: ipo}\n"))
    assert [panel.key for panel in overlaid(compare([one, one]))][:3] == [
        "over-preference_accuracy",
        "over-loss",
        "over-margin",
    ]
    assert {"over-loss", "over-margin"}.isdisjoint(panel.key for panel in overlaid(compare([one, other])))


def test_runs_go_on_in_letters(write_run):
    run = read(write_run(metrics=[]))
    assert [one.letter for one in compare([run] * 28)][24:] == ["Y", "Z", "AA", "AB"]


def test_what_was_not_measured_is_a_dash_and_its_command_is_told(write_run, tmp_path):
    runs = [write_run("one", summary=summary(0.7, 0.1)), write_run("two words", metrics=[], summary=None)]
    page = comparison.write(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.search(r"preftune evaluate &#39;\S+/two words&#39;", page)
    assert "True reward against KL" not in page


def test_a_page_that_cannot_be_written_is_one_sentence(write_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreftuneError, match=r"cannot write .*file/page.html .*--out"):
        comparison.write([write_run("one")], tmp_path / "file" / "page.html")


HALVES = [(0.7, 0.02), (0.8, 0.02)]


@pytest.mark.parametrize(
    ("data", "manifests", "reason"),
    [
        (["{path: a}", "{path: b}"], [{}, {}], "data.path"),
        (["{path: a}", "{path: a}"], [{"records": {"held_out": n}} for n in (5, 6)], "the number of held-out records"),
        (["{path: a}", "{path: a}"], [{"data_sha256": n} for n in "ab"], "what the data holds"),
        (["{path: a}", "{path: a}, seed: 1"], [{"data_sha256": n} for n in "ab"], "the seed, which draws"),
        (["{path: a}", "{path: b}"], [{"data_sha256": "a"}] * 2, ""),
        (["{path: a, held_out_path: c}", "{path: b, held_out_path: c}"], [{"data_sha256": n} for n in "ab"], ""),
    ],
)
def test_no_run_is_ahead_of_one_with_other_held_out_data(write_run, tmp_path, data, manifests, reason):
    folders = [
        write_run(
            f"r{i}", summary=summary(*HALVES[i], kl=1.0), config="data: " + data[i].replace("}, ", "}\n"), manifest=m
        )
        for i, m in enumerate(manifests)
    ]
    said = ahead(compare([read(folder) for folder in folders]))
    page = comparison.write(folders, tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("No run is called ahead" in said) == bool(reason)
    assert reason in said
    assert ("B is ahead" in said) == (not reason)
    assert ("say nothing of which is better" in page) == bool(reason)
    assert ("the one on the left is better" in page) == (not reason)


def test_a_reward_model_is_not_asked_for_its_kl(write_run, tmp_path):
    folders = [
        write_run("policy", config="objective: {name: dpo, beta: 0.1}\n", summary=summary(0.7, 0.1)),
        write_run("scalar", config="objective: {name: bradley_terry}\n", summary=summary(0.7, 0.1)),
    ]
    page = comparison.write(folders, tmp_path / "page.html").read_text(encoding="utf-8")
    assert [letter for letter in "AB" if f"KL of {letter}:" in page] == ["A"]


@pytest.mark.parametrize(("objective", "raw"), [("dpo", True), ("ipo", False)])
def test_calibration_without_a_temperature_is_compared_within_one_objective(write_run, tmp_path, objective, raw):
    folders = [
        evidence.add(write_run(name, config=f"objective: {{name: {name_of}}}\n"), evaluation=evidence.evaluation())
        for name, name_of in (("one", "dpo"), ("other", objective))
    ]
    page = comparison.write(folders, tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("margins read as log-odds" in page) == raw
    assert "margins over a fitted temperature" in page

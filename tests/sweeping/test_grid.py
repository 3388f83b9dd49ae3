"""From words to runs: every combination that makes sense, refused or explained before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from preftune.errors import PreftuneError
from preftune.sweeping.grid import axes_from, axes_of, grid

SANDBOX = ["model.path=sandbox", "data.path=sandbox"]


def names(*words: str, file: Path | None = None) -> list[str]:
    return [cell.name for cell in grid(axes_of([*SANDBOX, *words]), file).cells]


def test_every_combination_is_a_run_in_the_order_given() -> None:
    found = names("objective.beta=0.1,0.3", "optim.learning_rate=1e-4,1e-3")
    assert found == [f"beta={b}-learning_rate={r}" for b in ("0.1", "0.3") for r in ("1e-4", "1e-3")]


def test_a_key_that_is_given_again_takes_further_values_each_once() -> None:
    assert names("objective.beta=0.1", "objective.beta=0.3,0.1") == ["beta=0.1", "beta=0.3"]


def test_commas_in_brackets_and_quotes_separate_nothing() -> None:
    found = grid(axes_of([*SANDBOX, "model.lora={r: 2, alpha: 4},null", 'data.layout="a,b"']))
    assert [cell.config.model.lora is None for cell in found.cells] == [False, True]
    assert found.cells[0].config.data.layout == "a,b"
    assert found.cells[0].name == "lora=_r_2_alpha_4"


def test_a_field_is_varied_where_an_objective_has_it_and_the_others_are_explained() -> None:
    found = grid(axes_of([*SANDBOX, "objective.name=dpo,ipo", "objective.beta=0.1,0.3", "objective.tau=0.5,1"]))
    assert [cell.name for cell in found.cells] == ["dpo-beta=0.1", "dpo-beta=0.3", "ipo-tau=0.5", "ipo-tau=1"]
    assert [term.objective.describe().get("tau") for cell in found.cells[2:] for term in cell.terms] == [0.5, 1.0]
    assert found.notes == (
        "objective.beta is a field of dpo: runs of ipo go without",
        "objective.tau is a field of ipo: runs of dpo go without",
    )


def test_without_the_field_an_objective_is_trained_once() -> None:
    assert names("objective.name=dpo,ipo", "objective.beta=0.1,0.3,1") == [
        "dpo-beta=0.1",
        "dpo-beta=0.3",
        "dpo-beta=1",
        "ipo",
    ]


def test_runs_that_come_to_the_same_are_one() -> None:
    assert names("objective.beta=0.1,0.10", "seed=0,1") == ["beta=0.1-seed=0", "beta=0.1-seed=1"]


def test_a_file_gives_the_rest_and_another_objective_drops_its_fields(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("objective: {name: dpo, beta: 0.7}\noptim: {learning_rate: 1e-3}\n")
    found = grid(axes_of([*SANDBOX, "objective.name=dpo,ipo"]), file).cells
    assert [cell.config.optim.learning_rate for cell in found] == [1e-3, 1e-3]
    assert found[0].terms[0].objective.describe()["beta"] == 0.7
    assert "beta" not in found[1].terms[0].objective.describe()


def test_a_mix_of_objectives_is_reached_into_by_index(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("objective: [{name: dpo}, {name: sft, weight: 0.1}]\n")
    found = grid(axes_of([*SANDBOX, "objective.1.weight=0.1,0.5"]), file).cells
    assert [cell.terms[1].weight for cell in found] == [0.1, 0.5]


def test_values_from_python_are_those_of_the_command_line() -> None:
    python = grid(axes_from({"model.path": Path("sandbox"), "data.path": "sandbox", "objective.beta": [0.1, 0.3]}))
    assert [cell.config for cell in python.cells] == [
        cell.config for cell in grid(axes_of([*SANDBOX, "objective.beta=0.1,0.3"])).cells
    ]
    assert [cell.name for cell in python.cells] == ["beta=0.1", "beta=0.3"]


def test_one_reference_is_stored_for_all_that_can_share_it(tmp_path: Path) -> None:
    cells = grid(axes_of([*SANDBOX, "objective.name=dpo,simpo,tdpo"])).cells
    placed = [cell.placed(tmp_path) for cell in cells]
    assert [config.reference.kind for config in placed] == ["stored", "auto", "auto"]  # none, and live by nature
    assert placed[0].reference.folder == str(tmp_path / "reference")
    assert placed[1].output.path == str(tmp_path / "runs" / "simpo")
    live = grid(axes_of([*SANDBOX, "objective.beta=0.1,0.3", "reference.kind=live"])).cells[0]
    assert live.placed(tmp_path).reference.kind == "live"


def test_online_runs_compute_their_reference(tmp_path: Path) -> None:
    found = grid(axes_of([*SANDBOX, "objective.name=dpo,rloo", "online.judge=sandbox", "online.rounds=2"]))
    assert [cell.placed(tmp_path).reference.kind for cell in found.cells] == ["auto", "auto"]


def test_what_changes_the_held_out_data_is_told() -> None:
    assert "seed changes what is held out" in grid(axes_of([*SANDBOX, "seed=0,1"])).notes[0]
    assert not grid(axes_of([*SANDBOX, "seed=0,1", "data.held_out_path=x.jsonl"])).notes


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["objective.beta=0.1"], "nothing varies: give at least one key several values"),
        (["objective.bta=0.1,0.2"], "none of the swept objectives has a field bta"),
        (["objective.beta=0.1,,0.2"], "has an empty value between commas"),
        (["beta"], "'beta' is not of the form KEY=VALUE"),
        (["objective.beta=0.1,-1"], "of the sweep's combinations, objective.beta=-1 cannot be trained: objective dpo"),
        (["objective.name=dpo,ipoo"], "unknown objective 'ipoo'; did you mean ipo?"),
        (["optim.learning_rat=1,2"], "unknown key optim.learning_rat on the command line; did you mean"),
        (["output.path=a,b"], "output.path is set by the sweep itself"),
        (
            ["objective.average=sum,mean", "objective.name=ipo,dpo", "objective.tau=0"],
            "cannot be trained: objective ipo",
        ),
    ],
)
def test_what_makes_no_sweep_is_refused_in_one_sentence(words: list[str], says: str) -> None:
    with pytest.raises(PreftuneError) as error:
        names(*words)
    assert says in str(error.value)
    assert "\n" not in str(error.value)

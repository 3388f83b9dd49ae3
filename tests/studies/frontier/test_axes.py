"""What is run on each axis: fair, and no cell twice."""

from collections import Counter

import pytest

from preftune.objectives import registry
from preftune.studies.frontier.axes import AXES, FULL, QUICK, scored_cells, tuning_cells
from preftune.studies.frontier.cells import TUNING_SEED, Cell, Outcome
from preftune.studies.frontier.methods import METHODS


@pytest.mark.parametrize("method", [each for each in METHODS.values() if each.trains], ids=lambda each: each.key)
def test_every_objective_is_built_at_every_strength(method):
    for strength in method.strengths:
        (term,) = registry.terms(method.spec(strength))
        if method.strength != "updates":
            assert getattr(term.objective, method.strength) == strength


def test_all_methods_that_train_have_one_budget():
    trained = [method for method in METHODS.values() if method.trains]
    assert {(len(method.strengths), len(method.rates)) for method in trained} == {(4, 3)}
    cells = tuning_cells(AXES["methods"].methods, "listed", FULL)
    counts = Counter(cell.method for cell in cells)
    assert {counts[method.key] for method in trained} == {12}
    assert {(cell.seed, cell.split) for cell in cells} == {(TUNING_SEED, "validation")}
    assert not tuning_cells(AXES["methods"].methods, "listed", QUICK)


@pytest.mark.parametrize("axis", AXES.values(), ids=lambda axis: axis.key)
def test_methods_share_seeds_and_preferences_and_none_is_the_tuning_seed(axis):
    found = list(scored_cells(axis, axis.methods, "listed", FULL, {}, FULL.seeds))
    cells = [cell for _, cell in found]
    assert len({cell.key for cell in cells}) == len(cells)
    assert {cell.split for cell in cells} == {"test"}
    assert TUNING_SEED not in {cell.seed for cell in cells}
    by_method = {}
    for condition, cell in found:
        if METHODS[cell.method].kind != "reference" and condition.methods is None:
            by_method.setdefault(cell.method, set()).add((condition.name, cell.seed, cell.preferences))
    assert len({frozenset(seen) for seen in by_method.values()}) == 1
    assert axis.baseline in by_method


def test_what_two_axes_need_is_one_cell():
    shared = [
        {cell.key for _, cell in scored_cells(AXES[key], ("dpo",), "listed", FULL, {}, 5)}
        for key in ("methods", "noise", "sources", "shift")
    ]
    assert len(set.intersection(*shared)) == 20  # DPO on plain preferences: four strengths, five seeds


def test_full_forms_have_at_least_four_strengths_and_five_seeds_and_quick_ones_three_seeds():
    assert len(FULL.strengths) >= 4
    assert len(FULL.others) >= 4
    assert FULL.seeds >= 5
    assert QUICK.seeds >= 3


def test_cells_read_back_as_they_were_written():
    for axis in AXES.values():
        for _, cell in scored_cells(axis, axis.methods, "sandbox", QUICK, {}, 2):
            assert Cell.read(cell.plain()) == cell
            outcome = Outcome(cell, None, {"reward": 1.0, "parts": {"a": 1.0}})
            assert Outcome.read(outcome.plain()) == outcome

import ast
from itertools import pairwise, permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

import preftune.theory
from preftune.theory.solving import NoFiniteOptimumError, groups, minimise, reachable, shortest_cycles

graphs = st.integers(1, 6).flatmap(
    lambda size: st.lists(st.lists(st.booleans(), min_size=size, max_size=size), min_size=size, max_size=size)
)


def edges(rows):
    return tensor(rows).fill_diagonal_(False)


def paths(beats):
    """All simple paths, by brute force: (start, ..., end)."""
    size = len(beats)
    return [
        path
        for length in range(2, size + 1)
        for path in permutations(range(size), length)
        if all(beats[i, j] for i, j in pairwise(path))
    ]


def test_the_valley_of_rosenbrock_is_followed_to_its_end():
    found = minimise(lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, tensor([-1.2, 1.0]))
    torch.testing.assert_close(found, torch.ones(2, dtype=torch.float64), rtol=1e-12, atol=0)


def test_directions_without_slope_stay_where_they_started():
    found = minimise(lambda x: (x[0, 0] - x[0, 1] - 4) ** 2, tensor([[1.0, 3.0]]))
    torch.testing.assert_close(found, tensor([[4.0, 0.0]], dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_hollow_that_bends_the_wrong_way_is_left():
    assert minimise(torch.cos, tensor(0.1)).item() == pytest.approx(torch.pi)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: torch.nn.functional.softplus(-x).sum(),  # falls for ever
        lambda x: torch.nn.functional.softplus(-x[0]) + (x[1] - 1) ** 2,  # in one of two directions
        lambda x: -x.sum(),
        lambda x: -(x**2).sum(),  # the start is the top
    ],
)
def test_what_has_no_finite_minimum_is_refused(loss):
    with pytest.raises(NoFiniteOptimumError, match="no finite minimum"):
        minimise(loss, torch.zeros(2))


@settings(max_examples=60, deadline=None)
@given(rows=graphs)
def test_reachability_is_that_of_all_paths(rows):
    beats = edges(rows)
    expected = {(path[0], path[-1]) for path in paths(beats)} | {(i, i) for i in range(len(beats))}
    assert {tuple(pair) for pair in reachable(beats).nonzero().tolist()} == expected


@settings(max_examples=60, deadline=None)
@given(rows=graphs)
def test_shortest_cycles_are_those_of_all_paths(rows):
    beats = edges(rows)
    cycles = [path for path in paths(beats) if beats[path[-1], path[0]]]
    found = shortest_cycles(beats)
    assert len(set(found)) == len(found)
    assert set(found) <= {cycle for cycle in cycles if cycle[0] == min(cycle)}
    for i, j in beats.nonzero().tolist():
        through = [len(cycle) for cycle in cycles if cycle[:2] == (i, j)]
        held = [len(c) for c in found if (i, j) in zip(c, (*c[1:], c[0]), strict=True)]
        assert bool(through) == bool(held)
        assert min(through, default=0) == min(held, default=0)


def test_groups_are_classes_in_order():
    alike = tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
    assert groups(alike) == [[0, 2], [1]]


def test_theory_imports_nothing_of_ours_but_itself():
    for path in Path(preftune.theory.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("preftune"):
                assert module.startswith("preftune.theory"), f"{path.name} imports {module}"

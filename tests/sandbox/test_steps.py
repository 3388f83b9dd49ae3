"""The world of steps: what a chain is, and which of its lines are wrong."""

import random
from itertools import pairwise

import pytest

from preftune.sandbox.steps import LINES, MODULUS, SLIP, StepsWorld, result, wrong_lines


def test_sums_wrap_around() -> None:
    assert [result(4, "+", 3), result(1, "-", 3), result(0, "+", 0)] == [2, 3, 0]


def test_wrong_lines_are_found_each_by_itself() -> None:
    lines = ["so 3+4=2", "then 2-3=4", "hence 4+4=0", "so 0-1=4", "then 4+0=4"]
    assert wrong_lines("".join(f" {line}\n" for line in lines)) == [2]
    assert wrong_lines("".join(f" {line}\n" for line in [*lines[:2], "hence 4+4=3", *lines[3:]])) == []


@pytest.mark.parametrize("answer", ["", " so 3+4=2\n", " so 3+4=2\n" * 6, " so 3+4=2\n" * 4 + " so 3+4=7\n"])
def test_what_is_no_chain_is_not_judged(answer: str) -> None:
    assert wrong_lines(answer) is None


def test_chains_go_on_from_their_results_and_slip_on_hard_sums_alone() -> None:
    world, rng = StepsWorld.drawn(3), random.Random(0)
    wrong = lines = 0
    for _ in range(2000):
        _, answer = world.chain(rng)
        found = wrong_lines(answer)
        assert found is not None
        wrong, lines = wrong + len(found), lines + LINES
        numbers = [(line.split()[1][0], line[-1]) for line in answer.strip("\n").split("\n")]
        assert all(before[1] == after[0] for before, after in pairwise(numbers))
    hard = len(world.slips) / (2 * MODULUS**2)
    # starts are not uniform once results are: what is expected is near the share of hard sums times that of slips
    assert wrong / lines == pytest.approx(hard * SLIP, abs=0.05)


def test_a_seed_gives_its_world_again() -> None:
    assert StepsWorld.drawn(1) == StepsWorld.drawn(1) != StepsWorld.drawn(2)

"""Whether twice the pairs take twice the time.

    python benchmarks/scaling.py [--rows dialogue gsm8k] [--pairs 8] [--rounds 9] [--clock cpu]

Steps over a batch and over twice its pairs take turns, in one process; the medians are compared. Each row must lie
within 15% of 2, or the command fails. On a machine that is busy
with other things, --clock cpu compares the time of the processor. Operations are counted in
tests/invariant/test_cost.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from settings import ROWS, Setting, prepare

from preftune.data.examples import Example
from preftune.objectives import registry
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference
from preftune.training.batches import BatchConfig
from preftune.training.feed import Feed
from preftune.training.optim import OptimConfig, optimizer
from preftune.training.scored import fetch
from preftune.training.step import Step

TOLERANCE = 0.15
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def stepper(setting: Setting, clock: Callable[[], float]) -> Callable[[Sequence[Example]], float]:
    """Takes one optimiser step, packing and metrics included, and gives its seconds."""
    policy, other = setting.models()
    module = PolicyModule(policy, "tree")
    accelerator = Accelerator(cpu=True)
    prepared, adamw = accelerator.prepare(module, optimizer(module, OptimConfig(), 1e-6))
    terms = registry.terms("dpo")
    step = Step(prepared, FrozenReference(PolicyModule(other, "tree")), terms, accelerator, seed=0)
    feed = Feed(module, BatchConfig(), None, torch.device("cpu"), 0)

    def seconds(examples: Sequence[Example]) -> float:
        start = clock()
        scored = fetch([step.train(feed.side(examples), ({},), adamw, 0, 1.0)])[0]
        scored.require_finite()
        return clock() - start

    return seconds


def ratio(name: str, pairs: int, rounds: int, clock: Callable[[], float]) -> float:
    """Median seconds of a step over twice the pairs, by those of a step over the pairs."""
    setting = prepare(name, pairs)
    seconds = stepper(setting, clock)
    once, twice = setting.examples, [*setting.examples, *setting.examples]
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds + 1):
        for times_pairs, examples in ((1, once), (2, twice)):
            taken = seconds(examples)
            if turn:  # the first turn warms up
                times[times_pairs].append(taken)
    medians = {size: statistics.median(each) for size, each in times.items()}
    print(f"{name}: {medians[1]:.3f} s and {medians[2]:.3f} s, {medians[2] / medians[1]:.3f} times", flush=True)
    return medians[2] / medians[1]


def main() -> None:
    """Compare, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    given = parser.parse_args()
    clock = CLOCKS[given.clock]
    off = [name for name in given.rows if abs(ratio(name, given.pairs, given.rounds, clock) / 2 - 1) > TOLERANCE]
    if off:
        sys.exit(f"not within {TOLERANCE:.0%} of twice the time: {', '.join(off)}")


if __name__ == "__main__":
    main()

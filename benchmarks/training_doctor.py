"""How often the training doctor's rules fire on sick runs of the built-in world, and on healthy ones.

    python benchmarks/training_doctor.py
    python benchmarks/training_doctor.py --seeds 5 --only healthy

Sick runs, and the same cured, are those of tests/training/doctor/scenarios.py; healthy ones train dpo, ipo, kto, simpo
and orpo at four to six settings each. Whether a run was healthy is measured, and not assumed: the true reward of 256
samples must have risen beyond its interval, and 95% of them be grammatical.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training" / "doctor"))

from scenarios import CURED, HEALTHY, SICK, Scenario, healthy

from preftune import api
from preftune.sandbox.preferences import base_model, evaluate_policy
from preftune.sandbox.world import prompts
from preftune.training.doctor.rules import RULES

PROMPTS = 64
WARNINGS = {rule.name for rule in RULES if rule.severity == "warning"}


def look(lm: nn.Module) -> dict[str, Any]:
    """What a policy is truly worth."""
    found = evaluate_policy(lm, base_model(), prompts()[1][:PROMPTS], samples_per_prompt=4)
    return {
        "true_reward": found.true_reward,
        "true_reward_ci95": list(found.true_reward_ci95),
        "grammatical": found.grammatical,
        "kl": found.kl,
    }


def carry_out(scenario: Scenario, seed: int, probed: bool) -> dict[str, Any]:
    """A run's summary; its rules are those that fired at any time, whether they stand at the end or not."""
    with tempfile.TemporaryDirectory() as folder:
        run = scenario.train(Path(folder) / "run", seed, probe=look if probed else None)
        fired = [line["rule"] for line in run.history if line["kind"] == "doctor"]
        return {**run.summary, "fired": fired}


def scenarios(seeds: int, names: Sequence[str]) -> Iterator[str]:
    """A line for each sick run: hits, what else was said, and hits once cured."""
    yield "| sick run | rule | fires | other warnings | fires, cured |"
    yield "| --- | --- | --- | --- | --- |"
    for name, sick in ((name, SICK[name]) for name in names or SICK):
        hits, cured, others = 0, 0, Counter[str]()
        for seed in range(seeds):
            fired = carry_out(sick, seed, False)["fired"]
            hits += sick.rule in fired
            others.update(WARNINGS.intersection(fired) - {sick.rule})
            cured += sick.rule in carry_out(CURED[name], seed, False)["fired"]
        said = ", ".join(f"{rule} {count}" for rule, count in sorted(others.items())) or "none"
        yield f"| {name} | {sick.rule} | {hits} of {seeds} | {said} | {cured} of {seeds} |"


def sane(seeds: int) -> Iterator[str]:
    """A line for each objective and setting: of its healthy runs, those in which a warning was given."""
    yield "| objective | learning rate | healthy | true reward | KL | warnings in healthy runs | information |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    total, alarmed = 0, 0
    for name, settings in HEALTHY.items():
        for fields, rate in settings:
            well, warned, told = 0, Counter[str](), Counter[str]()
            rewards, kls = [], []
            for seed in range(seeds):
                found = carry_out(healthy(name, fields, rate), seed, True)
                before, after = found["before"], found["after"]
                rewards.append(after["true_reward"])
                kls.append(after["kl"])
                if after["true_reward_ci95"][0] <= before["true_reward_ci95"][1] or after["grammatical"] < 0.95:
                    continue
                well += 1
                warned.update(WARNINGS.intersection(found["fired"]))
                told.update(set(found["fired"]) - WARNINGS)
                alarmed += bool(WARNINGS.intersection(found["fired"]))
            total += well
            words = [", ".join(f"{k} {v}" for k, v in sorted(each.items())) or "none" for each in (warned, told)]
            reward, kl = (sum(values) / seeds for values in (rewards, kls))
            setting = ", ".join(f"{key} {value:g}" for key, value in fields.items())
            yield (
                f"| {name}, {setting} | {rate:g} | {well} of {seeds} | {reward:.2f} | {kl:.2f} | {words[0]} | "
                f"{words[1]} |"
            )
    yield f"\n{alarmed} of {total} healthy runs were warned of something."


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("sick", "healthy"))
    parser.add_argument("--sick", nargs="*", choices=tuple(SICK), default=(), metavar="NAME", help="of these alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    api.write_report = lambda folder: None  # type: ignore[assignment]  # they take longer than these runs
    tables = {"sick": scenarios(given.seeds, given.sick), "healthy": sane(given.seeds)}
    for kind in tables if given.only is None else (given.only,):
        for line in tables[kind]:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()

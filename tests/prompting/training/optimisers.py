"""Pairs of rewrites, how they are asked, a user's own module, and configs of a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preftune.data.records import Where
from preftune.prompting.records import PromptPair

TEMPLATE = """\
optimizer: "{prompt}{known} In {words}:"
response: " [{response}]"
ground_truth: " ({ground_truth})"
plain_end: "\\n"
instruction: "{prompt} Answer:"
discriminator: "{prompt}{known} A: {first} B: {second}"
"""
# A user's own module: judges of rewrites, a generator and a checker.
OWN = """\
import hashlib
import os
import signal


def drawn(prompt, response, row):
    asked = os.environ.get("KILL_AT")
    if asked and row["prompt"] == asked:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(hashlib.sha256(response.encode()).hexdigest()[:8], 16)


def longer(prompt, response, row):
    return len(response)


def first(prompt, a, b, row):
    return "a"


def answers(prompts):
    return ["it is good" if "Think" in prompt else "it is bad" for prompt in prompts]


def others(prompts):
    return ["it is bad" if "Think" in prompt else "it is good" for prompt in prompts]


def nothing(prompt, response, row):
    return 0.0


def right(prompt, response, row):
    return float("answer" in row and row["answer"].endswith(response.split()[-1]))
"""
SUBJECTS, VERBS = ("robot", "king", "dog", "pirate", "doctor", "city"), ("Describe", "Praise", "Draw")

Settings = dict[str, Any]


def pair(number: int, verb: str, subject: str) -> PromptPair:
    prompt = f"{verb} a {subject}."
    return PromptPair(
        id=f"{verb}-{subject}",
        prompt=prompt,
        chosen=f"{prompt} Think first.",
        rejected=f"{prompt} Now.",
        naive_response=f"a {subject} is bad",
        ground_truth=f"a {subject} is good",
        where=Where("pairs.jsonl", number),
    )


PAIRS = [pair(i, *each) for i, each in enumerate((verb, subject) for verb in VERBS for subject in SUBJECTS)]


def config_of(world: Path, folder: Path, **blocks: Any) -> Settings:
    """A config of a few steps; what is given is put over it."""
    base: Settings = {
        "model": {"path": str(world / "base" / "model")},
        "data": {"path": str(world / "pairs.jsonl"), "held_out": 4},
        "objective": {"name": "ipo"},
        "prompts": {"template": str(world / "short.yaml")},
        "optim": {"learning_rate": 1e-4},
        "train": {"max_steps": 2, "device": "cpu", "check_memory": False},
        "batch": {"size": 8},
        "evaluate": {"samples": 0},
        "output": {"path": str(folder)},
    }
    for key, value in blocks.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return base


def in_rounds(world: Path, folder: Path, prompts: Settings | None = None, **blocks: Any) -> Settings:
    """Two rounds, with a judge that draws lots; what is given is put over it."""
    how = {"rounds": 2, "discriminator": "own:drawn", "facts": False, "max_new_tokens": 24, **(prompts or {})}
    return config_of(world, folder, prompts=how, **blocks)

"""Real task prompts (GSM8K and BIG-Bench Hard, where they lie beside the repository), and optimisers that spoil them.

The functions that rewrite are named on command lines as task_prompts:NAME; each takes what an optimiser is asked.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"
PLAN = "\n\nThink about it carefully, and say how you found the answer."
ASKED = re.compile(r"\[Prompt\]\n(.*?)\n\[End of prompt\]", re.DOTALL)
OPTION = re.compile(r"^(?:\([A-Z]\)|-) .*$", re.MULTILINE)
QUOTED = re.compile(r'"[^"\n]+"')


def task_prompts(count: int = 200) -> list[str]:
    """Half of them GSM8K's, the others from all tasks of BIG-Bench Hard in turn; skips where the data is absent."""
    math, tasks = SHARED / "gsm8k" / "test.jsonl", SHARED / "bbh"
    if not math.is_file() or not tasks.is_dir():
        pytest.skip(f"needs the real data in {SHARED}")
    lines = math.read_text(encoding="utf-8").splitlines()
    found: list[str] = [json.loads(line)["question"] for line in lines[: count // 2]]
    examples = [json.loads(path.read_text(encoding="utf-8"))["examples"] for path in sorted(tasks.glob("*.json"))]
    in_turn = [task[i]["input"] for i in range(count) for task in examples if i < len(task)]
    return found + in_turn[: count - len(found)]


def originals(asked: list[str]) -> list[str]:
    """The naive prompts in what an optimiser is asked."""
    found = []
    for one in asked:
        match = ASKED.search(one if isinstance(one, str) else one[-1]["content"])
        assert match is not None
        found.append(match[1])
    return found


def better(asked: list[str]) -> list[str]:
    return [text + PLAN for text in originals(asked)]


def same(asked: list[str]) -> list[str]:
    return originals(asked)


def silent(asked: list[str]) -> list[str]:
    return ["" for _ in asked]


def shuffled(text: str, draw: random.Random) -> str:
    return " ".join(draw.sample(text.split(), len(text.split())))


def another_digit(text: str, draw: random.Random) -> str:
    places = [i for i, char in enumerate(text) if char.isdecimal()]
    if not places:
        return text
    i = draw.choice(places)
    return text[:i] + draw.choice([each for each in "0123456789" if each != text[i]]) + text[i + 1 :]


def one_digit_more(text: str, draw: random.Random) -> str:
    places = [i for i, char in enumerate(text) if char.isdecimal()]
    if not places:
        return text
    i = draw.choice(places)
    return text[:i] + draw.choice("123456789") + text[i:]


def two_numbers_swapped(text: str, draw: random.Random) -> str:
    numbers = list(re.finditer(r"\d+", text))
    pairs = [(a, b) for a in numbers for b in numbers if a.start() < b.start() and a[0] != b[0]]
    if not pairs:
        return text
    a, b = draw.choice(pairs)
    return text[: a.start()] + b[0] + text[a.end() : b.start()] + a[0] + text[b.end() :]


def a_line_dropped(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    if len(lines) < 2:
        return text[: len(text) // 2]
    del lines[draw.randrange(len(lines))]
    return "".join(lines)


def options_swapped(text: str, draw: random.Random) -> str:
    found = list(OPTION.finditer(text))
    if len(found) < 2:
        return text
    i = draw.randrange(len(found) - 1)
    a, b = found[i], found[i + 1]
    return text[: a.start()] + b[0] + text[a.end() : b.start()] + a[0] + text[b.end() :]


def an_option_added(text: str, draw: random.Random) -> str:
    found = list(OPTION.finditer(text))
    if not found:
        return text
    label = f"({chr(ord('A') + len(found))})" if found[0][0].startswith("(") else "-"
    return f"{text.rstrip()}\n{label} none of these"


def a_quotation_altered(text: str, draw: random.Random) -> str:
    found = list(QUOTED.finditer(text))
    if not found:
        return text
    match = draw.choice(found)
    words = match[0].split()
    words[draw.randrange(len(words))] += draw.choice(["!", "s", "?"])
    return text[: match.start()] + " ".join(words) + text[match.end() :]


def cut_short(text: str, draw: random.Random) -> str:
    return text[: draw.randrange(1, len(text))]


def answered(text: str, draw: random.Random) -> str:
    return f"{text}\n#### {draw.randrange(10**6, 10**7)}"


def no_digits(text: str, draw: random.Random) -> str:
    return re.sub(r"\d+", "several", text)


def spaces_gone(text: str, draw: random.Random) -> str:
    return "".join(text.split())


def upside_down(text: str, draw: random.Random) -> str:
    return "\n".join(reversed(text.splitlines())) if "\n" in text else " ".join(reversed(text.split()))


Spoils = Callable[[str, random.Random], str]
HOSTILE: tuple[Spoils, ...] = (
    shuffled,
    another_digit,
    one_digit_more,
    two_numbers_swapped,
    a_line_dropped,
    options_swapped,
    an_option_added,
    a_quotation_altered,
    cut_short,
    answered,
    no_digits,
    spaces_gone,
    upside_down,
)


def spoilt(by: Spoils, text: str) -> str:
    """A prompt that one of them was at, with something kind around it."""
    draw = random.Random(f"{by.__name__} {text}")
    found = by(text, draw)
    return found if found == text else draw.choice(["", "Please answer this.\n\n"]) + found + draw.choice(["", PLAN])


def hostile(asked: list[str]) -> list[str]:
    """All of them in turn."""
    return [spoilt(HOSTILE[i % len(HOSTILE)], text) for i, text in enumerate(originals(asked))]

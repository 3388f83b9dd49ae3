"""Real task prompts: questions of GSM8K and BIG-Bench Hard, where they lie beside the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"
NAMED = ("gsm8k/test.jsonl", "bbh")


def task_prompts(count: int = 200) -> list[str]:
    """Half of them GSM8K's, the others from all tasks of BIG-Bench Hard in turn; skips where the data is absent."""
    math, tasks = (SHARED / name for name in NAMED)
    if not math.is_file() or not tasks.is_dir():
        pytest.skip(f"needs the real data in {SHARED}")
    lines = math.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["question"] for line in lines[: count // 2]]
    examples = [json.loads(path.read_text(encoding="utf-8"))["examples"] for path in sorted(tasks.glob("*.json"))]
    in_turn = [task[i]["input"] for i in range(count) for task in examples if i < len(task)]
    return found + in_turn[: count - len(found)]

"""What users of other tools suffer and we promise not to do: each promise has a test that bears its number."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROMISES = {
    1: "prompt ids and response ids equal the full rendering",
    2: "one BOS at most, one end token exactly",
    3: "pairs that are identical or empty after truncation are dropped and listed; never NaN",
    4: "no end token is faked, and only the head of a prompt is cut",
    5: "what the model says of prompt tokens does not matter",
    6: "every accepted key changes a result, or is refused",
    7: "IPO with sums and with means, each against its closed form",
    8: "log-softmax in fp32 at least",
    9: "a reference that is the start agrees with the policy at step 0",
    10: "the reference is never random",
    11: "evaluation does not depend on the batch size",
    12: "accumulation does not change the scale",
    13: "padded, packed and shared prompts agree",
    14: "mismatched responses never match, at any batch size; a batch with one prompt is refused",
    15: "a run that is killed anywhere and goes on ends as one that never was",
    16: "the estimate of memory is within a tenth of the peak",
    18: "stored log-probs follow from tokens, weights and precision, and from nothing else",
}


def names() -> list[str]:
    """Every test function of this folder."""
    found = []
    for path in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.append(node.name)
    return found


@pytest.mark.parametrize("number", PROMISES)
def test_a_promise_has_a_test_named_after_it(number: int) -> None:
    assert any(name.startswith(f"test_promise_{number:02}_") for name in names()), PROMISES[number]

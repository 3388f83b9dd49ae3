from __future__ import annotations

import pytest

from preftune.policy.reasons import LONGEST, reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("All is lost.\nBecause of that"), "All is lost"),
        (
            ValueError("Wrong for 'a':\n    TypeError: expected int\nand so on"),
            "Wrong for 'a': TypeError: expected int",
        ),
        (ValueError("One:\n\n two:\n  three\nfour"), "One: two: three"),
        (ValueError("One:\n\n"), "One"),
        (ValueError("\n  late  words\n"), "late words"),
        (KeyError("added_tokens"), "there is no key 'added_tokens'"),
        (KeyError("keys are missing: a"), "keys are missing: a"),
        (KeyError(), "KeyError"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("x" * 1000), "x" * LONGEST),
    ],
)
def test_the_reason_is_one_line_and_the_one_that_matters(error, said):
    assert reason(error) == said

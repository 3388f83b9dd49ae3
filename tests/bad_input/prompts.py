"""Prompts that cannot be optimised, and optimisers that are not there."""

from __future__ import annotations

from bad_input.case import BadInput, file, nothing

OPTIMIZE = "preftune prompts optimize"
NOWHERE = "endpoint:http://127.0.0.1:9/v1"

PROMPTS = (
    BadInput("an empty prompt", nothing, f"{OPTIMIZE} '' -m sandbox", ("the prompt is empty, expected text",)),
    BadInput(
        "a prompt of control characters",
        nothing,
        f"{OPTIMIZE} 'a\x01b' -m sandbox",
        ("prompt 0 has the character U+0001, expected text",),
    ),
    BadInput(
        "a prompt that is no text",
        file("prompts.txt", b"\x89PNG\r\n\x1a\n\xff\x00"),
        f"{OPTIMIZE} -f prompts.txt -m sandbox",
        ("prompts.txt is no UTF-8 text (byte 0)",),
    ),
    BadInput(
        "a prompt of 100 kB",
        file("prompts.txt", b"a" * 100_000),
        f"{OPTIMIZE} -f prompts.txt -m sandbox",
        ("prompts.txt", "the prompt has 100,000 characters, expected at most 32,768"),
    ),
    BadInput(
        "a prompt longer than the optimiser reads",
        nothing,
        f"{OPTIMIZE} '{'a ' * 3000}' -m sandbox",
        ("sandbox takes none of 1 prompts", "say where their data begins"),
    ),
    BadInput("no optimiser", nothing, f"{OPTIMIZE} Why?", ("nobody is named who rewrites: give --model",)),
    BadInput("an endpoint that is down", nothing, f"{OPTIMIZE} Why? -m {NOWHERE}", ("http://127.0.0.1:9/v1",)),
    BadInput(
        "a budget of nothing",
        nothing,
        f"{OPTIMIZE} Why? -m {NOWHERE}#m --max-calls 0",
        ("the budget of calls is 0, expected at least 1",),
    ),
    BadInput(
        "a pattern that is none",
        nothing,
        f"{OPTIMIZE} Why? -m sandbox --protect-pattern '('",
        ("--protect-pattern '(' is no regular expression", "mend it"),
    ),
    BadInput(
        "examples that nobody answers",
        nothing,
        f"{OPTIMIZE} Why? -m sandbox --examples gsm8k",
        ("examples must be answered by somebody: name a generator",),
    ),
)

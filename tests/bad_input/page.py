"""The tables of docs/reliability.md: what was said about each bad input."""

from __future__ import annotations

import re
from collections.abc import Callable

from bad_input import GROUPS
from bad_input.case import BadInput, Said

BEGIN, END = "<!-- bad input: begin (make docs-reliability) -->", "<!-- bad input: end -->"
WIDEST = 72  # characters of a command; some cases are long on purpose


def tables(outcome: Callable[[BadInput], Said]) -> str:
    """All groups, a table each."""
    return "\n\n".join(f"### {name}\n\n{_table(cases, outcome)}" for name, cases in GROUPS.items())


def replaced(page: str, outcome: Callable[[BadInput], Said]) -> str:
    """The page with its generated part made anew."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables(outcome)}\n\n{END}{rest.split(END)[1]}"


def _table(cases: tuple[BadInput, ...], outcome: Callable[[BadInput], Said]) -> str:
    others = any(case.trl for case in cases)
    head = ["input", "command", "what preftune says", *(["TRL 1.16.0"] if others else [])]
    rows = [head, ["---"] * len(head)]
    for case in cases:
        shown = outcome(case).shown
        says = _cell(shown if case.code else f"*(goes on)* {shown}".strip())
        rows.append([_cell(case.name), f"`{_command(case)}`", says, *([_cell(case.trl)] if others else [])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _command(case: BadInput) -> str:
    printed = (each if each.isprintable() else ascii(each)[1:-1] for each in case.command)
    command = "".join(printed).replace("|", "\\|")
    return command if len(command) <= WIDEST else f"{command[: WIDEST - 3]}..."


def _cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([|\\<>*_`$\[\]])", r"\\\1", text).replace("\\*(goes on)\\*", "*goes on*").replace("\\`", "`")

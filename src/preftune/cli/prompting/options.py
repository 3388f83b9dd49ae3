"""Options that several commands of `preftune prompts` share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from preftune.prompting.facts import Mark
    from preftune.prompting.facts import NewNumbers as Allowed

Template = Annotated[
    Path | None, typer.Option("--template", help="YAML that asks for a rewrite; default: the run's own")
]
Candidates = Annotated[int, typer.Option(help="rewrites: the first is the most probable, the others are drawn")]
Temperature = Annotated[float, typer.Option(help="of those that are drawn")]
TopP = Annotated[float, typer.Option("--top-p", help="mass of the most probable tokens to draw from")]
Words = Annotated[
    int | None,
    typer.Option("--words", help="most words of a rewrite; default: twice the prompt's, and 40 more at least"),
]
Protect = Annotated[
    list[str] | None, typer.Option("--protect", metavar="TEXT", help="text that stays as it is; may be given again")
]
Pattern = Annotated[
    list[str] | None,
    typer.Option("--protect-pattern", metavar="REGEX", help="and what matches this; may be given again"),
]
InputAfter = Annotated[
    str | None,
    typer.Option("--input-after", metavar="TEXT", help="where the data of a prompt begins, which is left as it is"),
]
NewNumbers = Annotated[
    str, typer.Option("--new-numbers", help="which numbers a rewrite may add: none, counters (of steps) or any")
]
AnyOrder = Annotated[bool, typer.Option("--any-order", help="what is protected may change its order")]
MaxCalls = Annotated[int, typer.Option("--max-calls", help="most calls to all endpoints together, ever")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="most tokens read and written by them, ever")]
Concurrency = Annotated[int, typer.Option(min=1, help="calls to an endpoint at a time")]
Timeout = Annotated[float, typer.Option(min=0.1, help="seconds that an endpoint may take to answer")]
Key = Annotated[str, typer.Option("--key-variable", help="environment variable that holds the API key")]


def marks(texts: Sequence[str] | None, patterns: Sequence[str] | None) -> tuple[Mark, ...]:
    """What a user protects.

    Raises:
        PreftuneError: for a pattern that is none.
    """
    from preftune.errors import PreftuneError

    found: list[Mark] = list(texts or ())
    for pattern in patterns or ():
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise PreftuneError(f"--protect-pattern {pattern!r} is no regular expression ({error}): mend it") from None
    return tuple(found)


def new_numbers(name: str) -> Allowed:
    """The option's value, checked.

    Raises:
        PreftuneError: if it is unknown.
    """
    from preftune.errors import PreftuneError

    known: dict[str, Allowed] = {"none": "none", "counters": "counters", "any": "any"}
    if name not in known:
        raise PreftuneError(f"--new-numbers is {name!r}, expected none, counters or any")
    return known[name]

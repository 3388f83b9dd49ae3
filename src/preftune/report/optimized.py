"""Optimised prompts, in a terminal: what stands in the rewrite and not in the prompt, and the other way round."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from preftune.prompting.optimize import Optimized
from preftune.report.differences import differences

PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
GONE, NEW = "red strike", "green"
MARKS = {GONE: ("[-", "-]"), NEW: ("{+", "+}")}  # where there are no colours, as git's word diff


def show_difference(found: Optimized, console: Console | None = None) -> None:
    """Print both texts with the differences marked: by colour, or by [-gone-] and {+new+} where there is none."""
    console = console or Console()
    old, new = differences(found.original, found.text)
    for label, pieces, style in (("prompt", old, GONE), ("optimised", new, NEW)):
        shown = Text(f"{label}:\n", style="bold")
        for piece in pieces:
            begin, end = MARKS[style] if piece.differs and not console.color_system else ("", "")
            shown.append(f"{begin}{piece.text}{end}", style=f"not bold {style if piece.differs else ''}".strip())
        console.print(shown, highlight=False, soft_wrap=True)


def show_tried(found: Optimized, console: Console | None = None) -> None:
    """Print each rewrite with what became of it."""
    console = console or Console()
    for number, each in enumerate(found.tried, 1):
        became = each.problem or ("used" if found.changed and each.text == found.text else "may be used")
        score = "" if each.score is None else f", right in {each.score:.1%}"
        console.print(f"{number}: {became}{score}", style="bold", highlight=False, markup=False, soft_wrap=True)
        console.print(each.text, highlight=False, markup=False, soft_wrap=True)


def show(found: Sequence[Optimized], *, diff: bool = False, tried: bool = False, quiet: bool = False) -> None:
    """Print optimised prompts: as text that can be piped, or with what changed; reasons and notes on standard error."""
    console, aside = Console(), Console(stderr=True)
    for number, each in enumerate(found):
        if number:
            console.print()
        if tried:
            show_tried(each, console)
        if diff:
            show_difference(each, console)
        elif not tried:
            sys.stdout.write(each.text + "\n" * (not each.text.endswith("\n")))
            sys.stdout.flush()
        which = f"prompt {number}: " if len(found) > 1 else ""
        if each.reason and not quiet:
            told = f"{which}left as it is: {each.reason}"
            aside.print("".join(char if char.isprintable() else ascii(char)[1:-1] for char in told), **PLAIN)
        if each.note and not quiet:
            aside.print(which + each.note, **PLAIN)

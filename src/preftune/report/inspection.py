"""Credit per token in a terminal: heat maps, steps, what decides a pair; and the table of the credit study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from preftune.data.pieces import visible
from preftune.evaluation.credit import Split, TokenCredit, step_credit, steps

if TYPE_CHECKING:
    from preftune.inspection import Inspected
    from preftune.studies.credit import Ground

FOR, AGAINST = (58, 127, 213), (209, 73, 91)  # as in the report
LONGEST = 600  # tokens of a response that are shown
DECIDING = 5


def show(found: Sequence[Inspected], split: Split, console: Console | None = None) -> None:
    """Print the responses of each example, coloured by the credit of their tokens.

    Blue tokens earned reward, red ones lost it; the deepest colour of an example is its largest credit. What
    colours say, the figures below them say too.
    """
    console = console or Console()
    for one in found:
        largest = max((float(np.nanmax(np.abs(c.credit_T), initial=0)) for _, c in one.responses), default=0.0)
        _say(console, f"\nrow {one.row}", "bold")
        _say(console, one.prompt.strip(), "dim")
        for name, credit in one.responses:
            _say(console, f"{name}: reward {credit.total:+.3f} ({len(credit.tokens):,} tokens)", "bold")
            console.print(heat_map(credit, largest), soft_wrap=True)
            _show_steps(console, credit, split)
        if (pair := one.pair) is not None:
            _say(console, f"margin {pair.margin:+.3f}; what adds most to it:", "bold")
            for side, place, part in pair.deciding(DECIDING):
                word = visible(getattr(pair, side).tokens[place]).strip()
                _say(console, f"  {part:+.3f}  {word!r} in {side}, token {place + 1}")
        _say(console, f"colours: up to {largest:.3f}, blue for reward, red for its loss", "dim")


def heat_map(credit: TokenCredit, largest: float) -> Text:
    """The tokens of a response on grounds as deep as their credit is large; masked ones are dim."""
    text = Text()
    for number, (token, value) in enumerate(zip(credit.tokens, credit.credit_T, strict=True)):
        if number == LONGEST:
            text.append(f" ... {len(credit.tokens) - LONGEST:,} more", "dim")
            break
        style = Style(dim=True) if np.isnan(value) else _ground(float(value) / largest if largest else 0.0)
        text.append(visible(token.replace("\n", "\u21b5")), style)
        if "\n" in token:
            text.append("\n")
    return text


def show_study(found: Sequence[Ground], console: Console | None = None) -> None:
    """Print how often each rule picks the wrong line."""
    console = console or Console()
    for ground in found:
        accuracy = ", ".join(f"{value:.3f}" for value in ground.accuracy)
        table = Table(
            "the wrong line is the one with the lowest",
            "hits",
            "95% interval",
            "credit is ahead by",
            title=f"{ground.name}: {ground.answers:,} answers of {ground.lines:.1f} lines, one of them wrong "
            f"(accuracy of the implicit reward on held-out pairs {accuracy})",
            title_justify="left",
        )
        for rate in ground.rates:
            low, high = rate.ci95
            lead = ""
            if rate.rule != "credit":
                lead = f"{rate.behind:+.3f} ({rate.behind_ci95[0]:+.3f} to {rate.behind_ci95[1]:+.3f})"
            table.add_row(rate.rule, f"{rate.hits:.3f}", f"{low:.3f} to {high:.3f}", lead)
        console.print(table)


def _show_steps(console: Console, credit: TokenCredit, split: Split) -> None:
    """Credit of each step, and what was collected so far; nothing where there is one step."""
    number_T = steps(credit.tokens, split, np.isnan(credit.credit_T))
    found = step_credit(credit, split)
    if len(found) < 2:
        return
    collected = np.cumsum(found)
    for number, value in enumerate(found):
        words = "".join(token for token, at in zip(credit.tokens, number_T, strict=True) if at == number)
        _say(console, f"  {value:+.3f}  {collected[number]:+.3f} in all  {visible(words.strip())[:100]}")


def _ground(share: float) -> Style:
    """A ground for a share in [-1, 1] of the deepest colour; what is next to nothing has none."""
    if abs(share) < 0.04:
        return Style()
    red, green, blue = (round(255 + (part - 255) * min(1.0, abs(share))) for part in (FOR if share > 0 else AGAINST))
    return Style(color="black", bgcolor=f"rgb({red},{green},{blue})")


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

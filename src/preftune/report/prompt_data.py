"""Data for prompt optimisers, in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from preftune.prompting.case_statistics import CaseStatistics


def show_cases(found: CaseStatistics, console: Console | None = None) -> None:
    """Print what rows are like."""
    console = console or Console()
    types = Table("case type", "rows", title=f"{found.rows:,} rows of {found.sources:,} prompts", title_justify="left")
    types.columns[1].justify = "right"
    for name, count in found.types.items():
        if count:
            types.add_row(name, f"{count:,}")
    words = Table("words of", "mean", "median", "most")
    for column in words.columns[1:]:
        column.justify = "right"
    for name, lengths in found.words.items():
        words.add_row(name, f"{lengths.mean:.1f}", f"{lengths.median:g}", f"{lengths.most:,}")
    shares = Table("of the rewrites", "")
    shares.columns[1].justify = "right"
    shares.add_row("the better one is longer", f"{found.chosen_longer:.1%}")
    shares.add_row("the better one is shorter", f"{found.chosen_shorter:.1%}")
    shares.add_row("the better one keeps the limit", f"{found.limit_kept:.1%}")
    shares.add_row("naive responses shown that are right", f"{found.response_right:,}")
    shares.add_row("naive responses shown that are wrong", f"{found.response_wrong:,}")
    shares.add_row("rows that are there twice", f"{found.duplicates:,}")
    shares.add_row("prompts under more than one id", f"{found.same_prompts:,}")
    for table in (types, words, shares):
        console.print(table, highlight=False)

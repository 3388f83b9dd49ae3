"""Data for prompt optimisers, in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from preftune.prompting.case_statistics import CaseStatistics
from preftune.prompting.collected import Collected


@contextmanager
def collecting_progress(quiet: bool) -> Iterator[Callable[[str, int, int], object]]:
    """A bar for each stage, where a person looks on."""
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        tasks = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress


def show_collected(found: Collected, rewriters: Sequence[str], console: Console | None = None) -> None:
    """Print what a collection came to."""
    console = console or Console()
    checked = bool(found.shares)
    columns = ("rewriter", "rewrites", "compared", "won", "lost", "undecided", *(["right answers"] if checked else []))
    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in rewriters:
        row = found.figures(name)
        counts = (row.rewrites, row.compared, row.wins, row.losses, row.undecided)
        share = [] if not checked else ["" if row.right is None else f"{row.right:.1%}"]
        table.add_row(name, *(f"{count:,}" for count in counts), *share)
    console.print(table, highlight=False)
    figures = found.as_json(rewriters)
    for name, reasons in (
        ("rewrites left out", figures["rewrites_left_out"]),
        ("comparisons undecided", figures["comparisons_undecided"]),
    ):
        if reasons:
            told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
            console.print(f"{name}: {told}", highlight=False, markup=False)
    longer = figures["chosen_longer"]
    told = "" if longer is None else f"; the better rewrite is the longer one in {longer:.1%}"
    console.print(
        f"{figures['pairs']:,} pairs from {figures['prompts_with_a_pair']:,} of {figures['prompts']:,} prompts{told}",
        highlight=False,
        markup=False,
    )
    if found.calls:
        console.print(f"endpoints: {found.calls:,} calls, {found.tokens:,} tokens", highlight=False)


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

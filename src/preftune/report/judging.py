"""What a judge is worth, and how often answers win, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from preftune.evaluation.judge_check import LABELS, JudgeCheck, Share
from preftune.evaluation.win_rate import Interval, Progress, WinRate


def show(result: JudgeCheck | WinRate, console: Console | None = None) -> None:
    """Print a result as a table."""
    console = console or Console()
    table = _win_rate(result) if isinstance(result, WinRate) else _check(result)
    console.print(table, highlight=False)


@contextmanager
def judging_progress(quiet: bool) -> Iterator[Progress]:
    """A bar of what is judged, where a person looks on."""
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("judging", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _win_rate(rate: WinRate) -> Table:
    table = Table("win rate of A", "", "95% interval", title=f"judge {rate.judge}", title_justify="left")
    table.add_row("raw", f"{rate.win_rate:.3f}", _interval(rate.win_rate_ci95))
    if rate.length_controlled is not None and rate.length_controlled_ci95 is not None:
        table.add_row("at equal length", f"{rate.length_controlled:.3f}", _interval(rate.length_controlled_ci95))
    else:
        table.add_row("at equal length", "not given", rate.not_controlled)
    table.add_row("wins, ties, losses", f"{rate.wins:,}, {rate.ties:,}, {rate.losses:,}", "")
    table.add_row("prompts, comparisons", f"{rate.prompts:,}, {rate.comparisons:,}", "")
    table.add_row("length of A over B", f"{rate.length_ratio:.2f}", "")
    table.add_row("verdicts that flip with the order", f"{rate.flipped:.3f}", "")
    table.add_row("without a verdict", f"{rate.unanswered:,}", "")
    return table


def _check(check: JudgeCheck) -> Table:
    against = "labels" if check.truth == LABELS else check.truth
    table = Table(f"against {against}", "", "95% interval", "of", title=f"judge {check.judge}", title_justify="left")
    table.add_row("agreement", f"{check.agreement:.3f}", _interval(check.agreement_ci95), f"{check.pairs:,}")
    _add(table, "  where the better answer is longer", check.where_longer)
    _add(table, "  where it is shorter", check.where_shorter)
    table.add_row("ties", f"{check.ties:.3f}", "", f"{check.pairs:,}")
    if check.for_first is not None:
        table.add_row("verdicts that flip with the order", f"{check.flipped:.3f}", "", f"{check.pairs:,}")
        _add(table, "for the answer shown first", check.for_first)
    _add(table, "for the longer answer", check.for_longer)
    _add(table, "  that is the better one", check.better_is_longer)
    if check.length_bias is not None and check.length_bias_ci95 is not None:
        table.add_row(
            "length bias (the difference)", f"{check.length_bias:+.3f}", _interval(check.length_bias_ci95), ""
        )
    if check.unanswered:
        table.add_row("without a verdict", f"{check.unanswered:,}", "", "")
    if check.undecided:
        table.add_row(f"undecided by {against}", f"{check.undecided:,}", "", "")
    return table


def _add(table: Table, name: str, share: Share | None) -> None:
    if share is not None:
        table.add_row(name, f"{share.value:.3f}", _interval(share.ci95), f"{share.of:,}")


def _interval(interval: Interval) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"

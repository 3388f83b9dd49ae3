"""What a person sees while training runs: one line that moves."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN = (
    ("loss", "loss", "{:.4f}"),
    ("preference_accuracy", "accuracy", "{:.3f}"),
    ("margin", "margin", "{:+.3f}"),
    ("pairs_per_second", "pairs/s", "{:.1f}"),
)


WIDE = 120  # columns of a terminal in which everything fits on a line; in narrower ones the bar makes room


class Bar:
    """A progress bar with the last metrics; silent on every process but the first."""

    def __init__(self, steps: int, show: bool, console: Console | None = None, title: str = "training") -> None:
        console = console or Console(stderr=True)
        values = (MofNCompleteColumn(), TextColumn("{task.fields[values]}"))
        wide = (TextColumn(f"[bold]{title}"), BarColumn(bar_width=24), *values, TextColumn("left"))
        roomy = console.width >= WIDE
        columns = wide if roomy else values
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not show)
        self.task = self.progress.add_task(title, total=steps, values="" if roomy else title)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def advance(self, count: int = 1) -> None:
        """One optimiser step is done, or more."""
        self.progress.advance(self.task, count)

    def show(self, values: Mapping[str, object]) -> None:
        """Show the newest metrics."""
        parts = [f"{name} {form.format(values[key])}" for key, name, form in SHOWN if values.get(key) is not None]
        self.progress.update(self.task, values="  ".join(parts))

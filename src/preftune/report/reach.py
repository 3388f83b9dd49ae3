"""The table of how near methods come to the exact optimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from preftune.studies.reach import Reached


def show(found: Sequence[Reached], console: Console | None = None) -> None:
    """Print a row for each run."""
    parts = list(found[0].components)
    table = Table("method", "seed", "samples", "KL", "reward", "parts", "regret", "of all")
    for one in found:
        table.add_row(
            one.method,
            str(one.seed),
            f"{one.samples:,}",
            f"{one.kl:.2f}",
            f"{one.reward:.2f}",
            " ".join(f"{one.components[name]:+.2f}" for name in parts),
            f"{one.regret:.3f}",
            f"{one.attainable:.2f}",
        )
    console = console or Console()
    console.print(table)
    console.print(
        f"parts: {', '.join(parts)}; regret: share of the best gain at that KL that is lacking; of all: that best gain "
        "as a share of all that can be gained",
        highlight=False,
    )

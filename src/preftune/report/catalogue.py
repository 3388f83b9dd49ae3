"""The objectives in a terminal: all of them by family, or one with everything that its docstring says."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from preftune.objectives.catalogue import FAMILIES, Entry, entries, entry

APART = ("Args", "Example")  # sections that are shown in another form, or belong to Python
READS = {
    "log_sum_p2_K": "the sum of squared probabilities at each token",
    "entropy_K": "the entropy at each token",
    "kl_K": "the KL divergence at each token (a live reference)",
    "reward_R": "a reward head",
}


def show_all(console: Console | None = None) -> None:
    """Print a table of each family."""
    console = console or Console()
    found = entries()
    name_width = max(len(row.name) for row in found)  # alike in all families, so that they line up
    field_width = max(len(field) for row in found for field in _fields(row))
    for family in FAMILIES:
        rows = [each for each in found if each.family == family]
        if not rows:
            continue
        kinds = ", ".join(sorted({row.data for row in rows}))
        console.print(f"\n[bold]{family}[/bold] (data: {kinds})", highlight=False)
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("objective", width=name_width)
        table.add_column("reference")
        table.add_column("couples")
        table.add_column("fields", width=field_width)
        table.add_column("source")
        for row in rows:
            fields = Text("\n".join(_fields(row)))
            table.add_row(
                row.name, _yes(row.reference), _yes(row.couples), fields, row.source.replace(", arXiv", "\narXiv")
            )
        console.print(table, highlight=False)
    console.print("\npreftune objectives NAME says more (your own: package.module:Class)", markup=False)


def show_one(name: str, console: Console | None = None) -> None:
    """Print what there is to know of one objective.

    Args:
        name: of one of ours, or `package.module:Class`.
        console: where to print.

    Raises:
        PreftuneError: if there is no such objective.
    """
    console, found = console or Console(), entry(name)
    console.print(f"[bold]{escape(found.name)}[/bold]  {escape(found.summary)}", highlight=False)
    console.print(escape(needs(found)), highlight=False)
    for title, text in found.sections.items():
        if title == "Equation":
            _block(console, title, text)
        elif title not in APART:
            _heading(console, title)
            console.print(Padding(Text(text), (0, 0, 0, 2), expand=False), highlight=False)
    if found.fields:
        _heading(console, "Fields")
    for field in found.fields:
        kind = f" ({field.type}, default {field.default}): "
        line = Text.assemble((field.name, "bold"), kind, field.meaning or "its docstring does not say")
        console.print(Padding(line, (0, 0, 0, 2), expand=False), highlight=False)
    _block(console, "Config", found.config())


def needs(found: Entry) -> str:
    """What an objective needs, in one line."""
    parts = [f"data: {found.data}", f"reference: {_yes(found.reference)}", f"couples examples: {_yes(found.couples)}"]
    if found.baselines:
        parts.append("adds mismatched responses")
    parts += [f"column: {column}" for column in sorted(found.columns)]
    parts += [f"reads {READS.get(need, need)}" for need in sorted(found.needs)]
    parts.append(f"learning rate at 1B: {found.learning_rate:g}, with LoRA {found.lora_learning_rate:g}")
    return "; ".join(parts)


def _fields(found: Entry) -> list[str]:
    return [f"{field.name}={field.default}" for field in found.fields]


def _heading(console: Console, title: str) -> None:
    console.print(f"\n[bold]{escape(title)}[/bold]", highlight=False)


def _block(console: Console, title: str, text: str) -> None:
    """Lines that stay as they are."""
    _heading(console, title)
    for line in text.splitlines():
        console.print(f"  {line}" if line else "", markup=False, highlight=False, soft_wrap=True)


def _yes(value: bool) -> str:
    return "yes" if value else "no"

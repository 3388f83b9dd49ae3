"""What a run came to, in a few lines of a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preftune.report.reading import read
from preftune.report.trained import is_reward_model
from preftune.run import Run

ROWS = (
    ("preference_accuracy", "implicit preference accuracy"),
    ("policy_accuracy", "accuracy of its own log-probs"),
    ("margin", "margin"),
    ("loss", "loss"),
    ("true_reward", "true reward"),
    ("reward", "score of its answers, by the judge"),
    ("kl", "KL to the reference, nats per response"),
    ("grammatical", "grammatical share"),
)


def show_run(run: Run, console: Console | None = None) -> None:
    """Print samples, figures before and after, and where the report lies."""
    console = console or Console()
    data = read(run.path)
    _show_samples(console, data.samples)
    before, after = data.summary.get("before", {}), data.summary.get("after", {})
    table = Table("held out", "before", "after")
    for key, label in ROWS:
        if before.get(key) is not None and after.get(key) is not None:
            label = label.removeprefix("implicit ") if is_reward_model(data) else label
            table.add_row(label, _figure(before, key), _figure(after, key))
    if table.row_count:
        console.print(table)
    difference = data.summary.get("difference", {})
    if "true_reward" in difference:
        low, high = difference["true_reward_ci95"]
        console.print(
            f"true reward per prompt rose by {difference['true_reward']:.3f} (95% interval {low:.3f} to {high:.3f})"
            if low > 0
            else f"true reward per prompt changed by {difference['true_reward']:.3f} (95% {low:.3f} to {high:.3f})"
        )
    console.print(f"{data.summary['steps']} steps in {data.summary['seconds']:.1f} s", highlight=False)
    console.print(f"model:  {run.path / 'model'}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {run.report}", markup=False, highlight=False, soft_wrap=True)


def _show_samples(console: Console, samples: list[dict[str, Any]]) -> None:
    ends = {sample["prompt"]: sample for sample in samples if sample["when"] == "end"}
    for start in [sample for sample in samples if sample["when"] == "start" and sample["prompt"] in ends][:8]:
        console.print(f"[bold]{escape(start['prompt'])}[/bold]", highlight=False)
        for name, sample in (("before", start), ("after", ends[start["prompt"]])):
            console.print(f"  [dim]{name:>6}[/dim] {escape(sample['response'].strip())}", highlight=False)


def _figure(values: Mapping[str, Any], key: str) -> str:
    interval = values.get(f"{key}_ci95")
    return f"{values[key]:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")

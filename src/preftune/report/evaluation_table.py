"""What an evaluation came to, in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ACCURACIES = (
    ("accuracy", "preference accuracy"),
    ("policy_accuracy", "accuracy of its own log-probs"),
    ("order_accuracy", "couples in order"),
)
ANSWERS = (
    ("mean_length", "length, tokens", "{:.1f}"),
    ("end_rate", "end rate", "{:.3f}"),
    ("repetition", "repetition", "{:.3f}"),
    ("distinct_1", "distinct-1", "{:.3f}"),
    ("distinct_2", "distinct-2", "{:.3f}"),
)


def show_evaluation(figures: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the figures of evaluation.json as tables."""
    console = console or Console()
    data = figures["data"]
    against = f" against {figures['against']}" if "against" in figures else ""
    what = {"pairs": "pairs"}.get(data["kind"], data["kind"])
    head = f"{figures['model']}{against}: {data['pairs']} {what} on {data['prompts']} prompts of {data['path']}"
    console.print(head, markup=False, highlight=False, soft_wrap=True)
    if "pairs" in figures:
        _show_pairs(console, figures)
    if figures.get("scores"):
        console.print(_scores(figures["scores"]))
    if figures.get("responses"):
        console.print(_responses(figures["responses"]))
    for key, name in (("by_length", "bucket"), ("by_source", "source")):
        if figures.get(key):
            console.print(_slices(figures[key], name, "length" if name == "bucket" else "source"))
    if "generation" in figures:
        own = figures.get("own_reference", True) or "against" not in figures
        _show_answers(console, figures["generation"], against="the reference" if own else figures["against"])
    if "win_rate" in figures:
        _show_win_rate(console, figures["win_rate"])


def show_benchmark(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what benchmark.json holds as a table."""
    table = Table("task", "metric", "value", "standard error")
    for task, metrics in found["tasks"].items():
        for metric, value in metrics.items():
            error = "" if value["se"] is None else f"{value['se']:.4f}"
            table.add_row(escape(task), escape(metric), f"{value['value']:.4f}", error)
    (console or Console()).print(table)


def _show_pairs(console: Console, figures: Mapping[str, Any]) -> None:
    """The table of held-out figures, and why one is missing."""
    table = _pairs(figures)
    said = []
    if table.row_count:
        console.print(table)
    elif len(responses := figures.get("responses", {})) == 1:
        (kind,) = responses
        said.append(
            f"no accuracy, margin or delta: they compare good responses with bad ones, and all that were held out are "
            f"judged {kind}"
        )
    else:
        said.append("no accuracy, margin or delta: there is neither a log-prob nor a reward to compare")
    calibration = figures.get("calibration")
    if calibration is not None and calibration.get("temperature") is None:
        margin = figures["pairs"].get("margin", 0.0)
        why = "margins are not above 0 on average" if margin <= 0 else "no margin is below 0"
        said.append(f"no temperature: none is best, since {why}")
    elif calibration is not None and calibration.get("ece_with_temperature") is None:
        said.append(
            "no calibration error with a temperature: one half of the prompts alone gives none to try on the other"
        )
    for line in said:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _responses(sides: Mapping[str, Mapping[str, Any]]) -> Table:
    """Of good and of bad responses, each on its own."""
    table = Table("held-out responses", *(f"judged {name}" for name in sides))
    table.add_row("how many", *(f"{side['responses']:,}" for side in sides.values()))
    for key, label in (("logp_per_token", "log-prob per token, nats"), ("reward", "reward")):
        if all(key in side for side in sides.values()):
            table.add_row(label, *(f"{side[key]:+.3f}" for side in sides.values()))
    return table


def _scores(figures: Mapping[str, Any]) -> Table:
    """Of a reward model: level, spread and length."""
    table = Table("scores", "", "95% interval")
    for key, label, form in (
        ("mean", "mean", "{:+.3f}"),
        ("sd", "standard deviation", "{:.3f}"),
        ("chosen", "  of chosen responses, mean", "{:+.3f}"),
        ("rejected", "  of rejected responses, mean", "{:+.3f}"),
        ("prefers_longer", "for the longer response", "{:.3f}"),
        ("longer_is_better", "  that is the chosen one", "{:.3f}"),
        ("length_correlation", "correlation with length", "{:+.3f}"),
    ):
        _add(table, label, figures, key, form)
    return table


def _pairs(figures: Mapping[str, Any]) -> Table:
    table = Table("held out", "", "95% interval")
    pairs = figures["pairs"]
    for key, label in ACCURACIES:
        _add(table, label, pairs, key, "{:.3f}")
    for name, label in (("longer", "baseline: the longer one"), ("reference", "baseline: the reference's log-probs")):
        if name in figures.get("baselines", {}):
            _add(table, label, figures["baselines"][name], "accuracy", "{:.3f}")
    _add(table, "margin", pairs, "margin", "{:+.3f}")
    _add(table, "delta, nats", pairs, "delta", "{:+.3f}")
    if "calibration" in figures:
        found = figures["calibration"]
        _add(table, "calibration error", found, "ece", "{:.3f}")
        _add(table, "  with a fitted temperature", found, "ece_with_temperature", "{:.3f}")
        _add(table, "  temperature", found, "temperature", "{:.3g}")
    return table


def _slices(rows: Sequence[Mapping[str, Any]], key: str, title: str) -> Table:
    table = Table(f"by {title}", "pairs", "accuracy", "95% interval", "margin")
    for row in rows:
        margin = f"{row['margin']:+.3f}" if "margin" in row else ""
        low, high = row["accuracy_ci95"]
        table.add_row(
            escape(str(row[key])), str(row["pairs"]), f"{row['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", margin
        )
    return table


def _show_answers(console: Console, figures: Mapping[str, Any], against: str) -> None:
    sides = [side for side in ("policy", "against") if side in figures]
    answers = figures["prompts"] * figures["samples_per_prompt"]
    for side in sides:
        if "model" in figures[side]:
            line = f"{side}: answers of {figures[side]['model']}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if "best_of" in figures[side]:
            console.print(f"{side}: {best_of(figures[side]['best_of'])}", markup=False, highlight=False, soft_wrap=True)
    table = Table(f"{answers} answers, temperature {figures['temperature']:g}", *sides)
    for key, label, form in ANSWERS:
        table.add_row(label, *(_with_interval(figures[side], key, form) for side in sides))
    console.print(table)
    if "kl" in figures:
        found = figures["kl"]
        told = []
        for key, label in (("per_response", "nats per response"), ("per_token", "per token")):
            error = found.get(f"{key}_se")
            told.append(f"{found[key]:.4g} {label}" + ("" if error is None else f" (standard error {error:.2g})"))
        console.print(f"KL to {against}: {', '.join(told)}", markup=False, highlight=False, soft_wrap=True)


def best_of(figures: Mapping[str, Any]) -> str:
    """From what answers were chosen, in words."""
    said = (
        f"best of {figures['n']} by {figures['judge']}, whose mean score rises from {figures['score_of_all']:.3f} to "
        f"{figures['score']:.3f}, at a KL of at most {figures['kl_bound']:.3g} nats per response to the model sampled"
    )
    if figures["no_choice"]:
        said += f"; in {figures['no_choice']:.0%} of the choices all scores were equal"
    return said + (f"; {figures['unscored']:.0%} of the answers got no score" if figures["unscored"] else "")


def _show_win_rate(console: Console, figures: Mapping[str, Any]) -> None:
    table = Table("win rate", "", "95% interval", title=f"judge {escape(figures['judge'])}", title_justify="left")
    _add(table, "raw", figures, "win_rate", "{:.3f}")
    _add(table, "at equal length", figures, "length_controlled", "{:.3f}")
    if figures.get("not_controlled"):
        table.add_row("at equal length", "not given", figures["not_controlled"])
    table.add_row("wins, ties, losses", ", ".join(f"{figures[name]:,}" for name in ("wins", "ties", "losses")), "")
    table.add_row("verdicts that flip with the order", f"{figures['flipped']:.3f}", "")
    if figures["unanswered"]:
        table.add_row("without a verdict", f"{figures['unanswered']:,}", "")
    if (check := figures.get("judge_check")) is not None:
        truth = escape(str(check.get("truth", "labels")))
        _add(table, f"the judge itself, on {check['pairs']} pairs, agrees with {truth}", check, "agreement", "{:.3f}")
    console.print(table)


def _add(table: Table, label: str, values: Mapping[str, Any], key: str, form: str) -> None:
    if values.get(key) is not None:
        interval = values.get(f"{key}_ci95")
        shown = "" if interval is None else " to ".join(form.format(bound) for bound in interval)
        table.add_row(label, form.format(values[key]), shown)


def _with_interval(values: Mapping[str, Any], key: str, form: str) -> str:
    interval = values.get(f"{key}_ci95")
    shown = "" if interval is None else f" ({' to '.join(form.format(bound) for bound in interval)})"
    return form.format(values[key]) + shown

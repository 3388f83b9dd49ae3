"""Naive prompts against optimised ones: the table, in a terminal and on a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Terminal

from preftune.api_keys import this_command
from preftune.prompting.evaluated import NAIVE, Evaluated, Row, percent
from preftune.prompting.paired import Average, Paired
from preftune.report.drawing import CHOSEN, HELD_OUT, OWN, REJECTED, TRAINING, Cell
from preftune.report.study import Grid, Page, Table

PAGE = "report.html"
SHOWN = 24  # questions on the page; all are in questions.jsonl
LONGEST = 600  # characters of a text there
COLOURS = (HELD_OUT, CHOSEN, OWN, REJECTED)
AVERAGE, SIMPLE = "weighted average", "simple mean"
COUNTS = ("won", "lost", "same", "p")


def show(found: Evaluated, out: Path, console: Console | None = None) -> None:
    """Print the table, what was won and lost, and what there is to beware of."""
    console = console or Console()
    for title, header, lines in _tables(found):
        table = _terminal(title, header)
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table, highlight=False)
    for row in found.rows:
        gains = _terminal(f"{_name(row, found)} less naive", ("benchmark", "gain", "95% interval", *COUNTS))
        for title in found.asking:
            one = row.benchmarks[title]
            gains.add_row(escape(title), *_gain(one), f"{one.won:,}", f"{one.lost:,}", f"{one.same:,}", _chance(one.p))
        gains.add_row(AVERAGE, *_gain(row.weighted))
        gains.add_row(SIMPLE, *_gain(row.simple))
        console.print(gains, highlight=False)
    for note in notes(found):
        console.print(f"note: {note}", highlight=False, markup=False)
    if found.calls:
        console.print(f"{found.calls:,} calls and {found.tokens:,} tokens to endpoints, ever", highlight=False)
    console.print(f"wrote {out / PAGE}", highlight=False, markup=False, soft_wrap=True)


def write(found: Evaluated, out: Path) -> Path:
    """Write the page; it needs nothing else."""
    path = out / PAGE
    page(found).write(path)
    return path


def page(found: Evaluated) -> Page:
    """The page."""
    return Page(
        title="Naive and optimised prompts",
        source="FIPO (Lu et al. 2024, arXiv 2402.11811): its evaluation, on models and benchmarks of your choice",
        headline=headline(found),
        paragraphs=[
            "The same questions are put in two wordings, and every answer is scored exactly. Scores are percent of "
            "right answers. Intervals are 95%, by a bootstrap over questions: where one spans 0, there may be no "
            "difference.",
            *notes(found),
        ],
        figures=[_bars(found)],
        tables=[
            *(
                Table(title, "Rows are wordings, columns benchmarks with their numbers of questions.", header, lines)
                for title, header, lines in _tables(found)
            ),
            _won(found),
            *_tasks(found),
            _rewrites(found),
            _cost(found),
            _questions(found),
        ],
        command=this_command(),
    )


def headline(found: Evaluated) -> str:
    """What came out, for the row that gained the most."""
    best = max(found.rows, key=lambda row: row.weighted.difference)
    average = best.weighted
    told = f"{percent(average.naive)} to {percent(average.optimised)} on average"
    if average.ci95 is None:
        return f"{best.wording}: from {told}, over too few questions to say more."
    low, high = average.ci95
    if low > 0:
        return (
            f"{best.wording} did better than the naive prompts: from {told} ({_points(low)} to {_points(high)} points)."
        )
    if high < 0:
        return f"No optimiser did better than the naive prompts; the best, {best.wording}, went from {told}."
    return f"No difference can be told: {best.wording} went from {told} ({_points(low)} to {_points(high)} points)."


def notes(found: Evaluated) -> list[str]:
    """What a reader has to know before the scores are believed."""
    told = []
    for wording in found.optimised:
        for title in found.asking:
            figures = found.rewrites(wording, title)
            if figures["used"] < 1:
                reason = next(iter(figures["refused"]), "")
                told.append(
                    f"{title}: {1 - figures['used']:.1%} of the rewrites by {wording} were not used, and the naive "
                    f"prompt stands in their place (most often: {reason})"
                )
            if figures["states_the_answer"]:
                told.append(
                    f"{title}: {figures['states_the_answer']:.1%} of the prompts by {wording} state the right answer; "
                    "the scores without them are in the table of questions won and lost"
                )
            for key, what in (
                ("has_words_of_the_worked_answer", "of the worked answer"),
                ("has_words_of_training_questions", "of training questions"),
                ("has_words_of_its_examples", "of the examples before them"),
            ):
                if figures[key]:
                    told.append(
                        f"{title}: {figures[key]:.1%} of the prompts by {wording} add eight words in a row {what}"
                    )
    for row in found.rows:
        for title, (naive, other) in row.refused.items():
            if naive or other:
                told.append(
                    f"{title}: {row.generator} did not take {naive:,} naive and {other:,} optimised prompts "
                    f"({row.decoding}), which count as wrong"
                )
    return list(dict.fromkeys(told))


def _terminal(title: str, header: Sequence[str]) -> Terminal:
    """A table whose first column names the rows."""
    table = Terminal(*header, title=escape(title), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _columns(found: Evaluated) -> list[str]:
    return [*found.asking, AVERAGE, SIMPLE]


def _name(row: Row, found: Evaluated) -> str:
    """A row's name, with what is not the same for all."""
    parts = [row.wording]
    if len({one.generator for one in found.rows}) > 1:
        parts.append(row.generator)
    if len({one.decoding for one in found.rows}) > 1:
        parts.append(row.decoding)
    return ", ".join(parts)


def _tables(found: Evaluated) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table like the paper's Table 3 for each generator and decoding."""
    header, *lines = found.table()
    sizes = {title: len(some) for title, some in found.asking.items()}
    columns = ["prompts", *(f"{name} ({sizes[name]:,})" if name in sizes else name for name in header[3:])]
    tables: dict[tuple[str, str], list[list[str]]] = {}
    for generator, decoding, *rest in lines:
        tables.setdefault((generator, decoding), []).append(rest)
    return [(f"{generator}, {decoding}", columns, rows) for (generator, decoding), rows in tables.items()]


def _gain(one: Paired | Average) -> tuple[str, str]:
    """Optimised less naive, and its interval, in points."""
    bounds = "" if one.ci95 is None else " to ".join(map(_points, one.ci95))
    return _points(one.difference), bounds


def _difference(one: Paired | Average) -> str:
    gain, bounds = _gain(one)
    return f"{gain} ({bounds})" if bounds else gain


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _chance(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _won(found: Evaluated) -> Table:
    rows = []
    for row in found.rows:
        for title in found.asking:
            one, clean = row.benchmarks[title], row.clean[title]
            rows.append(
                [
                    _name(row, found),
                    title,
                    _difference(one),
                    f"{one.won:,}",
                    f"{one.lost:,}",
                    f"{one.same:,}",
                    _chance(one.p),
                    ""
                    if clean is None
                    else f"{percent(clean.naive)} to {percent(clean.optimised)} ({clean.questions:,})",
                    " / ".join(f"{share:.1%}" for share in row.unanswered[title]),
                ]
            )
        rows.append([_name(row, found), AVERAGE, _difference(row.weighted), *[""] * 6])
    header = ["prompts", "benchmark", "difference", *COUNTS]
    return Table(
        "Question by question",
        "Won: questions whose score rose with the optimised prompt. p: how likely so uneven a split is by chance "
        "(McNemar's exact test). Without stated answers: scores on the questions whose optimised prompt does not say "
        "the right answer, and how many those are.",
        [*header, "without stated answers", "no answer found (naive / optimised)"],
        rows,
    )


def _tasks(found: Evaluated) -> list[Table]:
    """Benchmarks of several tasks, task by task; none if there are none."""
    rows = [
        [
            _name(row, found),
            f"{title}, {task}",
            f"{one.questions:,}",
            percent(one.naive),
            percent(one.optimised),
            _difference(one),
        ]
        for row in found.rows
        for title, tasks in row.tasks.items()
        for task, one in tasks.items()
    ]
    lead = "With so many tasks, some differ by chance: one interval in twenty leaves out what is true."
    header = ["prompts", "task", "questions", "naive", "optimised", "difference"]
    return [Table("Task by task", lead, header, rows)] if rows else []


def _rewrites(found: Evaluated) -> Table:
    rows = []
    for wording in found.optimised:
        for title in found.asking:
            one = found.rewrites(wording, title)
            shares = ("used", "states_the_answer", "has_words_of_the_worked_answer", "has_words_of_training_questions")
            rows.append(
                [
                    wording,
                    title,
                    *(f"{one[key]:.1%}" for key in shares),
                    f"{one['naive_words']:.0f} to {one['words']:.0f}",
                    ", ".join(f"{count:,} {reason}" for reason, count in list(one["refused"].items())[:3]),
                ]
            )
    return Table(
        "The rewrites",
        "A rewrite that changes a number, a quotation, an option or the language, or is too long, is not used: the "
        "naive prompt stands in its place. The other shares are of all questions.",
        [
            *("optimiser", "benchmark", "used", "state the answer", "words of the worked answer"),
            *("words of training questions", "words of a prompt", "why not used"),
        ],
        rows,
    )


def _cost(found: Evaluated) -> Table:
    rows = [[name, f"{one.texts:,}", f"{one.prompt_tokens:,}", f"{one.tokens:,}"] for name, one in found.spent.items()]
    return Table(
        "What it took",
        f"Calls to endpoints, ever: {found.calls:,}, with {found.tokens:,} tokens. Below, texts that were written, "
        "kept ones included; prompts with the same words were answered once. Tokens are 0 where nobody tells.",
        ["who and what", "texts", "tokens read", "tokens written"],
        rows,
    )


def _questions(found: Evaluated) -> Table:
    """Some questions whose score changed, then others."""
    lines = sorted(found.questions(), key=lambda line: line["optimised"]["score"] == line["naive"]["score"])
    rows = [
        [
            f"{line['benchmark']}, {line['task']}" if line["task"] != line["benchmark"] else line["benchmark"],
            _cut(line["prompt"]),
            _cut(line["optimized"]) if not line["refused"] else f"(not used: {line['refused']})",
            line["gold"],
            _answer(line["naive"]),
            _answer(line["optimised"]),
        ]
        for line in lines[:SHOWN]
    ]
    return Table(
        "Questions side by side",
        f"The first {len(rows)}, those whose score changed before the others; all are in questions.jsonl.",
        ["benchmark", "naive prompt", "optimised prompt", "right answer", "answer to naive", "answer to optimised"],
        rows,
    )


def _answer(side: dict[str, Any]) -> str:
    answer, right = side["answers"][0], side["right"][0]
    return f"{'right' if right else 'wrong'}: {'no answer found' if answer is None else _cut(answer, 80)}"


def _cut(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _bars(found: Evaluated) -> Grid:
    """Scores of all wordings as bars; each cell a generator and decoding."""
    places = _columns(found)
    pairs = list(dict.fromkeys((row.generator, row.decoding) for row in found.rows))
    cells = []
    for pair in pairs:
        rows = [row for row in found.rows if (row.generator, row.decoding) == pair]
        traces: list[Any] = [_bar(places, _means(rows[0], found, naive=True), NAIVE, TRAINING)]
        for number, row in enumerate(rows):
            traces.append(
                _bar(places, _means(row, found, naive=False), f"optimised {number + 1}", COLOURS[number % len(COLOURS)])
            )
        cells.append(Cell("right answers", traces, y_format=".0%", y_range="tozero"))
    named = "; ".join(f"optimised {number + 1}: {wording}" for number, wording in enumerate(found.optimised))
    said = "; ".join(f"{generator}, {decoding}" for generator, decoding in pairs)
    return Grid(
        key="scores",
        title="Scores by benchmark",
        caption=f"Grey: the naive prompts. {named}. From top to bottom: {said}.",
        cells=tuple(cells),
        x_title="",
        row_height=240,
    )


def _means(row: Row, found: Evaluated, naive: bool) -> list[float]:
    every: Sequence[Paired | Average] = [*(row.benchmarks[title] for title in found.asking), row.weighted, row.simple]
    return [one.naive if naive else one.optimised for one in every]


def _bar(x: Sequence[str], y: Sequence[float], name: str, colour: str) -> go.Bar:
    return go.Bar(x=list(x), y=[round(value, 6) for value in y], name=name, marker={"color": colour})

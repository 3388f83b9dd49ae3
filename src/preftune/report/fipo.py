"""The page of FIPO in small: what does best on generators that were learned from, and what that is worth elsewhere."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table as TerminalTable

from preftune.errors import PreftuneError
from preftune.prompting.paper import NAIVE, TABLE3
from preftune.report.fipo_figures import figures
from preftune.report.study import Page, Table
from preftune.sandbox.tasks import SEEN, UNSEEN
from preftune.studies.fipo.baselines import BASELINES
from preftune.studies.fipo.form import DECODINGS, STRATEGIES, TEACHERS
from preftune.studies.fipo.rewrites import KINDS
from preftune.studies.fipo.tables import accuracy, some

if TYPE_CHECKING:
    from preftune.studies.fipo.study import Found
    from preftune.studies.fipo.tables import Outcome
    from preftune.studies.frontier.statistics import Mean

# The paper's optimisers of 70B (Table 3; generator Tulu2-7B), by our strategies.
_TABLE3 = {scores.name: scores.average for scores in TABLE3}
PAPER = {"naive": _TABLE3[NAIVE]} | {key: _TABLE3[f"{key.upper()}-70B"] for key in STRATEGIES if STRATEGIES[key].paper}
SOURCE = "the built-in tasks; the comparison of strategies of Lu et al. 2024, arXiv 2402.11811"


def write(found: Found, out: Path, command: str) -> Path:
    """Write index.html and results.csv.

    Raises:
        PreftuneError: if the folder cannot be written to.
    """
    try:
        page(found, command).write(out / "index.html")
        with (out / "results.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(
                ["teacher", "strategy", "decoding", "generator", "accuracy", "low", "high", "seeds", "copied"]
            )
            rows.writerows(_csv(found))
    except OSError as error:
        raise PreftuneError(f"cannot write to {out} ({error.strerror}): name another folder with --out") from None
    return out / "index.html"


def page(found: Found, command: str) -> Page:
    """The study as a page."""
    seeds = min(len(some(found.lines, "sft", "greedy", "test", teacher)) for teacher in found.form.teachers)
    paragraphs = [
        "Three small generators answer questions of five families. Asked for a plan in a wording that it understands, "
        "a generator writes down each step and mostly gets there; asked in any other way, it names an answer at once "
        "and mostly fails. An optimiser rewrites naive prompts. It first learns from a teacher's rewrites (SFT), then "
        f"from pairs of them, of which the better is the one that more of the generators {' and '.join(SEEN)} answer "
        f"right. The generator {UNSEEN} is asked in the test alone.",
        f"{seeds} seed{'s' if seeds > 1 else ''} of rewrites, pairs and training; {found.form.test} test questions "
        f"and {found.form.validation} to choose on, the same for all; an answer is right if its last word is. "
        "Intervals are Student's t over seeds at 95%, where nothing else is said; baselines have no seeds, and none.",
    ]
    if found.quick:
        paragraphs.insert(0, "This is the quick form: it shows that the study runs, and is too small for conclusions.")
    return Page(
        title="FIPO in small: prompt optimisers trained on preferences",
        source=SOURCE,
        headline=" ".join(_said(one, found) for one in found.outcome),
        paragraphs=paragraphs,
        figures=figures(found),
        tables=[
            *_results(found),
            _confirmed(found),
            _kinds(found),
            *_rounds(found),
            _ground(found),
            _paper(found),
            _examples(found),
        ],
        command=command,
    )


def show(found: Found, path: Path, console: Console | None = None) -> None:
    """Print the results, what was chosen, and where the page lies."""
    console = console or Console()
    for table in (*_results(found), _confirmed(found)):
        shown = TerminalTable(*table.header, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(f"figures: {path}", markup=False, highlight=False, soft_wrap=True)


def _said(one: Outcome, found: Found) -> str:
    name, teacher = STRATEGIES[one.strategy].name, TEACHERS[one.teacher].name
    naive = some(found.lines, "naive", "greedy")[0].right[UNSEEN].mean()
    gain, low, high = (f"{100 * value:.0f}" for value in (one.gain.value, *one.resampled))
    return (
        f"With the {teacher}, {name} did best on the generators it learned from; on the unseen one it answers "
        f"{naive + one.gain.value:.0%} right where naive prompts get {naive:.0%} "
        f"(+{gain} points, 95% interval over seeds and questions {low} to {high})."
    )


def _keys(found: Found) -> list[str]:
    return list(found.form.strategies)


def _csv(found: Found) -> list[list[str]]:
    rows = []
    for teacher, key in [(None, key) for key in BASELINES] + [
        (t, key) for t in found.form.teachers for key in _keys(found)
    ]:
        for decoding in DECODINGS:
            lines = [line for line in some(found.lines, key, decoding, "test", teacher) if line.decoding == decoding]
            for name in (*SEEN, UNSEEN) if lines else ():
                one = accuracy(lines, [name])
                copied = float(np.mean([line.copied for line in lines]))
                ends = ["", ""] if one.n < 2 else [f"{one.low:.4f}", f"{one.high:.4f}"]
                rows.append(
                    [teacher or "", key, decoding, name, f"{one.value:.4f}", *ends, str(one.n), f"{copied:.4f}"]
                )
    return rows


def _results(found: Found) -> list[Table]:
    tables = []
    for teacher in found.form.teachers:
        rows = []
        for key in [*BASELINES, *_keys(found)]:
            name = BASELINES.get(key) or STRATEGIES[key].name
            cells = []
            for decoding in DECODINGS:
                lines = some(found.lines, key, decoding, "test", teacher)
                if lines[0].decoding != decoding:
                    cells += [""] * 3
                    continue
                cells += [_spread(accuracy(lines, SEEN)), _spread(accuracy(lines, [UNSEEN]))]
                cells.append(f"{np.mean([line.copied for line in lines]):.3f}")
            rows.append([name, *cells])
        tables.append(
            Table(
                f"Test questions answered right: {TEACHERS[teacher].name}",
                "Of the generators that were learned from (mean of both), and of the unseen one. Copied: rewrites that "
                "hold what the question gives, word for word. Sampled: temperature 0.8, top-p 0.95, as in the paper.",
                ("optimiser", "seen", "unseen", "copied", "seen, sampled", "unseen, sampled", "copied, sampled"),
                rows,
            )
        )
    return tables


def _confirmed(found: Found) -> Table:
    rows = []
    for one in found.outcome:
        order = sorted(one.validation, key=lambda key: -one.validation[key])
        low, high = one.resampled
        value, least, most = one.over_sft
        rows.append(
            [
                TEACHERS[one.teacher].name,
                ", ".join(f"{STRATEGIES[key].name} {one.validation[key]:.3f}" for key in order),
                STRATEGIES[one.strategy].name,
                _spread(one.gain, least=-1.0),
                f"{low:.3f} to {high:.3f}",
                f"{value:.3f} ({least:.3f} to {most:.3f})",
            ]
        )
    return Table(
        "Chosen on seen generators, confirmed once on the unseen one",
        "The choice looks at validation questions and seen generators alone, greedy. Then its gain over naive prompts "
        "on the unseen generator's test questions: the mean with its interval over seeds, and the interval of drawing "
        "seeds and questions again.",
        ("teacher", "validation", "chosen", "gain over naive", "seeds and questions", "gain over SFT"),
        rows,
    )


def _kinds(found: Found) -> Table:
    rows = []
    for teacher in found.form.teachers:
        for key in found.form.strategies:
            for decoding in DECODINGS:
                lines = some(found.lines, key, decoding, "test", teacher)
                shares = [np.mean([line.share(kind) for line in lines]) for kind in KINDS]
                label = f"{TEACHERS[teacher].name}, {STRATEGIES[key].name}, {decoding}"
                rows.append([label, *(f"{share:.3f}" for share in shares)])
    return Table(
        "What optimisers write",
        "Shares of their rewrites, mean over seeds: plans that both of the seen generators understand, plans that one "
        "of them does, idle words around a naive prompt, naive prompts, and slips, such as a number copied wrongly. Of "
        "each family's three wordings, both understand one; the unseen generator understands it in four families.",
        ("optimiser", *KINDS),
        rows,
    )


def _rounds(found: Found) -> list[Table]:
    rows = []
    for teacher in found.form.teachers:
        for key in found.form.strategies:
            of_seeds = [
                accepted[key]
                for name, accepted in found.accepted.items()
                if name.startswith(f"{teacher}-") and key in accepted
            ]
            if of_seeds:
                shares = [f"{share:.3f}" for share in np.mean(of_seeds, axis=0)]
                rows.append([f"{TEACHERS[teacher].name}, {STRATEGIES[key].name}", *shares])
    if not rows:
        return []
    counts = sorted(found.pairs.values())
    pairs = f"pairs ({counts[0]:,} to {counts[-1]:,} of a seed)" if counts else "pairs"
    return [
        Table(
            "Rewrites that took a naive prompt's place",
            f"Share of the {pairs} whose prompt was replaced in each round, mean over seeds.",
            ("strategy", *(f"round {number}" for number in range(1, len(rows[0])))),
            rows,
        )
    ]


def _ground(found: Found) -> Table:
    families = list(next(iter(found.grounds.values()))["naive"])
    rows = [
        [f"{name}, {wording}", *(f"{by[family]:.2f}" for family in families), f"{np.mean(list(by.values())):.3f}"]
        for name, wordings in found.grounds.items()
        for wording, by in wordings.items()
    ]
    return Table(
        "What the generators make of each wording",
        "Share of test questions answered right. The control has the size and the lessons of north, but saw answers "
        "without steps: so it is the steps that count, and not the words.",
        ("generator", *families, "mean"),
        rows,
    )


def _paper(found: Found) -> Table:
    rows = []
    for key, published in PAPER.items():
        if key not in BASELINES and key not in found.form.strategies:
            continue
        name = BASELINES.get(key) or STRATEGIES[key].name
        ours = [_points(accuracy(some(found.lines, key, "greedy", "test", t), [UNSEEN])) for t in found.form.teachers]
        rows.append([name, f"{published:.2f}", *ours])
    return Table(
        "Beside the paper",
        "The paper's figures are weighted averages over five benchmarks with optimisers of 70 billion parameters; ours "
        "are the unseen generator's test accuracy, greedy. Nothing but the order can be compared.",
        ("strategy", "the paper", *(f"here, {TEACHERS[t].name}" for t in found.form.teachers)),
        rows,
    )


def _examples(found: Found) -> Table:
    rows = []
    for teacher in found.form.teachers:
        for key in _keys(found):
            line = some(found.lines, key, "greedy", "test", teacher)[0]
            example: Mapping[str, str] = line.example or {}
            label = f"{TEACHERS[teacher].name}, {STRATEGIES[key].name}"
            rows.append([label, example.get("naive", ""), example.get("rewrite", "")])
    return Table("An example", "The first test question, first seed, greedy.", ("optimiser", "naive", "rewrite"), rows)


def _spread(one: Mean, least: float = 0.0) -> str:
    """A mean with its interval, which ends where shares (or, from -1, their differences) do."""
    ends = f" ({max(least, one.low):.3f} to {min(1.0, one.high):.3f})" if one.n > 1 else ""
    return f"{one.value:.3f}{ends}"


def _points(one: Mean) -> str:
    return f"{100 * one.value:.1f}"

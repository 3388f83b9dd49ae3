"""The study as a whole: choose learning rates, score, and write a page for each axis and world."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.studies.frontier.axes import (
    FULL,
    QUICK,
    Axis,
    Condition,
    Form,
    scored_cells,
    strengths,
    tuning_cells,
)
from preftune.studies.frontier.cells import Cell, Outcome
from preftune.studies.frontier.choice import best_rate, best_strength
from preftune.studies.frontier.methods import METHODS
from preftune.studies.frontier.runner import Results, run
from preftune.studies.frontier.statistics import Compared
from preftune.studies.frontier.tables import Point, comparisons, points
from preftune.studies.frontier.worlds import open_world
from preftune.training.progress import Bar

MANIFEST = "study.json"


@dataclass(frozen=True)
class Found:
    """What came out of one axis in one world.

    Attributes:
        axis: the question.
        world: name of the world.
        form: how large the study was.
        seeds: how many were asked for.
        points: each method at each strength under each condition.
        chosen: strength of each method, by which it is compared.
        compared: condition and comparison with the baseline.
        curve: the exact frontier on the test prompts, as (KL, reward).
        failures: cells that failed, and why.
        command: that runs it again.
        commits: of the code that ran the cells, in order; None where it was not known.
    """

    axis: Axis
    world: str
    form: Form
    seeds: int
    points: Sequence[Point]
    chosen: dict[str, float]
    compared: Sequence[tuple[str, Compared]]
    curve: Sequence[tuple[float, float]]
    failures: Sequence[Outcome]
    command: str
    commits: Sequence[str | None]

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.world}-{self.axis.key}"


def study(
    axes: Sequence[Axis],
    worlds: Sequence[str],
    out: Path,
    *,
    quick: bool = False,
    jobs: int = 2,
    seeds: int | None = None,
    show: bool = False,
    done: Callable[[Found], None] = lambda _: None,
) -> list[Found]:
    """Run what has not been run yet.

    Args:
        axes: in the order in which they are run, in each world.
        worlds: likewise.
        out: folder of the study. A study that was stopped, in any way, goes on there.
        quick: small sizes, three seeds and no choice of learning rates: not for conclusions.
        jobs: processes that work at a time, each on one thread; 0: nothing is run, and what is there is reported.
        seeds: how many; none: the form's.
        show: a progress bar for each axis.
        done: called with each axis as soon as it is through.

    Raises:
        PreftuneError: if the folder cannot be written to, or holds a study of another form.
    """
    form = QUICK if quick else FULL
    results = Results(out)
    try:
        _check_kept(out, quick, worlds, runs=jobs > 0)
        found = []
        for world in worlds:
            for axis in axes:
                one = _axis(axis, world, form, results, jobs, seeds or form.seeds, show)
                done(one)
                found.append(one)
        return found
    finally:
        results.close()


def _axis(axis: Axis, world: str, form: Form, results: Results, jobs: int, seeds: int, show: bool) -> Found:
    outcomes: list[tuple[Condition, Outcome]] = []
    chosen: dict[str, float] = {}
    for title, methods in _turns(axis):
        tuning = tuning_cells(methods, world, form)
        _run(tuning, results, jobs, show, f"{world} {axis.key}{title}: learning rates")
        rates, best = _chosen(methods, form, tuning, results)
        scored = list(scored_cells(axis, methods, world, form, rates, seeds))
        _run([cell for _, cell in scored], results, jobs, show, f"{world} {axis.key}{title}")
        outcomes += [(at, results.outcomes[cell.key]) for at, cell in scored if cell.key in results.outcomes]
        chosen |= best
    found = points(outcomes)
    return Found(
        axis,
        world,
        form,
        seeds,
        found,
        chosen,
        comparisons(axis, found, chosen),
        _curve(world, results.folder, form),
        [each for _, each in outcomes if each.failed is not None],
        _command(axis, world, results.folder, form, seeds),
        json.loads((results.folder / MANIFEST).read_text(encoding="utf-8"))["commits"],
    )


def _turns(axis: Axis) -> list[tuple[str, list[str]]]:
    """The methods of an axis in two turns, the cheap ones first: a study that is stopped has all of those."""
    online = [key for key in axis.methods if METHODS[key].kind == "online"]
    others = [key for key in axis.methods if key not in online]
    return [("", others), *([(", online", online)] if online else [])]


def _run(cells: Sequence[Cell], results: Results, jobs: int, show: bool, title: str) -> None:
    missing = results.missing(cells)
    if not missing or not jobs:
        return
    with Bar(len(missing), show, title=title) as bar:
        run(missing, results, jobs, form_is_quick(results.folder), lambda _: bar.advance())


def _chosen(
    methods: Sequence[str], form: Form, tuning: Sequence[Cell], results: Results
) -> tuple[dict[tuple[str, float], float], dict[str, float]]:
    """Learning rates by method and strength, and the strength of each method."""
    rates: dict[tuple[str, float], float] = {}
    at_best: dict[str, list[Outcome]] = {}

    def place(cell: Cell) -> tuple[str, float]:
        return cell.method, cell.strength

    for key, cells in groupby(sorted(tuning, key=place), place):
        outcomes = [results.outcomes[cell.key] for cell in cells if cell.key in results.outcomes]
        best = best_rate(outcomes)
        if best is not None:
            at_best.setdefault(key[0], []).append(best)
            if best.cell.rate is not None:
                rates[key] = best.cell.rate
    chosen = {}
    for method in methods:
        found = best_strength(at_best[method]) if method in at_best else None
        chosen[method] = strengths(METHODS[method], form.others)[0] if found is None else found
    return rates, chosen


def _curve(world: str, folder: Path, form: Form) -> list[tuple[float, float]]:
    curve = open_world(world, folder, form is QUICK).curve("test")
    return [(float(kl), float(reward)) for kl, reward in zip(curve.kl_B, curve.reward_B, strict=True)]


def form_is_quick(folder: Path) -> bool:
    """Whether a study's folder holds the quick form."""
    return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["quick"])


def _check_kept(out: Path, quick: bool, worlds: Sequence[str], runs: bool) -> None:
    """Note what is in the folder, and refuse what does not go with it: another form, or a world that has changed.

    Raises:
        PreftuneError: says which.
    """
    path, commit = out / MANIFEST, _commit()
    known: dict[str, Any] = {"quick": quick, "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "worlds": {}}
    if path.exists():
        known |= json.loads(path.read_text(encoding="utf-8"))
    if known["quick"] != quick:
        held, other = ("quick", "full") if known["quick"] else ("full", "quick")
        raise PreftuneError(f"{out} holds a {held} study, and this is a {other} one: name another folder with --out")
    for name in worlds:
        fingerprint = open_world(name, out, quick).fingerprint()
        if known["worlds"].setdefault(name, fingerprint) != fingerprint:
            raise PreftuneError(
                f"{out} holds results of the world {name} as it was in another version of preftune (another reference "
                "or reward): name another folder with --out"
            )
    commits = known.get("commits", [])
    if runs and commits[-1:] != [commit]:
        commits.append(commit)
    whole = {**known, "form": asdict(QUICK if quick else FULL), "commits": commits}
    write_whole(path, (json.dumps(whole, indent=1) + "\n").encode())


def _commit() -> str | None:
    """The commit of this code, where it is a checkout; with a + if files differ from it."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _command(axis: Axis, world: str, out: Path, form: Form, seeds: int) -> str:
    words = ["preftune", "study", "frontier", axis.key, "--world", world, "--out", str(out)]
    if form is QUICK:
        words.append("--quick")
    if seeds != form.seeds:
        words += ["--seeds", str(seeds)]
    return shlex.join(words)

"""A sweep: every setting a run, one pass of the reference for all, gain against KL, and which run to take.

found = preftune.sweep("my.yaml", {"objective.beta": [0.05, 0.1, 0.3]}, kl_budget=10)
print(found.advice.why)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from preftune.api_keys import this_command
from preftune.errors import PreftuneError
from preftune.evaluation.journal import Journal
from preftune.files import write_whole
from preftune.sweeping.checking import check_sweep
from preftune.sweeping.frontier import Advice, Kind, Point, advise, frontier
from preftune.sweeping.grid import Cell, Grid, axes_from, grid
from preftune.sweeping.measuring import Measure, as_json, from_json
from preftune.sweeping.running import Job, all_of, began
from preftune.training.run_folder import to_json

JSON, CSV, PAGE, POINTS = "sweep.json", "sweep.csv", "sweep.html", "points.jsonl"
SANDBOX = "sandbox"
Tell = Callable[[int, int, Point], object]  # how many of how many runs are done, and the one that was just done


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to.

    Attributes:
        folder: where it lies: `runs/`, `sweep.json`, `sweep.csv`, `sweep.html`.
        points: its runs, in the order of the grid.
        measure: how they were measured.
        kl_budget: most KL, nats per response; None: any.
        frontier: names of the runs that no other beats, in order of KL.
        advice: which run to take, and why.
        swept: the keys that took several values.
        notes: what to know, a line each.
        command: that started it.
    """

    folder: Path
    points: tuple[Point, ...]
    measure: Measure
    kl_budget: float | None
    frontier: tuple[str, ...]
    advice: Advice
    swept: tuple[str, ...]
    notes: tuple[str, ...]
    command: str

    @property
    def recommended(self) -> Path | None:
        """Folder of the run to take; None if none can be recommended."""
        return None if self.advice.run is None else self.folder / "runs" / self.advice.run

    def as_json(self) -> dict[str, Any]:
        """As sweep.json holds it."""
        return {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "swept": list(self.swept),
            "measure": self.measure.asked(),
            "kl_budget": self.kl_budget,
            "recommended": {"run": self.advice.run, "why": self.advice.why},
            "frontier": list(self.frontier),
            "points": [as_json(point) for point in self.points],
            "notes": list(self.notes),
        }


def sweep(
    config: str | Path | Mapping[str, Any] | None,
    values: Mapping[str, Any],
    *,
    output: str | Path | None = None,
    judge: str | None = None,
    reward: str | None = None,
    rubric: str | Path | None = None,
    max_calls: int = 10_000,
    kl_budget: float | None = None,
    prompts: int = 64,
    samples_per_prompt: int = 1,
    seed: int = 0,
    jobs: int = 1,
    tell: Tell | None = None,
) -> Sweep:
    """Train one run for each combination of values, measure all of them, and recommend one.

    What is there in the folder already is kept: finished runs stay, one that was stopped goes on.

    Args:
        config: a YAML file, or a mapping of the same form; None: the defaults, and what `values` say.
        values: dotted keys, each with a list of values (or with one): `{"objective.beta": [0.1, 0.3]}`.
        output: folder of the sweep; default runs/sweep-<time>.
        judge: who compares answers with the reference's, for a win rate; as `preftune evaluate --judge`.
        reward: a judge that scores answers, whose mean is to be high, instead of a win rate. With neither, it is the
            true reward on the built-in data, and held-out preference accuracy otherwise.
        rubric: for a judge behind an endpoint.
        max_calls: most calls to such an endpoint, for each run.
        kl_budget: most KL to the reference, in nats per response, of a run that may be recommended.
        prompts: held-out prompts that each run answers.
        samples_per_prompt: answers to each.
        seed: of the answers.
        jobs: runs that train at a time, each in a process of its own (a script needs `if __name__ == "__main__":`).
        tell: told of each run when it is done.

    Returns:
        The points, the frontier and the advice; the same is written to the folder.

    Raises:
        PreftuneError: before anything trains, if a combination cannot be trained or measured; at the end, if no run
            succeeded.
    """
    file = Path(config) if isinstance(config, str | Path) else None
    found = grid(axes_from(values), file, config if isinstance(config, Mapping) else None)
    how = measure_of(
        found.cells,
        judge,
        reward,
        rubric=None if rubric is None else str(rubric),
        max_calls=max_calls,
        prompts=prompts,
        samples_per_prompt=samples_per_prompt,
        seed=seed,
    )
    folder = default_folder() if output is None else Path(output)
    notes = check_sweep(found, how, folder, kl_budget, jobs, file)
    return carry_out(found, how, folder, notes, kl_budget=kl_budget, jobs=jobs, tell=tell)


def carry_out(
    found: Grid,
    how: Measure,
    folder: Path,
    notes: Sequence[str],
    *,
    kl_budget: float | None = None,
    jobs: int = 1,
    tell: Tell | None = None,
) -> Sweep:
    """Carry out a grid that `check_sweep` has let pass, with what that gave to know; arguments as of `sweep`."""
    journal = Journal(folder / POINTS)
    try:
        work = [_job(cell, folder, how, checks=not i) for i, cell in enumerate(found.cells)]
        points = _known(journal, work, how)
        missing = [job for job in work if job.name not in points]
        done = len(points)
        for job, point in all_of(missing, jobs):
            points[job.name] = point
            done += 1
            if not point.failed:
                journal.add({"asked": how.asked(), "began": began(job.folder), "point": as_json(point)})
            if tell is not None:
                tell(done, len(work), point)
    finally:
        journal.close()
    ordered = tuple(replace(points[job.name], settings=job.settings) for job in work)
    if all(point.failed for point in ordered):
        raise PreftuneError(
            f"none of the sweep's {len(ordered)} runs succeeded; {ordered[0].name}: {ordered[0].failed}"
        )
    result = Sweep(
        folder,
        ordered,
        how,
        kl_budget,
        tuple(frontier(ordered)),
        advise(ordered, how.kind, kl_budget),
        tuple(found.swept),
        tuple(notes),
        this_command(),
    )
    write(result)
    return result


def default_folder() -> Path:
    """A folder for a sweep that names none."""
    return Path("runs") / f"sweep-{datetime.now():%Y%m%d-%H%M%S}"


def write(result: Sweep) -> None:
    """Write sweep.json, sweep.csv and sweep.html.

    Raises:
        PreftuneError: if the disk does not take them.
    """
    from preftune.report.html import as_bytes
    from preftune.report.sweep import render

    files = {
        JSON: (to_json(result.as_json(), indent=2) + "\n").encode(),
        CSV: _as_csv(result).encode(),
        PAGE: as_bytes(render(result)),
    }
    try:
        for name, content in files.items():
            write_whole(result.folder / name, content)
    except OSError as error:
        raise PreftuneError(f"cannot write into {result.folder} ({error.strerror}): make room there") from error


def measure_of(cells: Sequence[Cell], judge: str | None, reward: str | None, **options: Any) -> Measure:
    """By what the runs of a grid are measured."""
    if judge is not None and reward is not None:
        raise PreftuneError("--judge gives a win rate and --reward a mean score: name one of them")
    if judge is None and reward is None and all(cell.config.data.path == SANDBOX for cell in cells):
        reward = SANDBOX
    kind: Kind = "win_rate" if judge is not None else "reward" if reward is not None else "accuracy"
    return Measure(kind=kind, judge=judge or reward, **options)


def _job(cell: Cell, folder: Path, how: Measure, checks: bool) -> Job:
    log = folder / "logs" / f"{cell.name}.txt"
    return Job(cell.name, dict(cell.settings), cell.placed(folder), how, log, checks)


def _known(journal: Journal, work: Sequence[Job], how: Measure) -> dict[str, Point]:
    """Points of runs that were measured in this way already, and have not been trained anew since."""
    began_at = {job.name: began(job.folder) for job in work}
    found: dict[str, Point] = {}
    for line in journal.lines:
        try:
            point = from_json(line["point"])
            if line["asked"] == how.asked() and line["began"] and line["began"] == began_at.get(point.name):
                found[point.name] = point
        except (KeyError, TypeError, ValueError):
            raise PreftuneError(f"{journal.path} holds a line that no sweep wrote: delete it, or the file") from None
    return found


def _as_csv(result: Sweep) -> str:
    """A line for each run: what was swept, and its figures."""
    rows = [_row(point, result) for point in result.points]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(point: Point, result: Sweep) -> dict[str, Any]:
    low, high = point.ci95 or (None, None)
    kl_low, kl_high = point.kl_ci95 or (None, None)
    return {
        "run": point.name,
        **{key: point.settings.get(key) for key in result.swept},
        result.measure.kind: point.value,
        "low": low,
        "high": high,
        "kl": point.kl,
        "kl_low": kl_low,
        "kl_high": kl_high,
        "reference": None if point.failed else point.reference,
        **{key: value for key, value in point.figures.items() if isinstance(value, int | float)},
        "on_frontier": point.name in result.frontier,
        "recommended": point.name == result.advice.run,
        "failed": point.failed,
    }

"""Carries out cells in processes of their own, a line of results.jsonl for each, and goes on after any kill."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from preftune.cache import VARIABLE
from preftune.errors import PreftuneError
from preftune.evaluation.journal import Journal
from preftune.studies.frontier.cells import Cell, Outcome

RESULTS = "results.jsonl"
_SCRATCH = ".work"

Told = Callable[[Outcome], None]


class Results:
    """The outcomes of a study's cells, on disk as soon as they are known.

    A cell that has come to something is never run again. One that failed is tried again when the study is started
    again, since what failed may have been the machine; its last line counts.

    Args:
        folder: of the study; made if it is not there.

    Attributes:
        outcomes: by the cell's key.

    Raises:
        PreftuneError: if the folder cannot be written to, holds something else, or another process writes to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / RESULTS)
        self.outcomes: dict[str, Outcome] = {}
        for number, line in enumerate(self.journal.lines, 1):
            try:
                outcome = Outcome.read(line)
            except (KeyError, TypeError):
                self.journal.close()
                raise PreftuneError(
                    f"{folder / RESULTS} line {number} is no outcome of this version's study: name another folder"
                ) from None
            self.outcomes[outcome.cell.key] = outcome

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome for good."""
        self.journal.add(outcome.plain())
        self.outcomes[outcome.cell.key] = outcome

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of the cells that have come to nothing yet, each once, in order."""
        done = {key for key, outcome in self.outcomes.items() if outcome.failed is None}
        return list({cell.key: cell for cell in cells if cell.key not in done}.values())

    def close(self) -> None:
        """Let other processes write."""
        self.journal.close()


def run(cells: Iterable[Cell], results: Results, jobs: int, quick: bool = False, told: Told = lambda _: None) -> None:
    """Carry out the cells that have no outcome yet.

    A cell that fails, even one that takes its process with it, has a line with the reason, and the others go on.

    Args:
        cells: in the order in which they begin.
        results: where outcomes go.
        jobs: processes that work at a time, each on one thread.
        quick: fewer samples, where a world is sampled.
        told: called with each outcome as it comes.

    Raises:
        PreftuneError: if no process can be started, or the disk does not take a line.
    """
    waiting = deque(results.missing(cells))
    scratch = results.folder / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # of a study that was killed
    crew: list[_Worker] = []
    try:
        while waiting or any(worker.busy for worker in crew):
            while waiting and len(crew) < jobs:
                crew.append(_Worker(results.folder, scratch, quick))
            for worker in crew:
                if waiting and not worker.busy:
                    worker.give(waiting.popleft())
            ready = wait([worker.connection for worker in crew if worker.busy])
            for worker in [worker for worker in crew if worker.connection in ready]:
                outcome = worker.take()
                if not worker.alive:
                    crew.remove(worker)
                if outcome is not None:
                    results.add(outcome)
                    told(outcome)
    finally:
        for worker in crew:
            worker.stop()
        shutil.rmtree(scratch, ignore_errors=True)


class _Worker:
    """A process that carries out one cell at a time, as the parent sees it."""

    def __init__(self, folder: Path, scratch: Path, quick: bool) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, folder, scratch, quick), daemon=True)
        self.process.start()
        theirs.close()
        self.alive, self.started = True, False
        self.cell: Cell | None = None

    @property
    def busy(self) -> bool:
        return self.cell is not None

    def give(self, cell: Cell) -> None:
        self.cell = cell
        try:
            self.connection.send(cell)
        except OSError:
            return  # it is dead, which `take` says

    def take(self) -> Outcome | None:
        """What it says: an outcome, or nothing but that it has started."""
        assert self.cell is not None
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            return self._died()
        if said is None:
            self.started = True
            return None
        outcome = Outcome(self.cell, *said)
        self.cell = None
        return outcome

    def _died(self) -> Outcome:
        self.process.join()
        code, self.alive = self.process.exitcode or 0, False
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        if not self.started:
            raise PreftuneError(f"a process for the study's cells could not start ({why}): see what it printed above")
        cell, self.cell = self.cell, None
        assert cell is not None
        return Outcome(cell, f"its process ended with {why}: it was killed, or memory ran out", {})

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _work(connection: Connection, folder: Path, scratch: Path, quick: bool) -> None:
    """What a process does until its parent is gone: cells, one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter
    # cells of a seed share their data: what is tokenised once lies with the study, as long as it runs
    os.environ[VARIABLE] = str(scratch / "cache")
    import torch

    from preftune.studies.frontier.trial import Place

    torch.set_num_threads(1)
    place = Place(folder, scratch / str(multiprocessing.current_process().pid), quick)
    try:
        connection.send(None)
        while True:
            connection.send(_outcome(place, connection.recv()))
    except (EOFError, OSError):
        return


def _outcome(place: Any, cell: Cell) -> tuple[str | None, Mapping[str, Any]]:
    """Why a cell failed, or its figures."""
    try:
        with redirect_stderr(io.StringIO()):  # what runs have to say of their data is known, and said hundreds of times
            return None, place.carry_out(cell)
    except PreftuneError as error:
        return str(error), {}
    except Exception as error:  # a bug must not take hours of results with it; it is named in the line
        return f"{type(error).__name__}: {error}", {}

"""The runs of a sweep, one after the other or in several processes; what is there already is kept."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from preftune import api
from preftune.config import RunConfig
from preftune.errors import PreftuneError
from preftune.resuming import has_ended
from preftune.sweeping.frontier import Point
from preftune.sweeping.measuring import Measure, measure
from preftune.training.run_folder import RunFolder

GLANCE = 0.2  # seconds between two looks at whether a reference is stored


@dataclass(frozen=True)
class Job:
    """A run to train and to measure.

    Attributes:
        name: of the cell.
        settings: the swept keys that it has.
        config: of the run, folder included.
        how: by what it is measured.
        log: file for what the run says.
        checks: score the judge itself on this run's held-out pairs.
    """

    name: str
    settings: dict[str, str]
    config: RunConfig
    how: Measure
    log: Path
    checks: bool = False

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(str(self.config.output.path))

    @property
    def reference(self) -> str:
        """What stands for the reference whose log-probs it shares with others; empty if it shares none."""
        if self.config.reference.kind != "stored":
            return ""
        return self.config.model_dump_json(include={"model", "reference", "train"})

    def begins(self) -> bool:
        """True once its reference is stored: a run folder has its config when all is ready for the first step."""
        return (self.folder / "config.yaml").is_file()


def began(folder: Path) -> str:
    """When the run in a folder began: what was measured belongs to that run alone. Empty if there is none."""
    return str(RunFolder(folder).manifest().get("started", "")) if (folder / "config.yaml").is_file() else ""


def carry_out(job: Job) -> Point:
    """Train what is not trained yet, and measure it; a run that fails is a point that says why."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        try:
            if not (job.folder / "config.yaml").is_file():
                api.run(job.config, show=False)
            elif not has_ended(job.folder):
                api.resume(job.folder, quiet=True)
            return measure(job.folder, job.name, job.settings, job.how, job.checks)
        except PreftuneError as error:
            return Point(job.name, job.settings, f"runs/{job.folder.name}", failed=str(error))


def all_of(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Point]]:
    """Carry out jobs; each with its point, as it is done.

    Raises:
        PreftuneError: if a process was killed.
    """
    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, carry_out(job)
        return
    threads = max(1, torch.get_num_threads() // processes)
    context = multiprocessing.get_context("spawn")
    with _stopping(), ProcessPoolExecutor(min(processes, len(jobs)), context, _begin, (threads,)) as pool:
        held, waiting = list(jobs), dict[Future[Point], Job]()
        try:
            while held or waiting:
                for job in _ready(held, list(waiting.values())):
                    held.remove(job)
                    with _ignored():  # by a process that starts, until it is ready to stop in order
                        waiting[pool.submit(carry_out, job)] = job
                done, _ = wait(waiting, GLANCE if held else None, FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool:
            raise PreftuneError(
                "a process of the sweep was killed (for want of memory, perhaps): the same command goes on, with fewer "
                "--jobs if need be"
            ) from None
        except BaseException:
            _ask_to_stop(pool)
            raise


def _ready(held: Sequence[Job], under_way: Sequence[Job]) -> list[Job]:
    """Jobs that may begin: of those with one reference, the first computes it alone, and the others read it."""
    computing = {job.reference for job in under_way if job.reference and not job.begins()}
    found = []
    for job in held:
        if job.reference not in computing:
            found.append(job)
            if job.reference and not job.begins():
                computing.add(job.reference)
    return found


def _begin(threads: int) -> None:
    """In each process: its share of the cores, and an end in order if the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _ask_to_stop(pool: ProcessPoolExecutor) -> None:
    """Have the runs under way save what they have; those that wait do not begin."""
    processes = list((pool._processes or {}).values())  # which a pool that shuts down forgets
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


@contextlib.contextmanager
def _ignored() -> Iterator[None]:
    """Ctrl-C is for nobody who starts in here: processes inherit what is ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """SIGTERM as Ctrl-C: the processes that were started are asked to stop, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

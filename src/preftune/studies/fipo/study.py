"""The study as a whole: chains in processes of their own, a strategy chosen, and confirmed once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preftune.cache import VARIABLE
from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.studies.fipo import baselines, chain
from preftune.studies.fipo.chain import RESULTS, Place
from preftune.studies.fipo.form import FULL, QUICK, Form
from preftune.studies.fipo.tables import Line, Outcome, outcome
from preftune.training.progress import Bar

MANIFEST = "study.json"


@dataclass(frozen=True)
class Found:
    """What came out.

    Attributes:
        form: how large the study was.
        quick: whether it was the quick form.
        lines: each optimiser, or baseline, on each split in each decoding.
        grounds: accuracy of each generator, by wording and family.
        accepted: share of the proposals that were accepted, by teacher, seed and strategy, for each round.
        outcome: which strategy was chosen, and what it was worth on the unseen generator.
        pairs: how many pairs were judged, by teacher and seed.
    """

    form: Form
    quick: bool
    lines: list[Line]
    grounds: dict[str, dict[str, dict[str, float]]]
    accepted: dict[str, dict[str, list[float]]]
    outcome: list[Outcome]
    pairs: dict[str, int]


def study(out: Path, *, quick: bool = False, jobs: int = 2, show: bool = False) -> Found:
    """Run what has not been run yet, and say what came out.

    Args:
        out: folder of the study. A study that was stopped, in any way, goes on there.
        quick: small sizes, one teacher and one seed: not for conclusions.
        jobs: processes at a time, each on one thread; 0: nothing is run, and what is there is reported.
        show: a progress bar.

    Raises:
        PreftuneError: if the folder cannot be used, or holds a study of another form.
    """
    form = QUICK if quick else FULL
    _check_kept(out, form)
    places = {f"{teacher}-{seed}": (teacher, seed) for seed in form.seeds for teacher in form.teachers}
    if jobs:
        _run(out, form, places, jobs, show)
    return found(out, form, quick)


def found(out: Path, form: Form, quick: bool) -> Found:
    """What the files of a study say: of the seeds that are through.

    Raises:
        PreftuneError: if a teacher has none.
    """
    lines, grounds, accepted, pairs = list[Line](), {}, dict[str, dict[str, list[float]]](), dict[str, int]()
    for row in _rows(out / "baselines"):
        if "grounds" in row:
            grounds = row["grounds"]
        else:
            lines.append(Line.read(row))
    whole = {
        teacher: [seed for seed in form.seeds if _whole(out / f"{teacher}-{seed}", form)] for teacher in form.teachers
    }
    if not grounds or not all(whole.values()):
        raise PreftuneError(f"the study in {out} has not come far enough to say anything: run it with --jobs 1 or more")
    for teacher, seeds in whole.items():
        for seed in seeds:
            folder = out / f"{teacher}-{seed}"
            lines += [Line.read(row) for row in _rows(folder)]
            accepted[folder.name] = {
                path.name.removesuffix(".accepted.json"): json.loads(path.read_text(encoding="utf-8"))
                for path in sorted((folder / "models").glob("*.accepted.json"))
            }
            if (folder / "pairs.jsonl").is_file():  # what is kept of a study may do without
                pairs[folder.name] = len((folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    return Found(form, quick, lines, grounds, accepted, outcome(lines, form), pairs)


def _whole(folder: Path, form: Form) -> bool:
    """Whether all strategies of a chain have been measured."""
    return len(_rows(folder)) == len(form.strategies) * chain.LOOKS


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / RESULTS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _run(out: Path, form: Form, places: dict[str, tuple[str, int]], jobs: int, show: bool) -> None:
    """All chains, the baselines first.

    Raises:
        PreftuneError: if one fails, or a process is killed; what was done is kept.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with (
        _one_thread_each(out),
        Bar(len(places) + 1, show, title="fipo") as bar,
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin) as pool,
    ):
        begun = [pool.submit(_baselines, out / "baselines", form)]
        begun += [pool.submit(_chain, Place(out / key, *place, form)) for key, place in places.items()]
        try:
            for done in as_completed(begun):
                done.result()
                bar.advance()
        except BrokenProcessPool:
            raise PreftuneError(
                f"a process of the study in {out} was killed, or memory ran out: the same command goes on from there"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():  # they would go on for minutes
                child.kill()
            raise


def _begin() -> None:
    """A process of the study computes on one thread; Ctrl-C is its parent's matter."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _baselines(folder: Path, form: Form) -> None:
    _timed(folder, lambda: baselines.carry_out(folder, form))


def _chain(place: Place) -> None:
    _timed(place.folder, lambda: chain.carry_out(place))


def _timed(folder: Path, work: Any) -> None:
    """Note what it took, in CPU seconds, of all turns."""
    began = time.process_time()
    work()
    with (folder / "seconds.txt").open("a", encoding="utf-8") as file:
        file.write(f"{time.process_time() - began:.1f}\n")


@contextmanager
def _one_thread_each(out: Path) -> Iterator[None]:
    """Processes that begin meanwhile compute on one thread, and keep what they tokenise with the study."""
    given = {"OMP_NUM_THREADS": "1", VARIABLE: str(out / ".cache")}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_kept(out: Path, form: Form) -> None:
    """Note the form in the folder, and refuse one that holds another.

    Raises:
        PreftuneError: says so.
    """
    path, said = out / MANIFEST, json.loads(json.dumps(asdict(form)))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, (json.dumps({"form": said}, indent=1) + "\n").encode())
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PreftuneError(f"cannot use {out} for the study ({reason}): name another folder with --out") from None
    if not isinstance(held, dict) or held.get("form") != said:
        raise PreftuneError(f"{out} holds a study of another form (study.json): name another folder with --out")

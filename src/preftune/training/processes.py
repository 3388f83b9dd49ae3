"""The processes of a run: joined before anything is read, of one fate, and told apart where only one may act.

A launcher (torchrun, `accelerate launch`) starts them. What one does alone while the others wait (reading data, writing
a model) has no time limit: they wait at a store, not in a collective. Each process says in that store every few seconds
that it is alive, so that the death of one, or of its machine, ends the others whatever they are doing.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from preftune.errors import PreftuneError

P = ParamSpec("P")
T = TypeVar("T")

# A collective that takes longer than this is one that not all processes have joined.
COLLECTIVE = timedelta(minutes=10)
BEAT, SILENCE = 3.0, 40.0  # seconds between two signs of life, and those without one after which a process is dead
PARTING = 5.0  # seconds that a last sign of life may take
GRACE = 5.0  # seconds in which a process may end by itself, with its own words, after another has failed
SHORTEST, LONGEST = 0.01, 0.5  # seconds between two looks at whether the others have come
ASKED = "ACCELERATE_USE_DEEPSPEED"  # how `accelerate launch` says that DeepSpeed is wanted
FAILED = 2  # exit code, as of other errors that a user can mend
_groups = count()
_joined_once = False  # from then on, errors are told apart by `together`


class ToldElsewhereError(PreftuneError):
    """An error that another process tells of."""


class Group:
    """The processes of a run, as one of them sees them.

    Attributes:
        index: of this process, from 0.
        size: number of processes.
        main: True for the process that writes files and speaks.
        first_here: True for the first process of its machine.
    """

    def __init__(self, index: int = 0, size: int = 1, local_index: int = 0, store: Any = None) -> None:
        self.index, self.size = index, size
        self.main, self.first_here = index == 0, local_index == 0
        self.store, self.waits, self.watch = store, count(), None if store is None else Watch(store, index, size)

    def wait(self) -> None:
        """Wait until all processes have come here, however long it takes.

        Raises:
            ToldElsewhereError: if one of them fails instead.
        """
        if self.store is None:
            return
        key = f"wait-{next(self.waits)}"
        self.store.add(key, 1)
        pause = SHORTEST
        while self.store.add(key, 0) < self.size:
            if self.store.check(["failed"]):
                raise ToldElsewhereError("another process failed")
            time.sleep(pause)
            pause = min(LONGEST, 1.2 * pause)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Do this on the first process of each machine, then on the others: what it keeps on disk is made once."""
        if not self.first_here:
            self.wait()
        yield
        if self.first_here:
            self.wait()

    def on_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, on all of them; the others wait for it."""
        made = [make()] if self.main else [None]
        self.wait()
        return self.told(made[0])  # type: ignore[return-value]

    def told(self, value: T) -> T:
        """The main process's value, on all of them."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        broadcast_object_list(values)
        told: T = values[0]
        return told

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        return [value] if self.size == 1 else gather_object([value])

    def speaks(self) -> bool:
        """True for the first process that asks: one of them tells what went wrong."""
        return self.store is None or _speaks(self.store)

    def fail(self) -> None:
        """Let the others know that this process ends before its time."""
        global _failed
        if self.store is None:
            return
        _failed = self
        with suppress(RuntimeError, OSError):
            self.store.set("failed", str(self.index))
            if not self.main:
                self.store.add("left", 1)

    def linger(self) -> None:
        """Let the main process, which may keep the store, stay until the others know, or they would tell it again."""
        until = time.monotonic() + GRACE
        with suppress(RuntimeError, OSError):
            while self.main and self.store.add("left", 0) < self.size - 1 and time.monotonic() < until:
                time.sleep(SHORTEST)

    def leave(self) -> None:
        """End together: the main process, which may keep the store, is the last."""
        self.wait()
        if not self.main:
            self.store.add("left", 1)
        end = time.monotonic() + GRACE
        while self.main and self.store.add("left", 0) < self.size - 1 and time.monotonic() < end:
            time.sleep(SHORTEST)


_current = Group()
_failed: Group | None = None  # what a process that failed belonged to


def _speaks(store: Any) -> bool:
    try:
        return int(store.add("spoken", 1)) == 1
    except (RuntimeError, OSError):  # the store went down with the process that kept it
        return True


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Meanwhile a variable of the environment has this value, whatever is done to it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def current() -> Group:
    """The processes of the run in progress; outside of runs, this process alone."""
    return _current


def launched() -> int:
    """Number of processes that a launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def speaks(error: BaseException) -> bool:
    """True if this process is to print an error. One that is not waits first: as soon as a process ends, launchers end
    the others, and one of those may still have to speak."""
    if isinstance(error, ToldElsewhereError):
        time.sleep(GRACE)
        return False
    if launched() > 1 and not _joined_once and os.environ["LOCAL_RANK"] != "0":
        time.sleep(2 * GRACE)  # before processes are joined, all of a machine meet the same error, as a rule
    return True


def runs_on_cpu(device: str) -> bool:
    """True if processes on this `train.device` run on the CPU, as far as several processes are concerned."""
    return device == "cpu" or not torch.cuda.is_available()


@contextmanager
def together(device: str) -> Iterator[Group]:
    """Join the processes that a launcher started, for as long as this lasts: an error of one ends all, and one of them
    says why.

    Args:
        device: `train.device`.

    Raises:
        PreftuneError: whatever is raised inside; or because another process has ended.
        ToldElsewhereError: on all processes but the one that tells.
    """
    global _current, _joined_once
    if launched() == 1 or _current.size > 1:
        yield _current
        return
    ours = not dist.is_initialized()
    group = _current = _joined(device)
    _joined_once = True
    try:
        with _watched(group):
            yield group
            group.leave()
    except BaseException as error:
        told = _told(group, error)
        if not isinstance(error, SystemExit):  # by which all stop where they agreed to
            group.fail()
        if told is error:
            raise
        raise told from error
    else:
        if ours:
            dist.destroy_process_group()
    finally:
        _current = Group()


def joined(run: Callable[P, T]) -> Callable[P, T]:
    """Let a function whose first argument is a `RunConfig` run on all processes `together`."""

    @functools.wraps(run)
    def on_all(*args: P.args, **kwargs: P.kwargs) -> T:
        config: Any = args[0]
        with together(config.train.device):
            return run(*args, **kwargs)

    return on_all


def _joined(device: str) -> Group:
    """Meet the other processes."""
    size, index, local = launched(), int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    try:
        if dist.is_initialized():
            store = dist.distributed_c10d._get_default_store()
        else:
            store, index, size = next(iter(dist.rendezvous("env://", timeout=COLLECTIVE)))
        store = dist.PrefixStore(f"preftune-{next(_groups)}", store)
        PartialState._reset_state()
        # Accelerate would train as many separate models, where there is no GPU and `cpu` is not said
        own = {} if dist.is_initialized() else {"store": dist.PrefixStore("torch", store), "timeout": COLLECTIVE}
        with environment(ASKED, "false"):  # or it would let DeepSpeed meet the others, by rules of its own
            PartialState(cpu=runs_on_cpu(device), **own, **({"rank": index, "world_size": size} if own else {}))
    except (ValueError, RuntimeError, OSError) as error:
        raise PreftuneError(
            f"process {index} of {size} cannot reach the others ({_brief(error)}): check MASTER_ADDR and MASTER_PORT, "
            "and that all machines were started with the same number of processes"
        ) from error
    return Group(index, size, local, store)


@contextmanager
def _watched(group: Group) -> Iterator[None]:
    assert group.watch is not None
    group.watch.start()
    try:
        yield
    finally:
        group.watch.stop()


def _told(group: Group, error: BaseException) -> BaseException:
    """The error as this process is to raise it."""
    if isinstance(error, ToldElsewhereError) or not isinstance(error, Exception):
        return error
    if isinstance(error, PreftuneError):
        return error if group.speaks() else ToldElsewhereError(str(error))
    if not lost_contact(error):
        return error  # a fault of ours, with its traceback
    with suppress(RuntimeError, OSError):
        if group.store.check(["failed"]):  # it has said so, and why
            return ToldElsewhereError(str(error))
    message = LOST.format(index=group.index, size=group.size, reason=_brief(error))
    return PreftuneError(message) if group.speaks() else ToldElsewhereError(message)


LOST = (
    "process {index} of {size} lost another one, which was killed, ran out of memory or lost its machine ({reason}): "
    "look at its output and at its machine, then start again"
)


def lost_contact(error: BaseException) -> bool:
    """True for what collectives raise when another process does not answer."""
    if isinstance(error, dist.DistError) and not isinstance(error, torch.OutOfMemoryError):
        return True
    words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _brief(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join((lines[0] if lines else type(error).__name__).split())[:160].rstrip(". ")


def end(code: int) -> NoReturn:
    """End this process after an error, past the interpreter's own end: there, a thread that still waits for the store
    of a process that is gone would abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _failed is not None:
        _failed.linger()
    os._exit(code)


class Watch:
    """Says that this process is alive, and ends it when another one is dead or has failed.

    Args:
        store: which all processes reach.
        index: of this process.
        size: number of processes.
    """

    def __init__(self, store: Any, index: int, size: int) -> None:
        self.store, self.index, self.size = store, index, size
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, when all have come."""
        own = self.store.clone()  # its own connection: the main thread's may be busy waiting
        own.set(f"beat-{self.index}", "0")
        own.wait([f"beat-{i}" for i in range(self.size)], COLLECTIVE)
        self.thread = threading.Thread(target=self._run, args=(own,), daemon=True, name="preftune-watch")
        self.thread.start()

    def stop(self) -> None:
        """End: from now on nobody is watched by this process."""
        self.over.set()
        if self.thread is not None:
            self.thread.join(PARTING)

    def _run(self, store: Any) -> None:
        others = [i for i in range(self.size) if i != self.index]
        seen = dict.fromkeys(others, (b"", time.monotonic()))
        for beat in count(1):
            if self.over.wait(BEAT):
                return
            try:
                store.set(f"beat-{self.index}", str(beat))
                failed = store.check(["failed"])
                beats = store.multi_get([f"beat-{i}" for i in others])
            except (RuntimeError, OSError):
                self._end(store, "the store of process 0 is gone")
                return
            now = time.monotonic()
            seen = {i: (new, seen[i][1] if new == seen[i][0] else now) for i, new in zip(others, beats, strict=True)}
            silent = [i for i in others if now - seen[i][1] > SILENCE]
            if failed or silent:
                self._end(store, None if failed else f"no sign of life of process {silent[0]} for {SILENCE:.0f} s")
                return

    def _end(self, store: Any, reason: str | None) -> None:
        """End this process, unless it does so itself: it may wait in a collective, where nothing else reaches it."""
        if self.over.wait(GRACE):
            return
        if reason is not None and _speaks(store):
            print(f"error: {LOST.format(index=self.index, size=self.size, reason=reason)}", file=sys.stderr, flush=True)
        os._exit(FAILED)

"""Processes that tokenise. Each is a fresh Python that reads chunks from a pipe and answers on another: no script needs
a guard, nothing is forked beside running threads, and a process that dies is noticed at once."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from preftune.data.tokenising import Rendered, Tokeniser

ENOUGH = 20_000  # records that keep one process busy for longer than it takes to start
BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from preftune.data.workers import serve; serve()"
)


class CannotShare(Exception):  # noqa: N818 (the caller goes on without other processes)
    """The tokenizer cannot be handed to another process."""


def worker_count(wanted: int | None, records: int, chunk: int) -> int:
    """How many processes to use; with 1, this one does the work.

    Args:
        wanted: what the user asks for; None: one for each core, as long as each has enough to do.
        records: to render.
        chunk: of them are handed over at once.
    """
    if wanted is not None:
        return max(1, min(wanted, -(-records // chunk)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, records // ENOUGH))


class Workers:
    """A pool of such processes.

    Args:
        tokeniser: what each of them does.
        sources: names that the lines refer to.
        count: of processes.

    Raises:
        CannotShare: if the tokenizer does not survive pickling.
    """

    def __init__(self, tokeniser: Tokeniser, sources: Sequence[str], count: int) -> None:
        try:
            job = pickle.dumps((tokeniser.tokenizer, tokeniser.config, list(sources)))
        except Exception as error:  # whatever an object's own code raises
            raise CannotShare(reason(error)) from error
        self._job, self._count = job, count
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        try:
            for _ in range(self._count):
                process = subprocess.Popen(
                    [sys.executable, "-c", BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
                )
                self._processes.append(process)
                _send(process, sys.path)
                _stream(process.stdin).write(self._job)
                _stream(process.stdin).flush()
            for process in self._processes:
                answer = _receive(process)
                if isinstance(answer, Exception):  # its classes cannot be imported over there
                    raise CannotShare(reason(answer))
        except BaseException as error:
            self._stop()
            if isinstance(error, OSError | PreftuneError):  # no Python to start, or it does not come up
                raise CannotShare(reason(error)) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def map(self, chunks: Iterable[list[bytes]]) -> Iterator[Rendered]:
        """What became of each chunk, in order. A few are under way at any time, and no more are read.

        Raises:
            PreftuneError: what rendering raises; or if a process ended by itself.
        """
        free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self._processes:
            free.put(process)

        def ask(chunk: list[bytes]) -> Any:
            process = free.get()
            try:
                _send(process, chunk)
                return _receive(process)
            finally:
                free.put(process)  # a dead one too: who takes it next must not wait for ever

        with ThreadPoolExecutor(self._count) as threads:
            waiting: deque[Future[Any]] = deque()
            try:
                for chunk in chunks:
                    waiting.append(threads.submit(ask, chunk))
                    if len(waiting) > 2 * self._count:
                        yield _checked(waiting.popleft().result())
                while waiting:
                    yield _checked(waiting.popleft().result())
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
                self._stop()  # threads that still wait for an answer find the pipe closed

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    _stream(stream).close()


def reason(error: BaseException) -> str:
    """A short form of what another's code raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def serve() -> None:
    """The work of one process: chunks in, outcomes or an exception out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: who started this process ends it
    given = sys.stdin.buffer
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what libraries print must not get between answers
        try:
            from preftune.data.tokenising import Tokeniser

            tokenizer, config, sources = pickle.load(given)
            work: Any = Tokeniser(tokenizer, config)
        except Exception as error:
            _answer(answers, error)
            return
        _answer(answers, None)
        with suppress(EOFError):
            while True:
                lines = pickle.load(given)
                try:
                    _answer(answers, work.render(lines, sources))
                except Exception as error:
                    _answer(answers, error)


def _answer(answers: BinaryIO, value: Any) -> None:
    try:
        data = pickle.dumps(value)
    except Exception:  # an exception that does not travel
        data = pickle.dumps(RuntimeError(f"{type(value).__name__}: {value}"))
    answers.write(data)
    answers.flush()


def _checked(answer: Any) -> Rendered:
    if isinstance(answer, Exception):
        raise answer
    return cast("Rendered", answer)


def _stream(stream: Any) -> BinaryIO:
    return cast(BinaryIO, stream)


def _send(process: subprocess.Popen[bytes], value: Any) -> None:
    with suppress(BrokenPipeError):  # it has ended: reading its answer says so
        pickle.dump(value, _stream(process.stdin))
        _stream(process.stdin).flush()


def _receive(process: subprocess.Popen[bytes]) -> Any:
    try:
        return pickle.load(_stream(process.stdout))
    except (EOFError, pickle.UnpicklingError, ValueError):
        raise PreftuneError(
            f"a process that tokenises ended by itself (exit code {process.wait()}): memory may have run out; set "
            "data.workers to a smaller number"
        ) from None

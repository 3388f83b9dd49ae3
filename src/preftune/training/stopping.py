"""Being asked to stop: SIGTERM (schedulers, spot instances) and Ctrl-C end a run in order, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AFTER_STEP, SOON = "stopping after this step, with a checkpoint", "stopping"
ENDING = "the run has come to its end, and is being saved"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A run was asked to stop, and has saved what it had. The exit code is that of the signal, as a shell has it."""

    def __init__(self, message: str, by: signal.Signals) -> None:
        super().__init__(128 + by.value)
        self.message, self.by = message, by

    def __str__(self) -> str:
        return self.message


class Overdue(BaseException):
    """A step that takes longer than the time that is left is broken off."""


class Stops:
    """Notes signals while training runs; who asks finds out between two steps.

    If a step, or an evaluation, would outlast the grace time, it is broken off by `Overdue`, in time to save what was
    there after the last whole step.

    Attributes:
        requested: the signal that came, if one did.
        eager: True where nothing is to be finished: a signal breaks off at once.
        saying: what a person is told then.

    Args:
        grace: seconds between the signal and the end of the process.
        needed: seconds that saving takes.
        alone: False if other processes wait for this one in the midst of a step, so that none can be broken off.
    """

    def __init__(self, grace: float, needed: Callable[[], float], alone: bool) -> None:
        self.grace, self.needed, self.alone = grace, needed, alone
        self.requested: signal.Signals | None = None
        self._before: dict[int, Any] = {}
        self._holding, self._overdue = 0, False
        self.eager, self.saying = False, AFTER_STEP

    def step_by_step(self) -> None:
        """From here on, steps are finished."""
        self.eager, self.saying = False, AFTER_STEP

    def at_once(self) -> None:
        """From here on, what goes on can be done again."""
        self.eager, self.saying = True, SOON

    def not_any_more(self) -> None:
        """From here on, the run ends by itself."""
        self.last()
        self.saying = ENDING

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():  # only there does Python take signals
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
            if self.alone and hasattr(signal, "setitimer"):
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._break_off)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """What happens in here happens whole: nothing is broken off."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        if self._overdue and not self._holding:
            raise Overdue

    def last(self) -> None:
        """The run ends now: nothing is broken off any more."""
        self._holding += 1
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            if number == signal.SIGINT:  # somebody insists
                raise KeyboardInterrupt
            return
        self.requested = signal.Signals(number)
        # written past Python's buffers, which the signal may have caught half-way
        os.write(2, f"note: {self.requested.name}: {self.saying}\n".encode())
        if self.eager and self.alone:
            self._break_off(number, frame)
        elif signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, max(0.05, self.grace - self.needed()))

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._overdue = True
        else:
            raise Overdue

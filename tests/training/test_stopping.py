"""Being asked to stop."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from preftune.training.stopping import Overdue, Stops


def wait(seconds: float) -> None:
    """In small pieces, as a step does: between two of them a signal is seen."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_step_goes_on(number, capfd):
    before = signal.getsignal(number)
    with Stops(grace=30, needed=lambda: 1.0, alone=True) as stops:
        assert stops.requested is None
        os.kill(os.getpid(), number)
        wait(0.02)
        assert stops.requested == number
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"note: {number.name}: stopping after this step, with a checkpoint\n"


def test_a_step_that_outlasts_the_grace_is_broken_off_in_time_to_save():
    begun = time.monotonic()

    def step() -> None:
        with Stops(grace=0.5, needed=lambda: 0.3, alone=True):
            os.kill(os.getpid(), signal.SIGTERM)
            wait(20)

    with pytest.raises(Overdue):
        step()
    assert 0.15 < time.monotonic() - begun < 10


def test_what_must_happen_whole_does():
    done = []

    def step() -> None:
        with Stops(grace=0, needed=lambda: 0.0, alone=True) as stops:
            os.kill(os.getpid(), signal.SIGTERM)
            with stops.held():
                wait(0.3)
                done.append(True)
            wait(20)

    with pytest.raises(Overdue):
        step()
    assert done


def test_nothing_is_broken_off_once_the_last_checkpoint_is_being_saved():
    with Stops(grace=0.3, needed=lambda: 0.0, alone=True) as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        stops.last()
        wait(0.5)


def test_nothing_is_broken_off_where_other_processes_wait():
    with Stops(grace=0, needed=lambda: 0.0, alone=False) as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        wait(0.2)
        assert stops.requested == signal.SIGTERM


def test_who_presses_ctrl_c_twice_is_not_kept_waiting():
    def run() -> None:
        with Stops(grace=30, needed=lambda: 1.0, alone=True):
            os.kill(os.getpid(), signal.SIGINT)
            wait(0.05)
            os.kill(os.getpid(), signal.SIGINT)
            wait(5)

    with pytest.raises(KeyboardInterrupt):
        run()


def test_another_thread_takes_no_signals():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def train() -> None:
        with Stops(grace=1, needed=lambda: 1.0, alone=True):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [before]

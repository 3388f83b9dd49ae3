"""One of two processes that meet a fate: `fates.py FATE`, with a launcher's variables in the environment."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from preftune.errors import PreftuneError
from preftune.training import processes

processes.BEAT, processes.SILENCE, processes.GRACE = 0.1, 1.5, 0.5


def act(fate: str, group: processes.Group) -> None:
    """What the second process does to the first, which waits for it."""
    if fate == "both refuse":
        raise PreftuneError("this is refused")
    if group.main and fate == "waits":  # where no collective would notice
        group.wait()
    elif group.main:
        dist.all_reduce(torch.ones(1))
    elif fate == "stops":  # as a machine does that is gone: nothing is closed
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        raise PreftuneError("this is refused")


def alone_first(group: processes.Group) -> None:
    """Something is made once, on the first process of a machine, while the others wait."""
    made = Path(os.environ["MADE"])
    with group.first_alone():
        if not made.exists():
            made.write_text(str(group.index))
    told = group.on_main(lambda: group.index + 7)
    print(f"process {group.index} of {group.size} reads {made.read_text()} {told} {group.gathered(group.index)}")


def main() -> None:
    """As the command line ends."""
    try:
        with processes.together("cpu") as group:
            alone_first(group)
            if sys.argv[1] != "ends well":
                act(sys.argv[1], group)
    except PreftuneError as error:
        if processes.speaks(error):
            print(f"error: {error}", file=sys.stderr)
        processes.end(2)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()

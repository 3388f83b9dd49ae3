"""Kill a run again and again, let it go on each time, and hold what comes out against a run that nobody disturbed.

    python scripts/soak.py --kills 50

Each process is killed with SIGKILL at a random moment, or in the midst of a certain write: of a line of metrics, of a
checkpoint, of its checksums, before or after a rename. What was being written then is left cut at a random byte. The
run that went on must end with the same weights, samples and metrics, bit by bit, times apart, and must never have lost
more than the steps since its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from preftune import api, errors  # noqa: F401  (imported before the processes are parted: they share it)
from preftune.training import checkpoint

SAVE_EVERY, STEPS = 3, 20
TIMES = {"seconds", "pairs_per_second", "tokens_per_second"}
SETTINGS: dict[str, Any] = {
    "model": {"lora": {"r": 4, "dropout": 0.2}},
    "batch": {"size": 8, "micro_size": 4},
    "optim": {"learning_rate": 1e-2},
    "train": {"max_steps": STEPS, "log_every": 1, "device": "cpu", "check_memory": False},
    "evaluate": {"every": 5, "samples": 2, "max_new_tokens": 8},
    "output": {"save_every": SAVE_EVERY, "keep_best": "loss"},
}
OBJECTIVE = [{"name": "bco", "weight": 1.0}, {"name": "sft", "weight": 0.1}]


def main() -> int:
    """Returns 0 if the runs agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random_ = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="preftune-soak-"))
    try:
        begun = time.monotonic()
        assert in_child(lambda: begin(folder / "calm")) == 0, "the run that nobody disturbs failed"
        length = time.monotonic() - begun
        wanted, kills, runs, where = outcome(folder / "calm"), 0, 0, list[str]()
        while kills < args.kills:
            disturbed = folder / f"disturbed-{runs}"
            runs += 1
            kills += disturb(disturbed, random_, length, args.kills - kills, where)
            if (found := outcome(disturbed)) != wanted:
                print(f"run {runs} came out otherwise in {[k for k in wanted if found[k] != wanted[k]]}: {where[-9:]}")
                return 1
            shutil.rmtree(disturbed)
        moments = {name: where.count(name) for name in sorted(set(where))}
        print(
            json.dumps({"kills": kills, "runs": runs, "moments": moments, "seconds": round(time.monotonic() - begun)})
        )
    finally:
        shutil.rmtree(folder)
    return 0


def disturb(run: Path, random_: random.Random, length: float, most: int, where: list[str]) -> int:
    """Begin a run and let it go on, killing each process, until one comes to its end. Returns the number of kills."""
    kills = 0
    while True:
        plan = plan_of(random_, length) if kills < most else None
        seen, before = last_step(run), len(resumptions(run))
        code = in_child((lambda: go_on(run)) if (run / "config.yaml").exists() else (lambda: begin(run)), plan)
        if len(again := resumptions(run)) > before:
            lost = seen - again[-1]["step"]
            assert lost <= SAVE_EVERY, f"{lost} steps were lost, of {SAVE_EVERY} between two checkpoints"
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, f"a process ended with {code}"
        kills += 1
        where.append("at any moment" if plan is None or "seconds" in plan else f"in {plan['call']}")
        if not (run / "config.yaml").exists():
            shutil.rmtree(run, ignore_errors=True)  # it had not begun


def plan_of(random_: random.Random, length: float) -> dict[str, Any]:
    """When a process is to be killed: after some seconds, or at a certain write."""
    if random_.random() < 0.4:
        return {"seconds": random_.uniform(0.05, length)}
    call = random_.choice(["fsync", "fsync", "fsync", "rename", "replace"])
    return {"call": call, "number": random_.randint(1, 60 if call == "fsync" else 8), "cut": random_.random()}


def in_child(work: Callable[[], None], plan: dict[str, Any] | None = None) -> int:
    """Do something in a process of its own. Returns its exit code, or minus the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            if plan is not None and "call" in plan:
                kill_at(**plan)
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if plan is not None and "seconds" in plan:
        until = time.monotonic() + plan["seconds"]
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(call: str, number: int, cut: float) -> None:
    """Let this process be killed at the `number`-th call of one of os's functions; a file that is being forced to disk
    then is left with a part of its bytes."""
    original, calls = getattr(os, call), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < number:
            return original(*args, **kwargs)
        if call == "fsync":
            file = Path(f"/proc/self/fd/{args[0]}")
            if file.is_file() and cut > 0.2:
                size = file.stat().st_size
                # of a log only its last line can be unwritten
                lines = file.resolve().suffix == ".jsonl"
                least = file.read_bytes().rstrip(b"\n").rfind(b"\n") + 1 if lines else 0
                os.truncate(file, least + int((size - least) * cut))
        elif cut > 0.5:
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(os, call, counted)


def begin(run: Path) -> None:
    """Train."""
    api.train("sandbox", "sandbox", OBJECTIVE, output=run, quiet=True, config={**SETTINGS, "data": {"limit": 96}})


def go_on(run: Path) -> None:
    """Go on with a run."""
    api.resume(run, quiet=True)


def resumptions(run: Path) -> list[dict[str, Any]]:
    """What the manifest says of each time that the run went on."""
    file = run / "manifest.json"
    return json.loads(file.read_text()).get("resumed", []) if file.exists() else []


def last_step(run: Path) -> int:
    """The step of the last whole line of metrics."""
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1] if (run / "metrics.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, times apart."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    checkpoints = {
        step: (run / checkpoint.name_of(step) / "state" / "tensors-0.safetensors") for step in checkpoint.saved(run)
    }
    return {
        "weights": digest(run / "model" / "adapter_model.safetensors"),
        "metrics": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        "samples": digest(run / "samples.jsonl"),
        "figures": {key: summary[key] for key in ("steps", "examples", "before", "after", "best")},
        "checkpoints": {step: digest(file) for step, file in checkpoints.items()},
        "files": sorted(path.name for path in run.iterdir()),
    }


def digest(path: Path) -> str:
    """SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())

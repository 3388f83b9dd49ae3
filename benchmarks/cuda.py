"""preftune and TRL on a GPU: build, check, time in one command, within eight minutes.

    PYTHONPATH=src python benchmarks/cuda.py --out DIR

Builds Qwen3-0.6B and 1.7B shapes with random weights and generated pairs of up to 2,048 tokens; checks that trees over
the GPU's kernels equal padded rows, runs the tests that need a GPU, and compares losses; times the head alone and every
contender, in turn and each in a process of its own. Writes cuda.json and cuda.md into DIR. What the budget of time does
not allow is not measured, and named. Needs torch with CUDA, pytest and hypothesis; TRL 1.16.0 to compare with; Liger,
flash-attn and cut-cross-entropy are measured where they are installed. Both train float32 weights under bf16 autocast.

    PYTHONPATH=src python benchmarks/cuda.py --device cpu --tiny --out DIR

is the same on a CPU in miniature: to see that the script works, not to learn a speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cuda_limit import limit
from cuda_page import page
from cuda_settings import setting
from settings import ROOT, Setting

HERE = Path(__file__).parent
BF16_LOSS, EXACT_LOSS = 1e-2, 1e-4  # largest differences between two losses on the same batch
NEEDED = {"TRL": "trl", "Liger": "liger_kernel", "flash": "flash_attn"}
ROUNDS = 2
GRACE = 30  # seconds beyond the budget after which whoever is still at work is stopped


@dataclass(frozen=True)
class Group:
    """Contenders of one model that are measured in turn."""

    model: str
    what: str
    contenders: tuple[str, ...]


LIVE = ("preftune", "TRL", "TRL, Liger", "TRL, flash attention")
STORED = ("preftune, stored reference", "TRL, stored reference, Liger", "TRL, stored reference")
CHECKPOINTED = ("preftune, checkpointed", "TRL, checkpointed, Liger", "TRL, checkpointed")
BOTH = ("preftune, stored, checkpointed", "TRL, stored, checkpointed, Liger", "TRL, stored, checkpointed")
KINDS = {"live": LIVE, "stored": STORED, "checkpointed": CHECKPOINTED, "both": BOTH}


@dataclass
class Clock:
    """What is left of the time that the whole may take.

    Attributes:
        end: of that time.
        patience: factor on the seconds that a part may take.
    """

    end: float
    patience: float = 1.0

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def within(self, seconds: float) -> float:
        """What a part may take, if these seconds are its share."""
        return max(1.0, min(seconds * self.patience, self.left))


@dataclass
class Contender:
    """A process that waits for its turn."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def start(cls, name: str, device: str, settings: list[Path], folder: Path) -> Contender:
        """Start it; `answer` says when it is ready."""
        log = folder / f"{name}.log"
        command = [sys.executable, str(HERE / "cuda_contenders.py"), name, device, *map(str, settings)]
        with log.open("w") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()
            )
        return cls(name, process, log)

    def ask(self, words: str) -> dict[str, Any]:
        """Its answer to these words; nothing once it has failed."""
        if self.error:
            return {}
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next line; a failure is kept."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": self.log.read_text()[-300:] or "it ended"}
        self.error = found.get("error", "")
        return {} if self.error else found

    def end(self) -> None:
        """Tell it to go, and see to it that it does."""
        try:
            self.process.communicate("end\n", timeout=20)
        except (subprocess.TimeoutExpired, BrokenPipeError, ValueError):
            self.process.kill()


def environment() -> dict[str, str]:
    """Of the processes: all have this source, and memory that grows without holes."""
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    # torch 2.9 changed the name; older ones know the first alone
    grow = dict.fromkeys(("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"), "expandable_segments:True")
    return {**os.environ, **grow, "PYTHONPATH": path}


def helper(script: str, *arguments: str, seconds: float) -> Any:
    """The last that another script of this folder prints within so many seconds, or why it prints nothing."""
    command = [sys.executable, str(HERE / script), *arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log, text=True, env=environment())
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        for stream in (out, log):
            stream.seek(0)
        lines = [line for line in out if line.endswith("\n")]
        return json.loads(lines[-1]) if lines else {"error": log.read()[-300:] or f"more than {seconds:.0f} s"}


def gpu_tests(seconds: float) -> dict[str, Any]:
    """Run the tests of the repository that need a GPU, with the rest of their files."""
    mark = 'reason="needs a CUDA device"'
    files = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py") if mark in p.read_text())
    files = [file for file in files if file != "tests/benchmarks/test_cuda.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", *files]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, env=environment(), check=False
        )
    except subprocess.TimeoutExpired:
        return {"files": files, "passed": False, "said": f"more than {seconds:.0f} s"}
    return {"files": files, "passed": done.returncode == 0, "said": "\n".join(done.stdout.splitlines()[-6:])}


def measure(group: Group, lengths: list[str], device: str, batches: int, clock: Clock) -> list[dict[str, Any]]:
    """One row for each length mix: every contender in turn, beside the limit."""
    settings = [setting(group.model, each, batches) for each in lengths]
    rows: list[dict[str, Any]] = [
        {
            "model": group.model, "what": group.what, "lengths": each.name.split("/")[1], "pairs": len(each.examples),
            "median_tokens": [each.median(of) for of in ("prompt", "chosen", "rejected")],
            "tokens_per_pair": sum(e.tokens for e in each.examples) / len(each.examples),
            "contenders": {}, "missing": dict(absent(group)),
        }
        for each in settings
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.pkl" for number in range(len(settings))]
        for each, path in zip(settings, paths, strict=True):
            each.save(path)
        present = [name for name in group.contenders if name not in absent(group)]
        contenders = [Contender.start(name, device, paths, Path(folder)) for name in present]
        late = threading.Timer(max(clock.left, 0) + GRACE, lambda: [each.process.kill() for each in contenders])
        late.start()
        try:
            for contender in contenders:
                contender.ready = contender.answer()
            for number, (row, each) in enumerate(zip(rows, settings, strict=True)):
                in_turn(row, each, number, contenders, device, clock)
        finally:
            late.cancel()
            for contender in contenders:
                contender.end()
    return rows


def in_turn(
    row: dict[str, Any], found: Setting, number: int, contenders: list[Contender], device: str, clock: Clock
) -> None:
    """A B A B over one setting; what fails or comes too late is named as missing."""
    row["limit"] = limit(found, device)
    if device == "cuda":
        torch.cuda.empty_cache()
    figures: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    for turn in range(ROUNDS + 1):  # the first warms up
        for contender in contenders:
            if clock.left < 0:
                contender.error = contender.error or "no time was left"
            answer = contender.ask(f"pass {number}")
            if answer and turn:
                figures[contender.name].append(answer)
    for contender in contenders:
        passes = figures[contender.name]
        if not passes:
            row["missing"][contender.name] = contender.error
            continue
        rates = [row["pairs"] / each["seconds"] for each in passes]
        row["contenders"][contender.name] = {
            "rate": statistics.median(rates), "low": min(rates), "high": max(rates),
            "peak_gb": max(each["peak_gb"] for each in passes),
            "loss": contender.ready["losses"][number], "exact_loss": contender.ready["exact"][number],
            "waits": contender.ask(f"waits {number}").get("waits") if number == 0 else None,
        }  # fmt: skip


def absent(group: Group) -> dict[str, str]:
    """The contenders of a group that cannot run here, and why."""
    found = {}
    for name in group.contenders:
        lacking = [module for word, module in NEEDED.items() if word in name and not importlib.util.find_spec(module)]
        if lacking:
            found[name] = f"{lacking[0]} is not installed"
    return found


def agree(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether all contenders of a row compute the same loss on the same batch."""
    verdicts = []
    for row in rows:
        for key, allowed in (("exact_loss", EXACT_LOSS), ("loss", BF16_LOSS)):
            losses = [each[key] for each in row["contenders"].values()]
            if len(losses) > 1:
                name = f"{row['model']}, {row['lengths']}, {row['what']}: {key.replace('_', ' ')} of all contenders"
                error = max(losses) - min(losses)
                verdicts.append({"check": name, "error": error, "allowed": allowed, "holds": error <= allowed})
    return verdicts


def idle(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether preftune's steps keep the device busy: none of them waits for a value."""
    return [
        {"check": f"{row['model']}, {name}: waits in a step", "error": waits, "allowed": 0.0, "holds": waits == 0}
        for row in rows
        for name, figures in row["contenders"].items()
        if name.startswith("preftune") and figures["waits"] is not None
        for waits in [sum(figures["waits"].values())]
    ]


def main() -> None:
    """Parse, check, time, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for cuda.json and cuda.md")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="miniature shapes")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--models", nargs="+", choices=["0.6B", "1.7B"], default=["0.6B", "1.7B"])
    parser.add_argument("--batches", type=int, default=8, help="optimiser steps in one timed pass")
    parser.add_argument("--budget", type=float, default=430, help="seconds after which nothing new is measured")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here: --device cpu --tiny shows that the script works")
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    clock = Clock(started + arguments.budget, patience=1 if arguments.device == "cuda" else 10)
    models = ["tiny"] if arguments.tiny else arguments.models
    lengths = ["tiny"] if arguments.tiny else ["dialogue", "ultrafeedback"]
    device = arguments.device
    found: dict[str, Any] = {"machine": machine(device), "rounds": ROUNDS, "rows": [], "heads": [], "missing": []}

    def keep() -> None:  # after each part: a run that is cut off leaves what it found
        found["seconds"] = time.monotonic() - started
        (arguments.out / "cuda.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        (arguments.out / "cuda.md").write_text(page(found), encoding="utf-8")

    with ThreadPoolExecutor() as both:
        tests = both.submit(gpu_tests, clock.within(100))
        verdicts = both.submit(helper, "cuda_checks.py", device, seconds=clock.within(100)).result()
        found["tests"] = tests.result()
    found["checks"] = verdicts if isinstance(verdicts, list) else [{"check": "all", "holds": False, **verdicts}]
    keep()
    for model in models:
        targets = "64" if arguments.tiny else "4096"
        found["heads"].append(helper("cuda_heads.py", device, model, targets, seconds=clock.within(60)))
        keep()
    for kind in arguments.kinds:
        for model in models:
            group = Group(model, kind, KINDS[kind])
            if clock.left < 30:
                found["missing"].append(f"{model}, {kind}: no time was left")
                continue
            found["rows"] += measure(group, lengths, device, arguments.batches, clock)
            keep()
    found["checks"] += agree(found["rows"])
    if device == "cuda":  # on a CPU nothing waits: there the page lists what would
        found["checks"] += idle(found["rows"])
    keep()
    print(page(found))
    if not (found["tests"]["passed"] and all(verdict["holds"] for verdict in found["checks"])):
        sys.exit("a check does not hold: see above")


def machine(device: str) -> dict[str, Any]:
    """What it was measured on."""
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "triton", "liger_kernel")}
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"device": name, "cuda": torch.version.cuda, **versions}


def version(module: str) -> str | None:
    """Of an installed package; None if it is not there."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as found

    try:
        return found(module.replace("_", "-"))
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

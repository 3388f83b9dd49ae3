"""preftune and TRL in turn, on the same weights, tokens, batches and precision, beside the limit of the machine.

    python benchmarks/throughput.py [--rows gsm8k chat] [--pairs 24] [--rounds 3] [--write]

Needs the extra `bench`. Real pairs are read from ../shared/data where it is. Each contender runs in a process of its
own, A B A B; before anything is timed, all in fp32 must give the same loss on the same batch. --write puts the table
and the plot into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from contenders import BATCH, CONTENDERS
from limit import operations, products, seconds
from settings import ROOT, ROWS, Setting, prepare
from transformers import Qwen3Config

TOLERANCE = 1e-4


@dataclass
class Contender:
    """A process that waits for its turn."""

    name: str
    process: subprocess.Popen[str]
    loss: float
    rates: list[float] = field(default_factory=list)
    peak_gb: float = 0.0

    @classmethod
    def start(cls, name: str, setting: Path) -> Contender:
        """Start it, and wait until it is ready."""
        script = str(Path(__file__).with_name("contenders.py"))
        process = subprocess.Popen(
            [sys.executable, script, name, str(setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        contender = cls(name, process, 0.0)
        contender.loss = contender.answer()["loss"]
        return contender

    def answer(self) -> dict[str, float]:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended: run benchmarks/contenders.py by hand to see why")
        found: dict[str, float] = json.loads(line)
        return found

    def go(self, pairs: int) -> None:
        """One pass over all pairs."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        found = self.answer()
        self.rates.append(pairs / found["seconds"])
        self.peak_gb = found["peak_gb"]

    @property
    def rate(self) -> float:
        """Median pairs per second."""
        return statistics.median(self.rates)


def measure(name: str, pairs: int, rounds: int, who: list[str]) -> dict[str, Any]:
    """One row: every contender in turn, and the limit before and after."""
    setting = prepare(name, pairs)
    batches = [setting.examples[i : i + BATCH] for i in range(0, pairs, BATCH)]
    needed = [products(Qwen3Config(**setting.shape), batch) for batch in batches]
    limits = [pairs / sum(seconds(each) for each in needed)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "setting.pkl"
        setting.save(path)
        contenders = [Contender.start(each, path) for each in who]
        check(name, contenders)
        for turn in range(rounds + 1):
            for contender in contenders:
                contender.go(pairs)
                if turn == 0:  # the first pass warms up
                    contender.rates.clear()
        for contender in contenders:
            contender.process.communicate("end\n")
    limits.append(pairs / sum(seconds(each) for each in needed))
    return report(setting, contenders, statistics.mean(limits), sum(operations(each) for each in needed) / pairs)


def check(name: str, contenders: list[Contender]) -> None:
    """All in fp32 must compute the same loss."""
    losses = {each.name: each.loss for each in contenders if "bf16" not in each.name}
    if max(losses.values()) - min(losses.values()) > TOLERANCE:
        sys.exit(f"{name}: they do not compute the same loss on the same batch: {losses}")


def report(setting: Setting, contenders: list[Contender], limit: float, operations_each: float) -> dict[str, Any]:
    """The figures of a row, printed too."""
    tokens = sum(example.tokens for example in setting.examples) / len(setting.examples)
    lengths = [setting.median(of) for of in ("prompt", "chosen", "rejected")]
    print(f"\n{setting.name}: {ROWS[setting.name].what} (median tokens {lengths})")
    print(f"  limit {limit:.2f} pairs/s ({operations_each / 1e9:.2f} GFLOP a pair)")
    rows = {}
    for each in contenders:
        low, high = min(each.rates), max(each.rates)
        print(
            f"  {each.name:28} {each.rate:7.2f} pairs/s ({low:.2f} to {high:.2f})  {each.rate * tokens:7.0f} tokens/s  "
            f"{each.rate / limit:4.0%} of the limit  {each.peak_gb:.2f} GB  loss {each.loss:.6f}"
        )
        rows[each.name] = {"rate": each.rate, "low": low, "high": high, "peak_gb": each.peak_gb, "loss": each.loss}
    return {
        "row": setting.name,
        "what": ROWS[setting.name].what,
        "median_tokens": lengths,
        "tokens_per_pair": tokens,
        "limit": limit,
        "contenders": rows,
    }


def main() -> None:
    """Parse, measure row by row, print; write the page if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--who", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--pairs", type=int, default=24, help=f"pairs in one timed pass (a multiple of {BATCH})")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes of each")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and its plot")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {BATCH} pairs")
    found = [measure(name, arguments.pairs, arguments.rounds, arguments.who) for name in arguments.rows]
    if arguments.write:
        from page import write

        print(f"wrote {write(ROOT / 'docs', found, arguments.pairs, arguments.rounds)}")


if __name__ == "__main__":
    main()

"""Memory and time of getting data ready, for ten thousand pairs and for a million: each in a process of its own.

    python benchmarks/million.py

Generates pairs (texts of a few dozen words, lines of JSON), and for each number of them, first with an empty cache and
then with a warm one: reads, splits, tokenises with the built-in world's tokenizer, plans an epoch in random order and
goes through all of its examples. Exits with 1 unless a million pairs keep peak memory within 300 MB of ten thousand's
and a warm start takes less than 20 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMALL, LARGE = 10_000, 1_000_000
MOST_MORE_MB = 300.0
MOST_WARM_SECONDS = 20.0


def generate(path: Path, count: int) -> None:
    """Write pairs of made-up sentences: a prompt of about 20 words, and two answers of about 30."""
    import numpy as np

    from preftune.sandbox.preferences import base_tokenizer

    words = sorted(word for word in base_tokenizer().get_vocab() if word.strip().isalpha())
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, count, 1000):
            drawn = random.integers(len(words), size=(min(1000, count - first), 80))
            ends = random.integers((15, 40, 70), (25, 51, 80), size=(len(drawn), 3))
            for row, (a, b, c) in zip(drawn, ends, strict=True):
                text = [words[i] for i in row]
                parts = (" ".join(text[:a]), " " + " ".join(text[a:b]), " " + " ".join(text[b:c]))
                file.write(json.dumps(dict(zip(("prompt", "chosen", "rejected"), parts, strict=True))) + "\n")


def prepare(path: Path) -> dict[str, Any]:
    """What a run does before its first step, and an epoch's reading of examples."""
    from preftune.checks import check_columns, check_sizes
    from preftune.data import dataset
    from preftune.data.dataset import DataConfig
    from preftune.objectives import registry
    from preftune.sandbox.preferences import base_tokenizer
    from preftune.training.batches import BatchConfig, lengths, plan_epoch

    tokenizer, terms, config = base_tokenizer(), registry.terms("dpo"), DataConfig()
    before, start = _peak(), time.perf_counter()
    found = dataset.read(config, str(path), 0)
    check_columns(terms, found)
    read = time.perf_counter()
    examples = dataset.render(found, tokenizer, config)
    check_sizes(terms, examples)
    rendered = time.perf_counter()
    plan = plan_epoch(lengths(examples.train)[:, 0], BatchConfig(), 0, 0)
    planned, tokens = time.perf_counter(), 0
    for batch in plan:
        tokens += sum(examples.train[int(i)].tokens for i in batch)
    done = time.perf_counter()
    return {
        "train": len(examples.train), "held_out": len(examples.held_out), "fingerprint": found.fingerprint[:12],
        "tokens": tokens, "messages": len(examples.messages), "read": read - start, "render": rendered - read,
        "plan": planned - rendered, "start": planned - start, "epoch": done - planned, "before_mb": before,
        "peak_mb": _peak(),
    }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def measure(path: Path, cache: Path) -> dict[str, Any]:
    """`prepare` in a fresh process."""
    command = [sys.executable, __file__, "--prepare", str(path)]
    done = subprocess.run(command, env={**os.environ, "PREFTUNE_CACHE": str(cache)}, stdout=subprocess.PIPE, check=True)
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def compare(small: int, large: int, folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """Both numbers of pairs, cold and warm."""
    found = {}
    for count in (small, large):
        path = folder / f"{count}.jsonl"
        generate(path, count)
        for state in ("cold", "warm"):
            found[count, state] = measure(path, folder / f"cache-{count}")
    return found


def main() -> None:
    """Measure, print, check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, nargs=2, default=[SMALL, LARGE], help="the two numbers of pairs")
    parser.add_argument("--json", action="store_true", help="print the figures as lines of JSON, and check nothing")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        print(json.dumps(prepare(given.prepare)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = compare(*given.pairs, Path(folder))
    if given.json:
        for (count, state), values in found.items():
            print(json.dumps({"pairs": count, "cache": state, **values}))
        return
    print("| pairs | cache | read, s | tokenise, s | plan, s | start, s | an epoch's examples, s | peak memory, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for (count, state), values in found.items():
        seconds = " | ".join(f"{values[key]:.1f}" for key in ("read", "render", "plan", "start", "epoch"))
        print(f"| {count:,} | {state} | {seconds} | {values['peak_mb']:.0f} |")
    small, large = given.pairs
    more = max(found[large, state]["peak_mb"] - found[small, state]["peak_mb"] for state in ("cold", "warm"))
    warm = found[large, "warm"]["start"]
    print(f"\n{large:,} pairs keep {more:.0f} MB more than {small:,} (at most {MOST_MORE_MB:.0f});")
    print(f"a warm start takes {warm:.1f} s (at most {MOST_WARM_SECONDS:.0f})")
    sys.exit(0 if more <= MOST_MORE_MB and warm <= MOST_WARM_SECONDS else 1)


if __name__ == "__main__":
    main()

"""Memory and time of `preftune validate` for few pairs and for many: each in a process of its own.

    python benchmarks/doctor.py
    python benchmarks/doctor.py --pairs 20000 1000000

Generates pairs as benchmarks/million.py does, of which one in a hundred repeats an earlier one with a word changed, and
one in a hundred says the opposite of an earlier one. Exits with 1 unless memory grows by at most MOST_BYTES a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import million

FEW, MANY = 20_000, 200_000
MOST_BYTES = 300  # a pair
PEAK = (
    "import resource, runpy, sys; sys.argv = ['preftune', *sys.argv[1:]]\n"
    "try:\n    runpy.run_module('preftune', run_name='__main__')\n"
    "finally:\n"
    "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
    "    print(used.ru_maxrss, used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    "    print(sorted({'torch', 'transformers'} & {*sys.modules}), file=sys.stderr)\n"
)


def generate(path: Path, count: int) -> None:
    """Pairs with planted near duplicates and contradictions."""
    plain = path.with_suffix(".plain")
    million.generate(plain, count)
    with plain.open(encoding="utf-8") as given, path.open("w", encoding="utf-8") as file:
        earlier: dict[str, str] = {}
        for number, line in enumerate(given):
            row = json.loads(line)
            if number % 100 == 1:
                row = {**earlier, "chosen": earlier["chosen"] + " indeed"}
            elif number % 100 == 2:
                row = {**earlier, "chosen": earlier["rejected"], "rejected": earlier["chosen"]}
            elif number % 100 == 0:
                earlier = row
            file.write(json.dumps(row) + "\n")
    plain.unlink()


def measure(path: Path, cache: Path, *words: str) -> dict[str, Any]:
    """`preftune validate --json` in a fresh process."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, "validate", str(path), "--json", *words],
        env={**os.environ, "PREFTUNE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1, 2) or not done.stdout:
        raise RuntimeError(done.stderr)
    used, heavy = done.stderr.splitlines()[-2:]
    peak, cpu = used.split()
    found = json.loads(done.stdout)
    return {
        "rows": found["rows"],
        "cpu_seconds": float(cpu),
        "seconds": time.perf_counter() - start,
        "peak_mb": int(peak) / (2**20 if sys.platform == "darwin" else 1024),
        "heavy": heavy,
        "found": {finding["name"]: finding["count"] for finding in found["findings"]},
    }


def main() -> None:
    """Measure, print, check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, nargs=2, default=[FEW, MANY], help="the two numbers of pairs")
    parser.add_argument("--json", action="store_true", help="print the figures as lines of JSON, and check nothing")
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.generate:
        generate(given.generate, given.pairs[0])
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in given.pairs:
            path = Path(folder) / f"{count}.jsonl"
            # in a process of its own: what this one has used counts as the peak of those that it starts
            subprocess.run([sys.executable, __file__, "--generate", str(path), "--pairs", str(count), "0"], check=True)
            found.append(measure(path, Path(folder) / "cache"))
            path.unlink()
    if given.json:
        print("\n".join(map(json.dumps, found)))
        return
    print("| pairs | seconds | of which computing | peak memory, MB | found |\n|---|---|---|---|---|")
    for values in found:
        said = ", ".join(f"{name} {count:,}" for name, count in values["found"].items())
        times = f"{values['seconds']:.0f} | {values['cpu_seconds']:.0f}"
        print(f"| {values['rows']:,} | {times} | {values['peak_mb']:.0f} | {said} |")
    more = (found[1]["peak_mb"] - found[0]["peak_mb"]) * 2**20 / (found[1]["rows"] - found[0]["rows"])
    print(f"\neach pair takes {more:.0f} bytes (at most {MOST_BYTES})")
    sys.exit(0 if more <= MOST_BYTES else 1)


if __name__ == "__main__":
    main()

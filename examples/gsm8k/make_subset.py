"""Writes the shipped subset of GSM8K from the full files: `python make_subset.py --full DIR`.

DIR holds example_model_solutions.jsonl and train.jsonl of github.com/openai/grade-school-math
(grade_school_math/data). Rows are copied byte for byte, so the subset reads like the full files. Which rows is a
function of each question's text alone; the same files give the same bytes.
"""

import argparse
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
SOLVED_QUESTIONS = 400
WORKED_ANSWERS = 1000


def both_right_and_wrong(row: dict[str, Any]) -> bool:
    """True if some of the row's solutions are right and others wrong: the question gives at least one pair."""
    return len({value["is_correct"] for value in row.values() if isinstance(value, dict)}) == 2


def draw(source: Path, count: int, wanted: Callable[[dict[str, Any]], bool]) -> list[str]:
    """`count` lines of a jsonl file, drawn by the hash of their question, in the file's order."""
    lines = [line for line in source.read_text(encoding="utf-8").splitlines(keepends=True) if wanted(json.loads(line))]
    ranked = sorted(lines, key=lambda line: hashlib.sha256(f"subset {json.loads(line)['question']}".encode()).digest())
    kept = set(ranked[:count])
    return [line for line in lines if line in kept]


def write(lines: list[str], out: Path) -> None:
    """Write gzip without a time stamp or a name in its header, so that equal content is equal bytes."""
    with out.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed:
        packed.write("".join(lines).encode())
    print(f"{out.name}: {len(lines)} rows, {out.stat().st_size:,} bytes")


def main() -> None:
    """Read the arguments, write three files into data/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=Path, required=True, help="folder with the full files and their LICENSE")
    parser.add_argument("--out", type=Path, default=DATA, help="where to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    solutions = draw(args.full / "example_model_solutions.jsonl", SOLVED_QUESTIONS, both_right_and_wrong)
    write(solutions, args.out / "example_model_solutions.jsonl.gz")
    write(draw(args.full / "train.jsonl", WORKED_ANSWERS, lambda row: True), args.out / "train.jsonl.gz")
    shutil.copyfile(args.full / "LICENSE", args.out / "LICENSE")


if __name__ == "__main__":
    main()

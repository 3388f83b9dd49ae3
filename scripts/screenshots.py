"""Make the pictures of reports in README.md and docs/: real runs on the built-in world, as a browser shows them.

make screenshots
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from screenshot import screenshot

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LARGEST = 300_000  # bytes of a picture
RUNS = ("demo", "beta-0.1", "beta-1")
DEMO = "runs/demo"
SWEEP = (  # that of docs/sweep.md
    *("--model", "sandbox", "--data", "sandbox", "objective.name=dpo,ipo,simpo", "objective.beta=0.1,0.3,1"),
    *("objective.tau=0.1,0.5", "optim.learning_rate=1e-3", "batch.size=64", "evaluate.samples=0"),
    *("evaluate.max_new_tokens=40", "doctor.answers=0", "--kl-budget", "4", "--prompts", "40", "--samples", "16"),
)


def main() -> int:
    """Run the demo and two others, evaluate them where that is possible, and take the pictures."""
    folder = Path(tempfile.mkdtemp(prefix="preftune-screenshots-"))
    try:
        make_runs(folder)
        page, compared = folder / DEMO / "report.html", folder / "comparison.html"
        pictures = [("demo.png", page, 1200, 1240, {}), ("report-dark.png", page, 1200, 900, {"dark": True})]
        pictures.append(("report-phone.png", page, 390, 844, {}))
        pictures.append(("comparison.png", compared, 1200, 1240, {}))
        if (folder / DEMO / "evaluation.json").exists():
            options = {"at": "#held-out", "clicks": ["#tab-calibration"]}
            pictures.append(("report-evaluation.png", page, 1200, 620, options))
        pictures.append(("report-samples.png", page, 1200, 760, {"at": "#samples"}))
        if (folder / DEMO / "credit.jsonl").exists():
            pictures.append(("report-credit.png", page, 1200, 760, {"at": "#credit", "dark": True}))
        pictures.append(("sweep.png", folder / "runs/sweep/sweep.html", 1200, 1000, {}))
        for name, source, width, height, options in pictures:
            problem = screenshot(source, IMAGES / name, width, height, **options)
            size = 0 if problem else (IMAGES / name).stat().st_size
            if problem or size > LARGEST:
                print(problem or f"{name} has {size:,} bytes, more than {LARGEST:,}: make it smaller", file=sys.stderr)
                return 2
            print(f"{IMAGES / name}: {size:,} bytes")
    finally:
        shutil.rmtree(folder)
    return 0


def make_runs(folder: Path) -> None:
    """The demo, and the same with less and with more hold on the reference."""
    command(folder, "demo", "--out", DEMO, "-q")
    for name in RUNS[1:]:
        beta = name.removeprefix("beta-")
        command(folder, "train", f"{DEMO}/config.yaml", f"objective.beta={beta}", f"output.path=runs/{name}", "-q")
    for name in RUNS:
        command(folder, "evaluate", f"runs/{name}", needed=False)
    command(folder, "inspect", DEMO, needed=False)
    command(folder, "report", DEMO)
    command(folder, "report", *(f"runs/{name}" for name in RUNS), "--out", "comparison.html")
    command(folder, "sweep", *SWEEP, "--out", "runs/sweep", "-q")


def command(folder: Path, *words: str, needed: bool = True) -> None:
    """Run preftune in a folder; what is not needed may fail, and is said to."""
    done = subprocess.run([sys.executable, "-m", "preftune", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"preftune {' '.join(words)}: {said}", file=sys.stderr)
        if needed:
            sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())

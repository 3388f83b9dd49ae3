"""Where nothing can be written, or not enough."""

from __future__ import annotations

from pathlib import Path

from bad_input.case import BadInput, both, file, good_rows, lines, nothing, pairs, run

TRAIN = "preftune train -m sandbox -d d.jsonl"
QUICK = "-q train.max_steps=1 evaluate.samples=0"
BEGUN = ("r", "r/config.yaml", "r/manifest.json", "r/data_doctor.json", "r/metrics.jsonl", "r/credit.jsonl")
TASK = '''
from preftune.data.builders import Question, Task


class Odd(Task):
    """An answer is right if its length is odd."""

    def questions(self, source):
        return [Question(str(i), "A film about two brothers", "odd") for i in range(8)]

    def prompt(self, question):
        return question.text

    def instruction(self, question):
        return question.text

    def check(self, question, response):
        return len(response) % 2 == 1
'''


def finished_run(folder: Path) -> None:
    pairs(folder)
    done = run(f"{TRAIN} -o r {QUICK}", folder)
    assert done.code == 0, done.err


def stopped_run(folder: Path) -> None:
    finished_run(folder)
    (folder / "r" / "summary.json").unlink()


def few(folder: Path) -> None:
    (folder / "d.jsonl").write_bytes(lines(good_rows()[:8]))


def another_run(folder: Path) -> None:
    """Of the same data, so that the cache has them already."""
    few(folder)
    done = run(f"{TRAIN} -o other {QUICK} data.held_out=0.0", folder)
    assert done.code == 0, done.err


DISKS = (
    BadInput("a finished run is there", finished_run, f"{TRAIN} -o r", ("output.path r exists and is not empty",)),
    BadInput(
        "a stopped run is there", stopped_run, f"{TRAIN} -o r", ("output.path r holds a run that did not finish",)
    ),
    BadInput("the run folder is a file", both(pairs, file("r", "mine")), f"{TRAIN} -o r", ("output.path r exists",)),
    BadInput(
        "a file is to be replaced as a run",
        both(pairs, file("r", "mine")),
        f"{TRAIN} -o r output.overwrite=true",
        ("output.path r is no run folder, so it is not overwritten",),
    ),
    BadInput(
        "a run with a file of one's own is to be replaced",
        both(finished_run, file("r/notes.txt", "mine")),
        f"{TRAIN} -o r output.overwrite=true",
        ("it holds notes.txt, which no run wrote",),
    ),
    BadInput(
        "the run folder would hold the data",
        lambda d: [(d / "r").mkdir(), pairs(d / "r"), (d / "r" / "config.yaml").touch()],
        "preftune train -m sandbox -d r/d.jsonl -o r output.overwrite=true",
        ("r",),
    ),
    BadInput(
        "a folder below a file", both(pairs, file("f", "")), f"{TRAIN} -o f/r", ("cannot write to output.path f/r",)
    ),
    BadInput(
        "a link to itself",
        lambda d: [pairs(d), (d / "r").symlink_to("r")],
        f"{TRAIN} -o r",
        ("output.path r",),
    ),
    BadInput("a name of 300 characters", pairs, f"{TRAIN} -o {'x' * 300}", ("output.path", "File name too long")),
    BadInput(
        "a full disk under the cache",
        lambda d: (d / "d.jsonl").write_bytes(lines(good_rows()[:12])),
        f"{TRAIN} -o r {QUICK}",
        ("cannot write to ", "make room there", "PREFTUNE_CACHE"),
        largest=100,
    ),
    BadInput(
        "a full disk as the run begins",
        another_run,
        f"{TRAIN} -o r {QUICK} data.held_out=0.0",
        ("cannot write r/", "make room"),
        largest=500,
    ),
    BadInput(
        "a full disk as the reference's log-probs are stored",
        another_run,
        f"{TRAIN} -o r {QUICK} data.held_out=0.0 reference.kind=stored",
        ("cannot keep the reference's log-probs in", "File too large", "reference.folder"),
        largest=300,
    ),
    BadInput(
        "a full disk as metrics are written",
        another_run,
        f"{TRAIN} -o r -q train.max_steps=40 train.log_every=1 evaluate.samples=0 data.held_out=0.0",
        ("cannot write r/metrics.jsonl", "make room"),
        leaves=BEGUN,
        largest=9000,
    ),
    BadInput(
        "a full disk as the model is saved",
        pairs,
        f"{TRAIN} -o r {QUICK}",
        ("cannot write r/model", "make room"),
        leaves=BEGUN,
        largest=100_000,
    ),
    BadInput(
        "a full disk as pairs are written",
        file("tasks.py", TASK),
        "preftune pairs tasks:Odd -m sandbox -d q.jsonl -o p.jsonl -n 8 --max-new-tokens 40 -q",
        ("p.jsonl cannot be written (File too large)",),
        largest=100,
    ),
    BadInput(
        "pairs into a folder",
        lambda d: [(d / "tasks.py").write_text(TASK), (d / "p.jsonl").mkdir()],
        "preftune pairs tasks:Odd -m sandbox -d q.jsonl -o p.jsonl",
        ("p.jsonl is a folder, expected the name of a file to write",),
    ),
    BadInput("a config is there already", file("c.yaml", "mine"), "preftune init c.yaml", ("c.yaml exists already",)),
    BadInput("a run that is not there is to go on", nothing, "preftune train --resume r", ("r",)),
    BadInput("a folder that is no run is to go on", lambda d: (d / "r").mkdir(), "preftune train --resume r", ("r",)),
    BadInput("a report of no run", lambda d: (d / "r").mkdir(), "preftune report r", ("r is no run folder",)),
    BadInput("a config into no folder", nothing, "preftune init no/such/c.yaml", ("cannot write no/such/c.yaml",)),
    BadInput(
        "a full disk as a config is written", nothing, "preftune init c.yaml", ("cannot write c.yaml",), largest=9
    ),
    BadInput("a full disk as a report is written", finished_run, "preftune report r", ("r/report.html",), largest=999),
    BadInput("a study into a file", file("f", ""), "preftune study ipo-bandits --quick -o f", ("f",)),
    BadInput("a demo into a file", file("f", ""), "preftune demo -o f -q", ("output.path f exists",)),
    BadInput("a demo below a file", file("f", ""), "preftune demo -o f/r -q", ("cannot write to output.path f/r",)),
)

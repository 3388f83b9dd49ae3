"""Runs and models that cannot be evaluated, exported or talked to."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from bad_input.case import BadInput, Make, both, file, good_rows, lines, nothing, pairs, run
from bad_input.models import model, other_tokenizer, weights


@cache
def trained(words: str) -> Path:
    """A folder with good data, and a run on it in r."""
    folder = Path(tempfile.mkdtemp(prefix="preftune-bad-runs-"))
    pairs(folder)
    settings = "train.max_steps=1 evaluate.samples=0 data.held_out=0.25"
    said = run(f"preftune train -m sandbox -d d.jsonl -o r -q {settings} {words}", folder)
    assert said.code == 0, said
    (folder / "d.jsonl").unlink()  # a run looks for its data in the folder where it began, too
    return folder


def a_run(*changes: Callable[[Path], Any], words: str = "") -> Make:
    """A run in r, on which something is changed then."""

    def make(folder: Path) -> None:
        shutil.copytree(trained(words), folder, dirs_exist_ok=True)
        pairs(folder)
        for change in changes:
            change(folder)

    return make


def without(name: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def labels(folder: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in good_rows()]
    (folder / "l.jsonl").write_bytes(lines(rows))


def ruined(folder: Path) -> None:
    weights(lambda w: w["model.norm.weight"].fill_(float("nan")))(folder / "r" / "model")


EVALUATE = "preftune evaluate r -q --prompts 0"

RUNS = (
    BadInput("no such run", nothing, "preftune evaluate ./r", ("./r does not exist",)),
    BadInput("a folder that is no run", lambda d: (d / "r").mkdir(), EVALUATE, ("r holds neither a run nor a model",)),
    BadInput(
        "a run that did not finish",
        a_run(without("r/summary.json")),
        EVALUATE,
        ("the run in r has not finished", "preftune train --resume r"),
    ),
    BadInput("a run without its model", a_run(without("r/model")), EVALUATE, ("the run in r has no folder model",)),
    BadInput("a run whose weights are ruined", a_run(ruined), EVALUATE, ("model r/model holds nan",)),
    BadInput(
        "a run that held nothing out",
        a_run(words="data.held_out=0"),
        EVALUATE,
        ("r held nothing out: name data to evaluate on with --data",),
    ),
    BadInput(
        "data that has changed since the run",
        a_run(lambda d: (d / "d.jsonl").write_bytes(lines(good_rows(20)))),
        EVALUATE,
        ("the data has changed since r began",),
    ),
    BadInput("data that is gone", a_run(without("d.jsonl")), EVALUATE, ("d.jsonl does not exist",)),
    BadInput(
        "a run whose config is no config",
        a_run(lambda d: (d / "r" / "config.yaml").write_text("model: [")),
        EVALUATE,
        ("config.yaml",),
    ),
    BadInput(
        "a broken manifest",
        a_run(lambda d: (d / "r" / "manifest.json").write_text("{")),
        EVALUATE,
        ("r/manifest.json cannot be read",),
    ),
    BadInput(
        "data of another kind",
        a_run(labels),
        f"{EVALUATE} --data l.jsonl",
        ("r was trained with objective dpo, which scores pairs", "but the data has judged responses"),
    ),
    BadInput(
        "a model without data",
        nothing,
        "preftune evaluate sandbox",
        ("sandbox is no run folder, and a model held nothing out",),
    ),
    BadInput(
        "a reference of another vocabulary",
        both(a_run(), model(other_tokenizer)),
        f"{EVALUATE} --against m",
        ("r and m have different vocabularies",),
    ),
    BadInput(
        "an adapter whose file is cut",
        a_run(lambda d: (d / "r/model/adapter_model.safetensors").write_bytes(b"\xff" * 99), words="model.lora={}"),
        EVALUATE,
        ("the adapter in r/model cannot be read",),
    ),
    BadInput("a folder to write to that is a file", a_run(), f"{EVALUATE} -o d.jsonl", ("--out d.jsonl is a file",)),
    BadInput("scores of an unknown ending", a_run(), "preftune score r -o s.csv", ("s.csv has an unknown ending for",)),
    BadInput(
        "scores for a folder that is not there", a_run(), "preftune score r -o x/s.jsonl", ("cannot write x/s.jsonl",)
    ),
    BadInput("exporting a model", nothing, "preftune export sandbox out", ("sandbox is no run",)),
    BadInput(
        "exporting to a folder that is taken",
        a_run(),
        "preftune export r r",
        ("r exists already: name another folder",),
    ),
    BadInput("talking to data", file("d.jsonl", "{}"), "preftune chat d.jsonl", ("d.jsonl is a file",)),
)

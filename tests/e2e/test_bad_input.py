"""Bad input ends in one sentence and exit code 2, and leaves nothing behind; docs/reliability.md quotes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from bad_input import ALL, BadInput, Said, carry_out, page, snapshot
from bad_input.case import good_rows, pairs, run
from bad_input.models import TRAP

from preftune import train
from preftune.cache import cache_folder
from preftune.errors import PreftuneError

SHORT: Any = {"train": {"max_steps": 1}, "evaluate": {"samples": 0}, "held_out": []}
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
LONGEST = 700  # characters of a sentence that somebody will read


@dataclass(frozen=True)
class Outcome:
    """What a case came to: what was said, and what was in the folder before and after."""

    said: Said
    before: dict[str, str]
    after: dict[str, str]


Meet = Callable[[BadInput], Outcome]


@pytest.fixture(scope="module")
def meet(tmp_path_factory: pytest.TempPathFactory) -> Meet:
    """Runs a case, once for all tests of this file."""
    met: dict[str, Outcome] = {}

    def once(case: BadInput) -> Outcome:
        key = f"{case.name} {case.command}"
        if key not in met:
            folder = tmp_path_factory.mktemp("case")
            case.make(folder)
            before = snapshot(folder)
            said = run(case.command, folder, case.largest)
            met[key] = Outcome(said, before, snapshot(folder))
            shutil.rmtree(folder)
        return met[key]

    return once


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_bad_input_is_one_sentence_and_nothing_half_written(
    case: BadInput, meet: Meet, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = meet(case)
    said = outcome.said

    assert said.code == case.code, said
    for part in case.says:
        assert part in said.err
    if case.code:
        assert said.out == ""
        assert len(said.errors) == 1, said.err
        assert said.errors[0].startswith("error: ")
        assert len(said.errors[0]) < LONGEST
    else:
        assert said.errors == []
    assert capfd.readouterr() == ("", ""), "libraries below have nothing to say"
    assert {name: outcome.after.get(name) for name in outcome.before} == outcome.before
    strays = [name for name in outcome.after if name not in outcome.before]
    assert [name for name in strays if not any(fnmatch(name, allowed) for allowed in case.leaves)] == []
    assert TRAP not in outcome.after, "what was pickled was run"
    assert not list(cache_folder("data").rglob("making-*")), "half an entry is in the cache"


def test_the_table_in_the_docs_is_what_is_said(meet: Meet) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page.replaced(text, lambda case: meet(case).said), "out of date; run: make docs-reliability"


def test_the_makefile_writes_the_table() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^docs-reliability: .*\n\t.* scripts/reliability\.py$", makefile, re.M)


def test_names_are_given_once() -> None:
    keys = [(case.name, case.command) for case in ALL]
    assert len(keys) == len(set(keys))


# --- what depends on who runs the tests -------------------------------------------------------------------------------

WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]  # root, whom permissions bind as anybody else


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    pairs(tmp_path)
    tmp_path.chmod(0o555)
    line = [sys.executable, "-W", "error", "-m", "preftune", "train", "-m", "sandbox", "-d", "d.jsonl", "-o", "r"]
    done = subprocess.run(
        [*(WITHOUT_RIGHTS if os.geteuid() == 0 else []), *line],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    tmp_path.chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: cannot write to output.path r: {tmp_path} is no folder that may be written to\n"
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


@pytest.fixture(params=[600])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of so many kB. The built-in model takes 422."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system of its own")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_while_it_trains(small_disk: Path) -> None:
    """Somebody else's file takes the room that there was."""

    def fill(lm: object) -> dict[str, float]:
        (small_disk / "other").write_bytes(bytes(300_000))
        return {}

    with pytest.raises(PreftuneError, match=r"cannot write .*/r/model \(No space left on device\): make room there"):
        train("sandbox", good_rows(), output=small_disk / "r", quiet=True, probe=fill, **SHORT)
    files = {"config.yaml", "data_doctor.json", "manifest.json", "metrics.jsonl", "data", "data/train.jsonl"}
    assert set(snapshot(small_disk / "r")) == files
    lines = (small_disk / "r" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["train"]


@pytest.mark.parametrize("small_disk", [400], indirect=True)
def test_a_disk_without_room_for_the_model_is_seen_before_training(small_disk: Path) -> None:
    with pytest.raises(PreftuneError, match=r"has room for 0\.4 MB, but the model will take 0\.4 MB: make room"):
        train("sandbox", good_rows(), output=small_disk / "r", quiet=True, **SHORT)
    assert snapshot(small_disk) == {}


def test_room_is_needed_for_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model with adapters, they alone; with checkpoints, those that are kept and the one being written."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    saves: Any = {"output": {"save_every": 1}}  # three at once, each with the weights that train and their moments
    with pytest.raises(PreftuneError, match=r"room for 0\.3 MB, but the model and 3 checkpoints will take 5\.5 MB"):
        train("sandbox", good_rows(), output=tmp_path / "r", quiet=True, **SHORT, config=saves)
    lora: Any = {"model": {"lora": {"r": 1}}}
    assert train("sandbox", good_rows(), output=tmp_path / "r", quiet=True, **SHORT, config=lora).summary["steps"] == 1


def test_metrics_on_a_full_disk_end_with_a_whole_line(tmp_path: Path) -> None:
    (case,) = (case for case in ALL if case.name == "a full disk as metrics are written")
    carry_out(case, tmp_path)
    text = (tmp_path / "r" / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    assert len([json.loads(line) for line in text.splitlines()]) > 3

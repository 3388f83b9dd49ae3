from __future__ import annotations

import json
import math

import numpy as np
import pytest

from preftune.errors import PreftuneError
from preftune.training.run_folder import RunFolder, to_json


def test_a_new_folder_is_made_with_all_above_it(tmp_path):
    folder = RunFolder.create(tmp_path / "runs" / "first")
    assert folder.path.is_dir()
    assert not any(folder.path.iterdir())


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite, reason in ((False, "exists and is not empty"), (True, "is no run folder, so it is not overwritten")):
        with pytest.raises(PreftuneError, match=reason):
            RunFolder.create(tmp_path, overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_earlier_run_is_replaced_when_asked_for(tmp_path):
    RunFolder.create(tmp_path / "run").write_config("seed: 0")
    RunFolder(tmp_path / "run").append_metrics({"step": 1})
    with pytest.raises(PreftuneError, match=r"output\.overwrite=true"):
        RunFolder.create(tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 0\n"
    folder = RunFolder.create(tmp_path / "run", overwrite=True)
    assert not any((tmp_path / "run").iterdir())
    folder.keep()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_run_that_never_began_would_have_replaced_is_put_back(tmp_path):
    RunFolder.create(tmp_path / "run").write_config("seed: 0")
    folder = RunFolder.create(tmp_path / "run", overwrite=True)
    folder.write_config("seed: 1")
    folder.discard()
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def killed_while_replacing(tmp_path, process):
    """What a process leaves that is killed between taking one run away and beginning the next."""
    RunFolder.create(tmp_path / "run").write_config("seed: 0")
    (tmp_path / "run").rename(tmp_path / f".run.replaced-{process}")
    (tmp_path / "run").mkdir()


def test_a_run_that_was_about_to_be_replaced_when_the_process_was_killed_is_put_back(tmp_path):
    killed_while_replacing(tmp_path, 2**22 + 1)
    with pytest.raises(PreftuneError, match="holds a run that did not finish"):
        RunFolder.create(tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    RunFolder.create(tmp_path / "run", overwrite=True).discard()
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 0\n"


def test_a_run_that_another_process_is_replacing_is_left_alone(tmp_path):
    killed_while_replacing(tmp_path, 1)
    RunFolder.create(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.replaced-1", "run"]


def test_a_run_that_has_been_replaced_goes(tmp_path):
    killed_while_replacing(tmp_path, 2**22 + 1)
    RunFolder(tmp_path / "run").write_config("seed: 1")
    RunFolder.create(tmp_path / "run", overwrite=True).keep()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_folders_that_were_made_for_a_run_go_with_it(tmp_path):
    RunFolder.create(tmp_path / "new" / "deep" / "run").discard()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_no_run_wrote_keeps_a_folder_from_being_replaced(tmp_path):
    RunFolder.create(tmp_path / "run").write_config("seed: 0")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(PreftuneError, match=r"it holds notes\.txt, which no run wrote"):
        RunFolder.create(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(PreftuneError, match="run"):
        RunFolder.create(tmp_path / "run")
    with pytest.raises(PreftuneError, match="cannot write to"):
        RunFolder.create(tmp_path / "run" / "below")


def test_metrics_and_samples_are_lines_of_json_in_order(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.append_metrics({"step": 1, "loss": 0.5})
    folder.append_metrics({"step": 2, "loss": math.nan, "values": [math.inf, 1.0]})
    folder.append_samples([{"response": "ä\n漢"}, {"response": ""}])
    lines = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None, "values": [None, 1.0]},
    ]
    samples = (folder.path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["response"] for line in samples] == ["ä\n漢", ""]


def test_the_manifest_says_how_the_run_came_about(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_manifest(seed=3, records={"train": 2})
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["records"] == {"train": 2}
    assert {"preftune", "torch", "transformers"} <= manifest["versions"].keys()
    assert {"started", "command", "python", "platform"} <= manifest.keys()


def test_a_folder_is_replaced_whole(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    for round in ("first", "second"):
        made = run.path / ".made"
        made.mkdir()
        (made / f"{round}.txt").write_text(round)
        run.replace_folder("checkpoints/step-1", made)
    target = run.path / "checkpoints" / "step-1"
    assert [path.name for path in target.iterdir()] == ["second.txt"]
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints"]


def test_nothing_half_written_is_left(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_summary({"loss": 1.0})
    with pytest.raises(TypeError):
        folder.write_summary({"loss": object()})
    assert json.loads((folder.path / "summary.json").read_text()) == {"loss": 1.0}
    assert sorted(path.name for path in folder.path.iterdir()) == ["summary.json"]


def test_json_is_readable_by_every_reader():
    value = {1: (math.nan, -math.inf, np.float64(2.0)), "deep": {"x": [math.nan]}}
    assert json.loads(to_json(value)) == {"1": [None, None, 2.0], "deep": {"x": [None]}}

from __future__ import annotations

import json

import pytest

from preftune.errors import PreftuneError
from preftune.report.reading import read


def test_a_whole_run_is_read(write_run):
    folder = write_run()
    run = read(str(folder))
    assert run.path == folder
    assert run.config["objective"] == {"name": "dpo", "beta": 0.1}
    assert run.config_text == (folder / "config.yaml").read_text()
    assert run.manifest["device"] == "cpu"
    assert [row["step"] for row in run.history] == [10, 20, 30, 0, 30]
    assert [sample["when"] for sample in run.samples] == ["start", "start", "end", "end"]
    assert run.summary["after"]["kl"] == 1.35


def test_a_run_that_has_written_its_config_only_is_read(write_run):
    run = read(write_run(manifest=None, metrics=None, samples=None, summary=None))
    assert (run.manifest, run.history, run.samples, run.summary) == ({}, [], [], {})


@pytest.mark.parametrize("cut", [1, 5, 9, 14])
def test_a_last_line_that_a_crash_cut_is_skipped(write_run, cut):
    whole = b'{"kind": "train", "step": 1}\n'
    last = '{"note": "€"}'.encode()
    assert len(last) == 15
    assert read(write_run(metrics=whole + last[:cut])).history == [{"kind": "train", "step": 1}]


def test_a_last_line_without_newline_counts_if_it_is_whole(write_run):
    assert read(write_run(metrics=b'{"step": 1}\n{"step": 2}')).history == [{"step": 1}, {"step": 2}]


def test_line_separators_inside_texts_do_not_split_lines(write_run):
    sample = {"when": "start", "prompt": "a\u2028b\x85c\u2029d", "response": "\x0b\x0c"}
    lines = (json.dumps(sample, ensure_ascii=False) + "\n").encode()
    assert read(write_run(samples=lines)).samples == [sample]


def test_empty_lines_are_skipped(write_run):
    assert read(write_run(metrics=b'\n{"step": 1}\r\n \n')).history == [{"step": 1}]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config": None}, ["no run folder", "config.yaml"]),
        ({"config": "- a\n- b\n"}, ["config.yaml", "mapping"]),
        ({"config": "a: [1\n"}, ["config.yaml", "YAML"]),
        ({"metrics": b'{"step": 1}\n{"st\n{"step": 3}\n'}, ["metrics.jsonl line 2", "no JSON"]),
        ({"metrics": b'[1]\n{"step": 3}\n'}, ["metrics.jsonl line 1", "a list", "object"]),
        ({"samples": b"\xff\xfe\n{}\n"}, ["samples.jsonl line 1", "no JSON"]),
        ({"samples": b"[" * 100_000 + b"\n"}, ["samples.jsonl line 1", "no JSON"]),
        ({"summary": [1, 2]}, ["summary.json", "a list", "object"]),
    ],
)
def test_what_is_no_run_is_refused_in_one_sentence(write_run, files, words):
    folder = write_run(**files)
    with pytest.raises(PreftuneError) as caught:
        read(folder)
    message = str(caught.value)
    assert all(word in message for word in [*words, str(folder)]), message
    assert "\n" not in message


def test_a_broken_json_file_is_named(write_run):
    folder = write_run()
    (folder / "summary.json").write_text('{"steps": 3')
    with pytest.raises(PreftuneError, match=r"summary\.json is no JSON"):
        read(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PreftuneError, match="nowhere is no folder"):
        read(tmp_path / "nowhere")

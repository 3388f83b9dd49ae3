"""`preftune report` by its front door."""

from __future__ import annotations

import subprocess
import sys

import pytest


def report(*words, cwd=None, path=None):
    environment = None if path is None else {"PATH": str(path), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "preftune", "report", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100, env=environment)


def test_runs_are_compared_on_a_page(write_run, tmp_path):
    done = report(write_run("one"), write_run("two"), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "comparison.html\n", "")
    assert "Comparison of one and two" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none"], "none is no folder"),
        (["one", "--out", "x.html"], "--out names the page of a comparison"),
        (["one", "--watch", "--png"], "--watch serves one run"),
        (["one", "two", "--watch"], "--watch serves one run"),
        (["one", "--port", "80"], "--port has no effect without --watch"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(write_run, tmp_path, words, said):
    write_run("one")
    done = report(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1


def test_figures_need_a_browser(write_run, tmp_path):
    write_run("one")
    done = report("--png", "one", cwd=tmp_path, path=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: no browser was found to draw the figures")
    assert not (tmp_path / "one" / "figures").exists()


def test_a_report_does_not_wait_for_torch(write_run):
    code = "import sys, preftune.report.html, preftune.report.comparison; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "False\n"

from __future__ import annotations

import struct
from xml.etree import ElementTree

import pytest

from preftune.errors import PreftuneError
from preftune.report import browser, pictures
from preftune.report.browser import dump


def test_every_figure_becomes_a_png_and_an_svg(chromium, write_run, tmp_path):
    written = pictures.write([write_run()], tmp_path / "new" / "figures")
    names = ("loss", "accuracy", "rewards", "margin", "histograms", "logps", "optimiser", "throughput")
    assert [path.name for path in written] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    for path in written:
        if path.suffix == ".png":
            content = path.read_bytes()
            height = 1120 if path.stem in ("histograms", "optimiser", "throughput") else 800
            assert struct.unpack(">II", content[16:24]) == (1520, height)
            assert 10_000 < len(content) < 300_000
        else:
            drawing = ElementTree.fromstring(path.read_text(encoding="utf-8"))
            assert drawing.attrib["width"] == "760"
            assert "training step" in drawing.itertext() or path.stem == "histograms"


def test_a_run_without_metrics_has_no_figures(write_run, tmp_path):
    with pytest.raises(PreftuneError, match="has no metrics yet"):
        pictures.write([write_run(metrics=None)], tmp_path)


def test_a_machine_without_browser_says_so_in_one_sentence(write_run, tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "NAMES", ())
    with pytest.raises(PreftuneError, match=r"no browser was found .* install Chromium"):
        pictures.write([write_run()], tmp_path)


def test_a_browser_that_fails_says_so(tmp_path, monkeypatch):
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho it broke >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(browser, "NAMES", (str(broken),))
    with pytest.raises(PreftuneError, match=r"drew nothing \(exit code 3, it broke\)"):
        dump("<p>x")

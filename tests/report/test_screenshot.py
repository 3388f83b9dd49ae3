from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "screenshot.py"


def screenshot(*arguments, path=None):
    environment = None if path is None else {"PATH": str(path)}
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment, timeout=100
    )


def test_a_missing_browser_is_told_in_one_sentence(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>x")
    done = screenshot(page, tmp_path / "out.png", path=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("No chromium was found on the PATH")
    assert done.stderr.count("\n") == 1


def test_a_missing_page_is_told_in_one_sentence(tmp_path):
    done = screenshot(tmp_path / "none.html", tmp_path / "out.png")
    assert done.returncode == 2
    assert "none.html is no file" in done.stderr


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_picture_has_the_size_asked_for(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>x")
    done = screenshot(page, tmp_path / "new" / "out.png", "--width", "390", "--height", "700")
    assert done.returncode == 0, done.stderr
    assert struct.unpack(">II", (tmp_path / "new" / "out.png").read_bytes()[16:24]) == (390, 700)

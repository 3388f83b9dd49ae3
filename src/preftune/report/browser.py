"""A browser of the machine's own, without a window: it draws what plotly.js cannot draw without one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from preftune.errors import PreftuneError

NAMES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FLAGS = (
    *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    "--no-sandbox",  # the page is ours, and containers often run as root
)
PATIENCE = 120.0  # seconds


def find() -> str | None:
    """The first browser of the Chromium family on this machine, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def dump(page: str, patience: float = PATIENCE) -> str:
    """The document that a page has become when its scripts have run.

    Args:
        page: HTML of ours that loads nothing.
        patience: seconds to wait for it.

    Raises:
        PreftuneError: if there is no browser, or it fails.
    """
    browser = find()
    if browser is None:
        raise PreftuneError(
            "no browser was found to draw the figures: install Chromium (apt-get install chromium) or Chrome, and see "
            "that it is on the PATH"
        )
    with tempfile.TemporaryDirectory(prefix="preftune-browser-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "page.html"
        file.write_text(page, encoding="utf-8")
        # virtual time: the document is dumped when nothing is left to do, however slow the machine is
        wait = [f"--user-data-dir={folder}/profile", f"--virtual-time-budget={patience * 1000:.0f}", "--dump-dom"]
        try:
            done = subprocess.run([browser, *FLAGS, *wait, file.as_uri()], capture_output=True, timeout=patience)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PreftuneError(f"{browser} drew nothing ({error}): see that it runs with --headless") from error
    text = done.stdout.decode("utf-8", errors="replace")
    if done.returncode or not text:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise PreftuneError(f"{browser} drew nothing (exit code {done.returncode}, {said[0]}): see that it runs")
    return text

"""Render an HTML page to a PNG with headless chromium, for the pictures in the README.

python scripts/screenshot.py runs/demo/report.html docs/report.png --width 1200 --height 2400
"""

from __future__ import annotations

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def main() -> int:
    """Parse the command line, render, and say where the picture is."""
    parser = argparse.ArgumentParser(description="Render an HTML page to a PNG with headless chromium.")
    parser.add_argument("page", type=Path, help="the HTML file")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--width", type=int, default=1200, help="width of the window in CSS pixels (default: 1200)")
    parser.add_argument("--height", type=int, default=2400, help="height of the window in CSS pixels (default: 2400)")
    given = parser.parse_args()
    problem = screenshot(given.page, given.picture, given.width, given.height)
    print(problem or f"wrote {given.picture}", file=sys.stderr if problem else sys.stdout)
    return 2 if problem else 0


def screenshot(page: Path, picture: Path, width: int, height: int) -> str | None:
    """Render a page; what went wrong as a sentence, or None.

    Args:
        page: the HTML file.
        picture: the PNG to write.
        width: of the window, in CSS pixels.
        height: of the window, in CSS pixels; the picture shows no more of the page.
    """
    if not page.is_file():
        return f"{page} is no file: give the HTML page to render."
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return "No chromium was found on the PATH: install it, for instance with `apt-get install chromium`."
    picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        # Chromium opens no window narrower than 500 pixels; a frame can have the width of a phone.
        frame = Path(profile) / "frame.html"
        style = f"border:0;display:block;width:{width}px;height:{height}px"
        source = html.escape(page.resolve().as_uri(), quote=True)
        frame.write_text(f'<body style="margin:0"><iframe style="{style}" src="{source}"></iframe>', encoding="utf-8")
        done = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",  # the page is ours, and containers often run as root
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                f"--screenshot={picture.resolve()}",
                frame.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    if done.returncode or not picture.is_file():
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return f"{browser} wrote no picture (exit code {done.returncode}): {last[0]}"
    return None


if __name__ == "__main__":
    sys.exit(main())

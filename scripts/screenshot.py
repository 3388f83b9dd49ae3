"""Render an HTML page to a PNG with headless chromium, driven by Playwright (pip install '.[dev]').

python scripts/screenshot.py runs/demo/report.html docs/report.png --width 1200 --height 2400 --dark
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--hide-scrollbars"),
    "--no-sandbox",  # the page is ours, and containers often run as root
)


def main() -> int:
    """Parse the command line, render, and say where the picture is."""
    parser = argparse.ArgumentParser(description="Render an HTML page to a PNG with headless chromium.")
    parser.add_argument("page", type=Path, help="the HTML file")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--width", type=int, default=1200, help="width of the window in CSS pixels (default: 1200)")
    parser.add_argument("--height", type=int, default=2400, help="height of the window in CSS pixels (default: 2400)")
    parser.add_argument("--dark", action="store_true", help="as a reader sees it who likes dark pages")
    parser.add_argument("--at", default="", help="CSS selector of what stands at the top (default: the page's own top)")
    parser.add_argument("--click", action="append", default=[], help="CSS selector to click first; may be repeated")
    given = parser.parse_args()
    problem = screenshot(
        given.page, given.picture, given.width, given.height, dark=given.dark, at=given.at, clicks=given.click
    )
    print(problem or f"wrote {given.picture}", file=sys.stderr if problem else sys.stdout)
    return 2 if problem else 0


def screenshot(
    page: Path,
    picture: Path,
    width: int,
    height: int,
    *,
    dark: bool = False,
    at: str = "",
    clicks: list[str] | tuple[str, ...] = (),
) -> str | None:
    """Render a page; what went wrong as a sentence, or None.

    Args:
        page: the HTML file.
        picture: the PNG to write.
        width: of the window, in CSS pixels.
        height: of the window, in CSS pixels; the picture shows no more of the page.
        dark: for a reader who likes dark pages.
        at: CSS selector of what stands at the top of the picture.
        clicks: CSS selectors to click first.
    """
    if not page.is_file():
        return f"{page} is no file: give the HTML page to render."
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return "No chromium was found on the PATH: install it, for instance with `apt-get install chromium`."
    from playwright.sync_api import Error, sync_playwright

    picture.parent.mkdir(parents=True, exist_ok=True)
    try:
        with sync_playwright() as playwright:
            started = playwright.chromium.launch(executable_path=browser, args=[*FLAGS])
            scheme = "dark" if dark else "light"
            shown = started.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            shown.goto(page.resolve().as_uri())
            for selector in clicks:
                shown.locator(selector).click()
            if at:
                shown.locator(at).first.evaluate("(one) => one.scrollIntoView()")
                shown.evaluate("document.activeElement?.blur()")
            shown.wait_for_timeout(1500)  # figures are drawn when they come into sight
            shown.screenshot(path=picture)
            started.close()
    except Error as error:
        return f"{browser} wrote no picture: {error.message.splitlines()[0]}"
    return None


if __name__ == "__main__":
    sys.exit(main())

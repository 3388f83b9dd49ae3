"""The figures of a report as PNG and SVG, for papers and pull requests: a browser draws them with the page's plotly."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

from markupsafe import Markup

from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.report import browser, comparison
from preftune.report.drawing import Panel
from preftune.report.html import environment, for_script, plotly, run_sections, text_of
from preftune.report.reading import read

WIDTH = 760  # in points; a PNG has twice as many pixels
DRAWN = re.compile(r'<pre id="drawn">(.*?)</pre>', re.DOTALL)


def write(run_dirs: Sequence[str | Path], folder: Path) -> list[Path]:
    """Write each figure of a run's report, or of a comparison of several runs, as NAME.png and NAME.svg.

    Args:
        run_dirs: run folders.
        folder: where to; made if it is not there.

    Returns:
        The files.

    Raises:
        PreftuneError: if a folder is no run, no browser is found, or the files cannot be written.
    """
    runs = [read(each) for each in run_dirs]
    panels = run_sections(runs[0])[1] if len(runs) == 1 else comparison.figures(runs)
    if not panels:
        raise PreftuneError(f"{runs[0].path} has no metrics yet, so there is no figure to write: train it first.")
    pictures = draw(panels)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in pictures.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise PreftuneError(
            f"cannot write the figures to {folder} ({error.strerror or error}): name another folder with --out"
        ) from error
    return [folder / name for name in pictures]


def draw(panels: Sequence[Panel]) -> dict[str, bytes]:
    """Panels as pictures, by file name: on white, to be read without the page around them.

    Raises:
        PreftuneError: if no browser is found, or it draws nothing.
    """
    sizes = {panel.key: [WIDTH, panel.height] for panel in panels}
    page = (
        environment()
        .get_template("pictures.html.jinja")
        .render(
            figures=for_script(panels),
            sizes=Markup(json.dumps(sizes)),
            plotly_js=Markup(plotly()),
            pictures_js=Markup(text_of("pictures.js")),
        )
    )
    found = DRAWN.search(browser.dump(page))
    urls: dict[str, str] = json.loads(found[1]) if found else {}
    if len(urls) != 2 * len(panels):
        raise PreftuneError("the browser drew only part of the figures: see that it runs with --headless")
    return {name: _content(url) for name, url in urls.items()}


def _content(url: str) -> bytes:
    """What a data URL holds."""
    kind, _, content = url.partition(",")
    return base64.b64decode(content) if kind.endswith(";base64") else unquote_to_bytes(content)

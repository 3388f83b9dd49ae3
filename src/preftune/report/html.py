"""A run folder as one HTML page that needs nothing else: no network, no server, no other file.

Whatever comes from data or from a model is a stranger's text. Jinja escapes it, it never enters a script, and the
page's own policy lets the browser run no script but the two whose hashes it names, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from preftune.files import write_whole
from preftune.full_disk import named
from preftune.report.drawing import Panel
from preftune.report.figures import panels
from preftune.report.reading import RunData, read
from preftune.report.tables import changes, sample_pairs
from preftune.report.verdict import verdict

TILES = ("preference_accuracy", "true_reward", "kl", "margin", "loss")
SAMPLES_IN_SIGHT = 8  # further ones are folded away


def write(run_dir: str | Path) -> Path:
    """Write report.html into a run folder, over one that is there.

    Args:
        run_dir: a folder that `preftune train` wrote.

    Returns:
        The path of the page.

    Raises:
        PreftuneError: if the folder is no run, or one of its files cannot be parsed.
    """
    run = read(run_dir)
    path = run.path / "report.html"
    _write(run, path.name, render(run))
    return path


@named
def _write(run: RunData, name: str, text: str) -> None:
    # A model can sample half of a surrogate pair, which JSON can hold and UTF-8 cannot.
    write_whole(run.path / name, text.encode("utf-8", errors="replace"))


def render(run: RunData) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("preftune", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    drawn = panels(run.history)
    rows = changes(run)
    plotly_js, page_js = get_plotlyjs(), js_text("page.js.jinja")
    return environment.get_template("page.html.jinja").render(
        title=run.path.resolve().name,
        verdict=verdict(run),
        tiles=[rows[key] for key in TILES if key in rows and rows[key].after is not None][:4],
        panels=drawn,
        rows=list(rows.values()),
        samples=sample_pairs(run.samples),
        in_sight=SAMPLES_IN_SIGHT,
        config=run.config_text,
        manifest={key: _plain(value) for key, value in run.manifest.items()},
        figures=for_script(drawn),
        css=Markup(js_text("page.css.jinja")),
        plotly_js=Markup(plotly_js),
        page_js=Markup(page_js),
        script_hashes=" ".join(f"'sha256-{sha256(script)}'" for script in (plotly_js, page_js)),
    )


def for_script(drawn: list[Panel]) -> Markup:
    """The figures as JSON that may stand in a <script>: no `<`, so neither `</script>` nor `<!--` can occur in it."""
    content = "{" + ",".join(f"{json.dumps(panel.key)}:{panel.figure().to_json()}" for panel in drawn) + "}"
    for character in "<>&\u2028\u2029":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return Markup(content)


def js_text(name: str) -> str:
    """A file of this package, as text."""
    return files("preftune.report").joinpath(name).read_text(encoding="utf-8").strip()


def sha256(script: str) -> str:
    """The digest of a script, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _plain(value: Any) -> str:
    """A value of the manifest as text; a mapping, such as the versions, as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""A run folder as one HTML page that needs nothing else: no network, no server, no other file.

Whatever comes from data or from a model is a stranger's text. Jinja escapes it, it never enters a script, and the
page's own policy lets the browser run no script but the two whose hashes it names, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from preftune.files import write_whole
from preftune.full_disk import named
from preftune.report import credit, rounds
from preftune.report.curves import most_points
from preftune.report.diagnosis import checkup, symptoms
from preftune.report.drawing import Panel
from preftune.report.figures import panels
from preftune.report.held_out import held_out
from preftune.report.reading import RunData, read
from preftune.report.samples import groups
from preftune.report.tables import changes
from preftune.report.thinning import MOST
from preftune.report.trained import is_reward_model
from preftune.report.values import mapping, show_time
from preftune.report.verdict import verdict

TILES = ("preference_accuracy", "true_reward", "reward", "kl", "margin", "loss")
SAMPLES_IN_SIGHT, SAMPLES_AT_MOST = 6, 200  # further ones are folded away, or left in their file
CREDIT_IN_SIGHT = 3


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        id: fit for an HTML id.
        title: in the table of contents; empty for the verdict, which is in sight.
        html: escaped.
    """

    id: str
    title: str
    html: Markup


@dataclass(frozen=True)
class Live:
    """What a page says that is served while its run goes on.

    Attributes:
        stamp: of the files that it shows.
        said: how the run is doing.
        state: "running" or "done".
    """

    stamp: str
    said: str
    state: str


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
    write_whole(run.path / name, as_bytes(text))


def as_bytes(page: str) -> bytes:
    """A page as UTF-8. A model can sample half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return page.encode("utf-8", errors="replace")


def render(run: RunData, live: Live | None = None) -> str:
    """The page as text.

    Args:
        run: its files.
        live: how the run is doing, for a page that is served while it goes on; scripts are then loaded from the server.
    """
    started = show_time(run.manifest.get("started"))
    eyebrow = "preftune run report" + (f" · started {started}" if started else "")
    sections, drawn = run_sections(run, live is not None and live.state == "running")
    return page(run.name, eyebrow, sections, drawn, live)


def page(
    title: str, eyebrow: str, sections: Sequence[Section], drawn: Sequence[Panel], live: Live | None = None
) -> str:
    """Sections and their figures as a page.

    Args:
        title: of the page, a stranger's text.
        eyebrow: above it.
        sections: in order.
        drawn: the figures that they have a place for.
        live: as for `render`.
    """
    plotly_js, page_js = plotly(), text_of("page.js")
    if live is None:
        scripts = " ".join(f"'sha256-{sha256(script)}'" for script in (plotly_js, page_js))
    else:
        scripts = "'self'; connect-src 'self'"
    digests = [[section.id, hashlib.sha256(as_bytes(section.html)).hexdigest()[:16]] for section in sections]
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            title=title,
            eyebrow=eyebrow,
            sections=sections,
            live=live,
            policy=Markup(f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:"),
            digests=Markup(json.dumps(digests)),
            figures=for_script(drawn),
            css=Markup(text_of("page.css")),
            plotly_js=Markup(plotly_js),
            page_js=Markup(page_js),
        )
    )


def run_sections(run: RunData, running: bool = False) -> tuple[list[Section], list[Panel]]:
    """The sections of a run's page in reading order, and the figures in them.

    Args:
        run: its files.
        running: True if it is known to go on.
    """
    curves, rows, evaluation = panels(run.history, is_reward_model(run)), changes(run), held_out(run.evaluation)
    credited, online = credit.pairs(run.credit), rounds.panels(run.history)
    folder, data = shlex.quote(run.known_as), run.data_path
    given: dict[str, tuple[str, dict[str, Any]]] = {
        "verdict": (
            "",
            {
                "verdict": verdict(run, running),
                "tiles": [rows[key] for key in TILES if key in rows and rows[key].after is not None][:4],
            },
        ),
        "curves": ("Curves", {"panels": curves, "thinned": thinned(run)}),
        "held-out": (
            "Evaluation",
            {
                "rows": list(rows.values()),
                "found": evaluation,
                "evaluate": f"preftune evaluate {folder}",
                "answers": not is_reward_model(run),
            },
        ),
        "samples": (
            "Samples",
            {
                "groups": groups(run.samples, run.generations, SAMPLES_AT_MOST),
                "in_sight": SAMPLES_IN_SIGHT,
            },
        ),
        "credit": (
            "Token credit",
            {"pairs": credited, "in_sight": CREDIT_IN_SIGHT, "inspect": f"preftune inspect {folder}"},
        ),
        "data": (
            "Data",
            {
                "checkup": checkup(run.data_doctor),
                "validate": f"preftune validate {shlex.quote(data)}" if data else "",
            },
        ),
        "doctor": ("Doctor", {"symptoms": symptoms(run.history, run.summary)}),
        "again": (
            "Config",
            {
                "manifest": {key: _plain(value) for key, value in run.manifest.items()},
                "again": f"preftune train {folder}/config.yaml output.path={folder}-again",
                "config": run.config_text,
            },
        ),
    }
    if online:
        judge = mapping(run.config.get("online")).get("judge")
        learned = {"panels": online, "rounds": rounds.rounds(run.rollouts), "judge": judge}
        given = {"verdict": given.pop("verdict"), "rounds": ("Rounds", learned), **given}
    sections = [section(key, title, **values) for key, (title, values) in given.items()]
    reliability = [evaluation.reliability] if evaluation and evaluation.reliability else []
    return sections, [*online, *curves, *reliability, *(pair.panel for pair in credited if pair.panel)]


def section(key: str, title: str, **values: Any) -> Section:
    """A section, from the template of its name."""
    return Section(key, title, Markup(environment().get_template(f"sections/{key}.html.jinja").render(**values)))


def thinned(*runs: RunData) -> str:
    """That not all points are drawn, where it is so."""
    most = max(most_points(run.history) for run in runs)
    if most <= MOST:
        return ""
    return (
        f"Of {most:,} recorded points a curve shows {MOST} at most: the lowest and the highest of each stretch of "
        "steps, so that no peak is lost."
    )


@cache
def environment() -> Environment:
    """Jinja over this room's templates, escaping whatever is not marked as safe."""
    made = Environment(
        loader=PackageLoader("preftune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["shell"] = shlex.quote
    return made


def for_script(drawn: Sequence[Panel]) -> Markup:
    """The figures as JSON that may stand in a <script>: no `<`, so neither `</script>` nor `<!--` can occur in it."""
    content: str = to_json_plotly({panel.key: panel.plain() for panel in drawn})
    for character in "<>&\u2028\u2029":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return Markup(content)


@cache
def plotly() -> str:
    """plotly.js, which the package of the same name carries."""
    return str(get_plotlyjs())


@cache
def text_of(name: str) -> str:
    """A file of this room's templates, as text."""
    return files("preftune.report").joinpath("templates", name).read_text(encoding="utf-8").strip()


@cache
def sha256(script: str) -> str:
    """The digest of a script, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _plain(value: Any) -> str:
    """A value of the manifest as text; a mapping, such as the versions, as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

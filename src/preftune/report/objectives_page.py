"""docs/objectives.md and its drawings, written from the objectives' docstrings and from the objectives themselves.

python -m preftune.report.objectives_page docs
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from preftune.objectives import registry
from preftune.objectives.catalogue import FAMILIES, Entry, arguments, entries, sections
from preftune.report.catalogue import needs
from preftune.report.drawing import CHOSEN, HELD_OUT, REJECTED
from preftune.report.slices import LOGP, TOKENS, Slice, along_margin
from preftune.report.svg import Chart, Line, drawing

COMMAND = "make docs-objectives"
PROSE = ("Source", "When to use", "In nats", "Differs between libraries")
IMAGES = "images/objectives"


def files() -> dict[str, str]:
    """The page and its drawings: text by path, relative to docs/."""
    found = entries()
    slices = {entry.name: along_margin(registry.build(entry.name)) for entry in found}
    drawings = {f"{IMAGES}/{name}.svg": picture(name, each) for name, each in slices.items()}
    parts = [_opening(found)]
    for family in FAMILIES:
        members = [entry for entry in found if entry.family == family]
        parts += [f"## {family}"] * bool(members)
        parts += [_section(entry, slices[entry.name]) for entry in members]
    parts.append(_modifiers())
    return {"objectives.md": "\n\n".join(parts) + "\n", **drawings}


def write(docs: Path) -> list[Path]:
    """Write the page and its drawings, and remove drawings of objectives that are no more.

    Args:
        docs: the folder of the documentation.

    Returns:
        The files that are there now.
    """
    texts = files()
    for name, text in texts.items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    for path in (docs / IMAGES).glob("*.svg"):
        if f"{IMAGES}/{path.name}" not in texts:
            path.unlink()
    return [docs / name for name in texts]


def picture(name: str, drawn: Slice) -> str:
    """Loss and gradient of an objective over the margin, as the text of an SVG file.

    Args:
        name: of the objective.
        drawn: what it says along a slice.
    """
    values = drawn.values
    rewarded = bool(np.isfinite(values.margin).all())
    x, x_title = (values.margin, "margin (units of reward)") if rewarded else (drawn.delta, "delta (nats)")
    chosen, rejected = values.chosen_gradient, values.rejected_gradient
    slopes = (Line("chosen", CHOSEN, chosen), Line("rejected", REJECTED, rejected, dashed=True))
    charts = [
        Chart("loss", x_title, x, (Line("", HELD_OUT, values.loss),)),
        Chart(f"gradient in each {drawn.variable}", x_title, x, slopes),
    ]
    return drawing(charts, f"Loss and gradient of {name} over the {x_title.partition(' ')[0]}")


def _opening(found: list[Entry]) -> str:
    lines = [
        "# Objectives",
        "",
        f"Written by `{COMMAND}` from the docstrings in `src/preftune/objectives/`; edit those. The same in a",
        "terminal: `preftune objectives`, `preftune objectives NAME`.",
        "",
        "`delta` is the difference of two log-ratios of policy to reference, chosen minus rejected, in nats, summed",
        "over the tokens of whole responses. The implicit reward of a response is beta times its log-ratio where",
        "nothing else is said, and the margin is chosen reward less rejected reward.",
        "",
        "Pictures show defaults: the loss of a pair over its margin, and the gradient in the log-probability of each",
        "response (below 0: training makes it likelier). Chosen gains as many nats as rejected loses. Both responses",
        f"have {TOKENS} tokens, of {-LOGP:g} nats each under the reference, or at margin 0 where there is none: what",
        "an objective does with lengths does not show.",
    ]
    for family in FAMILIES:
        members = [entry for entry in found if entry.family == family]
        if not members:
            continue
        lines += [
            "",
            f"**{family}**",
            "",
            "| name | reference | data | couples | fields | source |",
            "|---|---|---|---|---|---|",
        ]
        for entry in members:
            fields = ", ".join(f"`{field.name}={field.default}`" for field in entry.fields) or "none"
            reference, couples = ("yes" if flag else "no" for flag in (entry.reference, entry.couples))
            cells = (f"[{entry.name}](#{entry.name})", reference, entry.data, couples, fields, entry.source)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _section(entry: Entry, drawn: Slice) -> str:
    parts = [f"### {entry.name}", entry.summary, f"*{_capital(needs(entry))}.*"]
    parts.append(f"```text\n{entry.sections['Equation']}\n```")
    parts.append(f"![Loss and gradient of {entry.name}]({IMAGES}/{entry.name}.svg)")
    parts.append(f"*{drawn.words}*")
    parts += [f"**{title}.** {_capital(_plain(entry.sections[title]))}" for title in PROSE if title in entry.sections]
    if entry.fields:
        rows = [f"| `{each.name}` | `{each.default}` | {_cell(_capital(each.meaning))} |" for each in entry.fields]
        parts.append("\n".join(["| field | default | |", "|---|---|---|", *rows]))
    parts.append(f"```yaml\n{entry.config()}\n```")
    return "\n\n".join(parts)


def _modifiers() -> str:
    """The modifiers, from their docstring."""
    from preftune.objectives.modifiers import Modifiers

    _, parts = sections(Modifiers.__doc__ or "")
    rows = [f"| `{name}` | {_cell(_capital(text))} |" for name, text in arguments(parts["Args"]).items()]
    return "\n".join(
        [
            "## Modifiers",
            "",
            "Any objective takes `modifiers: {...}` beside its own fields; where one makes no sense it is refused,",
            "and the refusal says why.",
            "",
            "| modifier | what it does |",
            "|---|---|",
            *rows,
        ]
    )


def _capital(text: str) -> str:
    """With a capital letter first, unless it begins with a name from the code."""
    first = text.partition(" ")[0]
    return text if "_" in first or "(" in first else text[:1].upper() + text[1:]


def _plain(text: str) -> str:
    """Prose in which no character is markdown's, but for the code in it."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def main() -> None:
    """Write the page into the folder named on the command line."""
    docs = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    print(f"wrote {len(write(docs))} files into {docs}")


if __name__ == "__main__":
    main()

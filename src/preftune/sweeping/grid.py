"""From `key=a,b,c` to the configs of a sweep: every combination that makes sense, refused or explained beforehand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from itertools import product
from pathlib import Path
from typing import Any

from preftune import yaml_tree
from preftune.config import RunConfig
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.yaml_text import short

OBJECTIVE, NAME = "objective", "objective.name"
# Keys that are the sweep's own business.
OWN = ("output.path", "output.overwrite", "reference.folder")
# Keys that decide what is held out, unless a file of its own says so.
SPLIT = ("data.path", "data.held_out", "data.split", "data.limit", "data.layout", "seed")
OPENING, CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Axis:
    """A key and the values that it is to take.

    Attributes:
        key: dotted.
        values: as one would write them behind `key=`; one alone is the same in every run.
    """

    key: str
    values: tuple[str, ...]

    @property
    def field(self) -> str:
        """The field of an objective that it sets; empty if it sets none."""
        rest = self.key.removeprefix(f"{OBJECTIVE}.")
        return "" if rest == self.key or self.key == NAME else rest.partition(".")[0]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: what it is called: "dpo-beta=0.1".
        settings: the swept keys that it has, with their values as text.
        config: of the run, its folder left open.
        terms: its objective.
    """

    name: str
    settings: Mapping[str, str]
    config: RunConfig
    terms: tuple[registry.Term, ...]

    @property
    def stores(self) -> bool:
        """True if its reference's log-probs can be stored for all runs of the sweep."""
        live = any("kl_K" in term.objective.needs for term in self.terms) or self.config.online is not None
        return registry.needs_reference(self.terms) and not live and self.config.reference.kind == "auto"

    def placed(self, folder: Path) -> RunConfig:
        """Its config, in the folder of a sweep."""
        output = self.config.output.model_copy(update={"path": str(folder / "runs" / self.name)})
        changes: dict[str, Any] = {"output": output}
        if self.stores:
            stored = {"kind": "stored", "folder": str(folder / "reference")}
            changes["reference"] = self.config.reference.model_copy(update=stored)
        return self.config.model_copy(update=changes)


@dataclass(frozen=True)
class Grid:
    """The runs of a sweep.

    Attributes:
        cells: in the order of the values as they were given.
        axes: what was given, keys with one value included.
        notes: what to know, a line each.
    """

    cells: tuple[Cell, ...]
    axes: tuple[Axis, ...]
    notes: tuple[str, ...]

    @property
    def swept(self) -> list[str]:
        """The keys that take several values."""
        return [axis.key for axis in self.axes if len(axis.values) > 1]


def axes_of(words: Sequence[str]) -> list[Axis]:
    """Axes from the command line: `key=a,b,c`; a key that is given again takes further values.

    Commas in brackets or quotes separate nothing.

    Raises:
        PreftuneError: for a word of another form, or an empty value.

    Example:
        >>> axes_of(["objective.beta=0.1,0.3", "model.lora={r: 4, alpha: 8},null"])[1].values
        ('{r: 4, alpha: 8}', 'null')
    """
    found: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise PreftuneError(f"{short(word)!r} is not of the form KEY=VALUE or KEY=VALUE,VALUE,...")
        values = _split(text)
        if len(values) > 1 and not all(values):
            raise PreftuneError(f"{short(word)!r} has an empty value between commas: leave it out, or write null")
        found.setdefault(key.strip(), []).extend(values)
    return [Axis(key, tuple(dict.fromkeys(values))) for key, values in found.items()]


def axes_from(values: Mapping[str, Any]) -> list[Axis]:
    """Axes from Python: each key with a list of values, or with one."""
    found = []
    for key, given in values.items():
        many = list(given) if isinstance(given, list | tuple) else [given]
        if not many:
            raise PreftuneError(f"{key} has no values: give one or more")
        try:
            texts = [json.dumps(str(one) if isinstance(one, Path) else one, ensure_ascii=False) for one in many]
        except TypeError as error:
            raise PreftuneError(f"{key} has a value that no config can hold ({error})") from None
        found.append(Axis(key, tuple(dict.fromkeys(texts))))
    return found


def grid(axes: Sequence[Axis], file: Path | None = None, base: Mapping[str, Any] | None = None) -> Grid:
    """Every combination of the axes' values, as configs.

    A field of objectives is varied where the objective has it; runs that come to the same config are one.

    Args:
        axes: keys with their values.
        file: a config file that they override.
        base: settings of lower rank than the file.

    Raises:
        PreftuneError: if nothing varies, a key is unknown or the sweep's own, no objective has a field, or a
            combination is refused; the sentence says which.
    """
    for axis in axes:
        if axis.key in OWN:
            raise PreftuneError(f"{axis.key} is set by the sweep itself: leave it out")
    if all(len(axis.values) < 2 for axis in axes):
        raise PreftuneError("nothing varies: give at least one key several values, such as objective.beta=0.05,0.1,0.3")
    names = [axis for axis in axes if axis.key in (OBJECTIVE, NAME)]
    others = [axis for axis in axes if axis not in names]
    has: dict[str, list[str]] = {axis.key: [] for axis in others}
    lacks: dict[str, list[str]] = {axis.key: [] for axis in others}
    found: dict[str, Cell] = {}
    for chosen in product(*(axis.values for axis in names)):
        head = [f"{axis.key}={value}" for axis, value in zip(names, chosen, strict=True)]
        block = _load(file, base, [*head, *(_word(axis, 0) for axis in others if not axis.field)]).objective
        fits = [axis for axis in others if not axis.field or _has_field(block, axis.field)]
        for axis in others:
            (has if axis in fits else lacks)[axis.key].append(_name(block))
        for values in product(*(axis.values for axis in fits)):
            settings = dict(zip([axis.key for axis in (*names, *fits)], (*chosen, *values), strict=True))
            cell = _cell(settings, {axis.key for axis in axes if len(axis.values) > 1}, file, base)
            found.setdefault(_identity(cell), cell)
    for axis in others:
        if not has[axis.key]:
            raise PreftuneError(
                f"none of the swept objectives has a field {axis.field} ({axis.key}): "
                "`preftune objectives NAME` lists the fields of each"
            )
    notes = [
        f"{key} is a field of {' and '.join(dict.fromkeys(has[key]))}: runs of {' and '.join(dict.fromkeys(without))} "
        "go without"
        for key, without in lacks.items()
        if without
    ]
    varied = [axis.key for axis in axes if len(axis.values) > 1]
    if any(key in SPLIT for key in varied) and any(c.config.data.held_out_path is None for c in found.values()):
        keys = " and ".join(key for key in varied if key in SPLIT)
        notes.append(
            f"{keys} changes what is held out, so runs are measured on different prompts: see data.held_out_path"
        )
    return Grid(tuple(_named_apart(list(found.values()))), tuple(axes), tuple(notes))


def _cell(settings: Mapping[str, str], varied: set[str], file: Path | None, base: Mapping[str, Any] | None) -> Cell:
    words = [f"{key}={value}" for key, value in settings.items()]
    shown = {key: _plain(value) for key, value in settings.items() if key in varied}
    try:
        config = _load(file, base, words)
        terms = registry.terms(config.objective)
    except PreftuneError as error:
        which = ", ".join(f"{key}={value}" for key, value in shown.items())
        raise PreftuneError(f"of the sweep's combinations, {which} cannot be trained: {error}") from None
    name = "-".join(
        value if key in (OBJECTIVE, NAME) else f"{key.rpartition('.')[2]}={value}" for key, value in shown.items()
    )
    safe = re.sub(r"[^\w.=+-]+", "_", name, flags=re.ASCII).strip("._-") or "run"
    return Cell(safe[:120], shown, config, terms)


def _named_apart(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, those of one name with a number behind it."""
    seen: dict[str, int] = {}
    found = []
    for cell in cells:
        key = cell.name.lower()  # some file systems do not tell cases apart
        seen[key] = seen.get(key, 0) + 1
        name = cell.name if seen[key] == 1 else f"{cell.name}_{seen[key]}"
        found.append(Cell(name, cell.settings, cell.config, cell.terms))
    return found


def _load(file: Path | None, base: Mapping[str, Any] | None, words: Sequence[str]) -> RunConfig:
    return yaml_tree.load(RunConfig, file, words, base=base, tagged=("objective",))


def _word(axis: Axis, index: int) -> str:
    return f"{axis.key}={axis.values[index]}"


def _has_field(block: Any, field: str) -> bool:
    """True if an objective has a field. Lists of objectives are reached into by index, and speak for themselves."""
    if isinstance(block, list):
        return True
    kind: Any = registry.resolve(_name(block))
    known = {each.name for each in fields_of(kind) if each.init}
    return field in known or field in registry.RESERVED


def _name(block: Any) -> str:
    return str(block.get("name", registry.DEFAULT)) if isinstance(block, Mapping) else str(block)


def _identity(cell: Cell) -> str:
    values = {**cell.config.model_dump(mode="json"), "objective": registry.spec_of(cell.terms)}
    return json.dumps(values, sort_keys=True, default=str)


def _plain(text: str) -> str:
    """A value as people read it: without the quotes of a plain text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _split(text: str) -> list[str]:
    """A text, cut at commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]

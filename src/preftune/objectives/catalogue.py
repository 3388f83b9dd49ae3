"""What each objective is, needs and is set by, read from its source: listing them all imports no torch.

Docstrings have one form: a summary, then sections ("Equation:", "Source:", ...). The class attributes and fields of our
own objectives are read with `ast`, through their bases; a user's `package.module:Class` is imported instead.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.objectives.registry import class_names, names, resolve

if TYPE_CHECKING:
    from preftune.objectives.base import Objective

FAMILIES = (
    "Pairs, with a reference",
    "Pairs, without a reference",
    "Unpaired labels",
    "Rankings",
    "Rollouts",
    "Demonstrations",
    "Reward models",
)
ATTRIBUTES = ("reference", "data", "needs", "couples", "baselines", "columns", "learning_rate", "lora_learning_rate")
REQUIRED = "required"  # in place of the default of a field that has none

_PACKAGE = "preftune.objectives."
_HEADER = re.compile(r"([A-Z][A-Za-z ]*):(?: +(.*))?")
_CITATION = re.compile(
    r"\b([A-Z][\w'-]+(?:,? (?:et al\.|and [A-Z][\w'-]+|[A-Z][\w'-]+))* \d{4})"  # authors and year
    r'(?:,? "[^"]*")?'  # title
    r"(?:,? \(?(arXiv \d{4}\.\d{4,5}))?"  # nothing lies before its number, so that it is no other paper's
)


@dataclass(frozen=True)
class Field:
    """A hyperparameter.

    Attributes:
        name: as in the config.
        type: its annotation.
        default: as in YAML; `REQUIRED` if there is none.
        meaning: what the docstring says of it, with its range and what is usual.
    """

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """An objective, for people.

    Attributes:
        name: as in the config.
        title: name of the class.
        summary: first line of the docstring.
        sections: the text of each section of the docstring, by its title. Lines of prose are joined; blocks keep them.
        fields: the hyperparameters, in order.
        reference: True if it compares the policy with a reference.
        data: the kind of data that it is made for.
        needs: what it reads of each token or response beside the log-probability.
        couples: True if the examples of a batch depend on each other.
        baselines: True if every example carries a response of another prompt.
        columns: columns that every record must have.
        learning_rate: peak rate to start from when all weights of a model of 1B parameters train.
        lora_learning_rate: the same when LoRA adapters train.
    """

    name: str
    title: str
    summary: str
    sections: Mapping[str, str]
    fields: tuple[Field, ...]
    reference: bool
    data: str
    needs: frozenset[str]
    couples: bool
    baselines: bool
    columns: frozenset[str]
    learning_rate: float
    lora_learning_rate: float

    @property
    def family(self) -> str:
        """One of `FAMILIES`."""
        if "reward_R" in self.needs:
            return "Reward models"
        if self.data == "pairs":
            return "Pairs, with a reference" if self.reference else "Pairs, without a reference"
        return "Unpaired labels" if self.data == "labels" else self.data.capitalize()

    @property
    def source(self) -> str:
        """Authors and year of the first citation of the docstring, and its arXiv number if it has one; without a
        citation, the first words of its source."""
        text = self.sections.get("Source", "")
        citation = _CITATION.search(text)
        return ", ".join(filter(None, citation.groups())) if citation else re.split(r"[;,]|\.(?:\s|$)", text)[0]

    def config(self) -> str:
        """A block of a config with every field at its default, and what it means."""
        lines = [("objective:", ""), (f"  name: {self.name}", "")]
        lines += [
            (f"  {each.name}: {each.default}", re.split(r"[.;:](?:\s|$)", each.meaning)[0]) for each in self.fields
        ]
        width = max(len(line) for line, _ in lines) + 2
        return "\n".join(f"{line:<{width}}# {comment}" if comment else line for line, comment in lines)


def entries() -> list[Entry]:
    """All our objectives, in alphabetical order; nothing is imported."""
    return [_read(name) for name in names()]


def entry(name: str) -> Entry:
    """One objective.

    Args:
        name: from `names()`, or a user's `package.module:Class`, which is imported.

    Raises:
        PreftuneError: one sentence with the nearest name, if there is no such objective.
    """
    return _read(name) if name in names() else _imported(name, resolve(name))


def sections(doc: str) -> tuple[str, dict[str, str]]:
    """The first line of a docstring, and the text of each of its sections by title; what belongs to none has the title
    "About"."""
    first, *lines = inspect.cleandoc(doc).splitlines() or [""]
    found: dict[str, list[str]] = {"About": []}
    title = "About"
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header:
            title = header[1]
            found[title] = [header[2] or ""]
        else:
            found[title].append(line)
    texts = {title: _text(lines) for title, lines in found.items()}
    return first, {title: text for title, text in texts.items() if text}


def arguments(text: str) -> dict[str, str]:
    """What an "Args" section says of each field."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        opening = re.match(r"(\w+): +(.*)", line)
        if opening:
            name = opening[1]
            found[name] = opening[2]
        elif name:
            found[name] += f" {line.strip()}"
    return found


def _text(lines: Sequence[str]) -> str:
    """A section: prose if it begins on the line of its title, else a block, whose lines stay as they are."""
    if not lines:
        return ""
    first, rest = lines[0], textwrap.dedent("\n".join(lines[1:])).strip("\n")
    if not first:
        return rest
    paragraphs = f"{first}\n{rest}".split("\n\n")
    return "\n\n".join(" ".join(each.split()) for each in paragraphs)


def _entry(
    name: str, title: str, doc: str, values: Iterable[tuple[str, str, str]], attributes: Mapping[str, Any]
) -> Entry:
    summary, parts = sections(doc)
    meanings = arguments(parts.get("Args", ""))
    found = tuple(Field(field, kind, default, meanings.get(field, "")) for field, kind, default in values)
    return Entry(name, title, summary, parts, found, **{key: attributes[key] for key in ATTRIBUTES})


def _imported(name: str, cls: type[Objective]) -> Entry:
    """The entry of a class that is at hand."""
    doc = vars(cls).get("__doc__") or ""
    values = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        values.append((field.name, kind, REQUIRED if default is MISSING else yaml_of(default)))
    generated = doc.startswith(f"{cls.__name__}(")  # dataclass writes the signature where there is no docstring
    return _entry(name, cls.__name__, "" if generated else doc, values, {key: getattr(cls, key) for key in ATTRIBUTES})


def yaml_of(value: Any) -> str:
    """A default as a config has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        digits, e, exponent = repr(value).partition("e")
        return repr(value) if not e or "." in digits else f"{digits}.0e{exponent}"  # YAML takes 1e-06 for text
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml_of, value))}]"
    return str(value)


# --- reading source ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Module:
    """A module of this folder as source: its classes, its constants, and where its other names come from."""

    classes: Mapping[str, ast.ClassDef]
    constants: Mapping[str, ast.expr]
    imports: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class _Class:
    """A class as source, and the module that its names mean something in."""

    node: ast.ClassDef
    module: _Module


@cache
def _module(stem: str) -> _Module:
    tree = ast.parse((Path(__file__).parent / f"{stem}.py").read_text(encoding="utf-8"))
    imports = {
        alias.asname or alias.name: (node.module.removeprefix(_PACKAGE), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(_PACKAGE)
        for alias in node.names
    }
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return _Module(classes, dict(_assignments(tree.body)), imports)


@cache
def _read(name: str) -> Entry:
    """The entry of one of our objectives."""
    own = _Class(_module(name).classes[class_names()[name]], _module(name))
    attributes: dict[str, Any] = {}
    values: dict[str, tuple[str, str, str]] = {}
    for cls in reversed(_lineage(own)):
        for node in cls.node.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            field = node.target.id
            if "ClassVar" not in ast.unparse(node.annotation):
                default = REQUIRED if node.value is None else yaml_of(_value(_default(node.value), cls.module))
                values[field] = (field, ast.unparse(node.annotation), default)
            elif field in ATTRIBUTES and node.value is not None:
                attributes[field] = _value(node.value, cls.module)
    return _entry(name, own.node.name, ast.get_docstring(own.node) or "", values.values(), attributes)


def _lineage(cls: _Class) -> list[_Class]:
    """A class and its bases, as far as they lie in this folder, nearest first."""
    found = [cls]
    for base in cls.node.bases:
        parent = _class(base.id, cls.module) if isinstance(base, ast.Name) else None
        found += [] if parent is None else _lineage(parent)
    return found


def _class(name: str, module: _Module) -> _Class | None:
    if name in module.classes:
        return _Class(module.classes[name], module)
    if name in module.imports:
        stem, original = module.imports[name]
        return _class(original, _module(stem))
    return None


def _assignments(body: Iterable[ast.stmt]) -> Iterable[tuple[str, ast.expr]]:
    for node in body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value


def _default(node: ast.expr) -> ast.expr:
    """What a field is by default: the value itself, or that of `field(default=...)`."""
    if isinstance(node, ast.Call):
        return next((word.value for word in node.keywords if word.arg == "default"), node)
    return node


def _value(node: ast.expr, module: _Module) -> Any:
    """The value of an expression: a literal, a constant's name, a class's attribute, or a set of such."""
    match node:
        case ast.Name(id=name) if name in module.constants:
            return _value(module.constants[name], module)
        case ast.Name(id=name) if name in module.imports:
            stem, original = module.imports[name]
            return _value(ast.Name(original), _module(stem))
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            owner = _class(name, module)
            for cls in _lineage(owner) if owner else []:
                for key, value in _assignments(cls.node.body):
                    if key == attribute:
                        return _value(value, cls.module)
        case ast.Call(func=ast.Name(id="frozenset"), args=[]):
            return frozenset()
        case ast.Call(func=ast.Name(id="frozenset"), args=[content]):
            return frozenset(_value(content, module))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _value(left, module) | _value(right, module)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise RuntimeError(f"{ast.unparse(node)} cannot be read without importing: write a literal") from None

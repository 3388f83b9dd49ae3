"""Text to plain values and back: how config files are read, written and laid out.

Scalars are read as YAML 1.2 reads them (its core schema, decimal numbers only), so that what looks like text stays
text: `no`, `010`, `12:30` and `2024-01-01` are strings, `5e-5` is a number, `true` and `false` are the only booleans.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from preftune.errors import PreftuneError

LONGEST = 60  # characters of a value that a message shows
DEEPEST = 32  # levels of mappings and lists
MOST_BYTES = 2**20  # of a config file
MOST_NODES = 20_000  # values in it, each as often as aliases repeat it
_TAG = "tag:yaml.org,2002:"
_SCALARS = [  # kind, pattern, first characters; the first that matches wins
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
]
_CONSTRUCTED = {None, *(_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))}


class _Loader(yaml.SafeLoader):
    """YAML without timestamps, octal and sexagesimal numbers, yes/no booleans, repeated keys and special tags."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - these two belong to PyYAML
    yaml_constructors = {  # noqa: RUF012
        tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag in _CONSTRUCTED
    }

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        """Keys are the text as written, so that `on:` and `1:` need no quotes; a key given twice is an error."""
        if not isinstance(node, yaml.MappingNode):
            raise _refusal("expected a mapping here", node)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key must be plain text", key)
            if key.value in seen and key.tag != _TAG + "merge":
                raise _refusal(f"the key {short(key.value)} is given twice", key)
            seen.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def get_single_data(self) -> Any:
        """Constructed depth first, so that a node that contains itself is refused; and only if it is of a size that
        somebody may have written, for a few aliases of aliases make billions of values."""
        node = self.get_single_node()
        if node is not None and _size(node, {}) > MOST_NODES:
            raise _refusal(f"aliases make more than {MOST_NODES:,} values of it", node)
        return None if node is None else self.construct_object(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that our loader or a YAML 1.1 reader would take for something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Unicode line breaks are written as escapes, for which PyYAML must be told to use double quotes."""
        return self.represent_scalar(
            _TAG + "str", data, style='"' if re.search("[\x85\u2028\u2029\ufeff]", data) else None
        )


_Dumper.add_representer(str, _Dumper.represent_str)

for _kind, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), list(_first))


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        PreftuneError: if there is no such file, or it holds no YAML mapping.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise PreftuneError(
                f"{path} holds {path.stat().st_size:,} bytes, expected a config of at most {MOST_BYTES:,}"
            )
        data = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except FileNotFoundError:
        raise PreftuneError(f"there is no config file {path}; `preftune init` writes one") from None
    except OSError as error:
        raise PreftuneError(f"cannot read the config file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise PreftuneError(f"the config file {path} is not UTF-8 text, so it cannot be read as YAML") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise PreftuneError(f"{path} is not valid YAML: {_problem(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise PreftuneError(f"{path} holds {found(data)}, expected a mapping of keys to values")
    return data


def value(text: str, override: str) -> Any:
    """The value of a command-line override. Only quotes and brackets are YAML syntax here, so that
    `prompt=Q: what is #1?` is one text.

    Args:
        text: what stands behind the equals sign.
        override: the whole of it, for messages.

    Raises:
        PreftuneError: if text in quotes or brackets is not valid YAML.
    """
    text = text.strip()
    structured = text.startswith(('"', "'", "[", "{"))
    try:
        if structured:
            return yaml.load(text, _Loader)
        loader: Any = _Loader("")
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        return loader.construct_object(yaml.ScalarNode(tag, text)) if tag in _CONSTRUCTED else text
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise PreftuneError(
            f"the value of the override {short(override)!r} is not valid YAML: {_problem(error)}; put text in quotes"
        ) from None


def found(value: Any) -> str:
    """A value in the words of a message."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {short(value)!r}"
        case int() | float():
            return f"the number {short(str(value))}"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    return f"of type {type(value).__name__}"


def is_text(value: str) -> bool:
    """False for what no file can be called and no UTF-8 can hold."""
    return not re.search("[\0\ud800-\udfff]", value)


def short(text: str, most: int = LONGEST) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def dump(model: BaseModel) -> str:
    """The config as YAML; loading it again gives an equal model."""
    return _dump(_plain(model), width=120)


def commented(model: BaseModel | type[BaseModel]) -> str:
    """A YAML template: every key with its description as a comment and its value. A class gives its defaults; keys
    that it requires are left empty and say so."""
    shown = model.model_construct() if isinstance(model, type) else model
    return "\n".join(_template(shown, "")).lstrip("\n") + "\n"


def _template(shown: BaseModel, pad: str) -> Iterator[str]:
    values, after_section = _plain(shown), False
    for name, info in type(shown).model_fields.items():
        section, required = getattr(shown, name, None), name not in values
        if required:  # a required section is shown with its own keys
            inner = list(models_in(info.annotation))
            section = inner[0].model_construct() if inner and inner[0] is info.annotation else None
        if after_section or isinstance(section, BaseModel):
            yield ""
        after_section = isinstance(section, BaseModel)
        for line in textwrap.wrap(_about(info, required), 110 - len(pad)):
            yield f"{pad}# {line}"
        if isinstance(section, BaseModel):
            yield f"{pad}{name}:"
            yield from _template(section, pad + "  ")
        elif required:
            yield f"{pad}{name}:"
        else:
            yield f"{pad}{name}: {_dump([values[name]], default_flow_style=True, width=10**9).strip()[1:-1]}"


def _about(info: FieldInfo, required: bool) -> str:
    choices = ", ".join(map(str, _choices(info.annotation)))
    parts = [info.description or "", f"(one of: {choices})" if choices else "", "(required)" if required else ""]
    return " ".join(part for part in parts if part)


def _choices(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        if get_origin(annotation) is Literal:
            yield part
        else:
            yield from _choices(part)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that a field's type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def _plain(model: BaseModel) -> dict[str, Any]:
    plain: dict[str, Any] = to_jsonable_python(model.model_dump())  # `mode="json"` would lose .inf in free mappings
    return plain


def _dump(data: Any, **style: Any) -> str:
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style))


def _refusal(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _size(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Values that a node stands for, those behind aliases counted each time."""
    if node not in known:
        known[node] = MOST_NODES + 1  # while it is being counted: a node that contains itself has no end
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[node] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, known) for part in inner))
    return known[node]


def _problem(error: Exception) -> str:
    if isinstance(error, ValueError):  # of a number, which Python refuses to read at thousands of digits
        return "a number has too many digits"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    said = short(problem or " ".join(str(error).split()), 2 * LONGEST)
    return said if mark is None else f"{said} (line {mark.line + 1}, column {mark.column + 1})"

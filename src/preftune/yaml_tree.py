"""One YAML file, dotted overrides and a tree of pydantic models; knows no key of preftune's own.

    layers: defaults of tagged blocks -> base settings -> file -> `key.sub=value` overrides -> models (strict)

Every mistake ends in one sentence that names the key, its source, what was found and what was expected. Strings are
never interpolated: `${x}` in a prompt is text, and a value that is nothing but `${a.b}` or `${oc.env:KEY}` is refused.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from preftune.api_keys import is_secret
from preftune.errors import PreftuneError
from preftune.yaml_text import DEEPEST, commented, dump, found, is_text, models_in, read, short, value

__all__ = ["commented", "complaint", "dump", "load", "nearest", "read"]

M = TypeVar("M", bound=BaseModel)
Key = tuple[str, ...]

_INTERPOLATION = re.compile(r"\s*\$\{[^{}]*[.:][^{}]*\}\s*")


def load(
    model: type[M],
    path: Path | None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    tagged: Sequence[str] = (),
) -> M:
    """Read, merge and validate a config.

    Args:
        model: the root of a tree of pydantic models, each with `extra="forbid"`.
        path: a YAML file, or None.
        overrides: `key.sub=value` texts; the last one wins. A value is a scalar, or a list or mapping in brackets. Keys
            reach into lists by index: `terms.0.weight=2`.
        base: settings of lower rank than the file (plain values).
        tagged: dotted keys of blocks, or of lists of blocks, whose `name` says what their other fields mean. A layer
            that changes the name drops the fields that lower layers gave for the old one. A text in place of such a
            block is its name.

    Raises:
        PreftuneError: one sentence with source, key, what was found and what was expected.
    """
    for part in _models(model):
        if part.model_config.get("extra") != "forbid":
            raise TypeError(f'{part.__name__} needs model_config = ConfigDict(extra="forbid"): unknown keys are errors')
    tree = _Tree(model, path, tuple(tuple(key.split(".")) for key in tagged))
    for layer in (tree.defaults(), base or {}, {} if path is None else read(path)):
        tree.values = _merge(tree.values, layer, tree.tagged)
    for text in overrides:
        tree.override(text)
    tree.values = tree.plain(tree.values)
    try:
        # JSON mode is strict about types, yet takes a list for a tuple and a text for a path or an enum
        return model.model_validate_json(json.dumps(tree.values), strict=True)
    except ValidationError as error:
        raise PreftuneError(tree.sentence(error.errors())) from None
    except PreftuneError as error:  # from a component's own validator, which does not know the file
        raise PreftuneError(f"{error}{tree.sources(' (', ')')}") from None


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: `; did you mean X?`, or the known ones if none is near."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known) or 'none'}"


def complaint(errors: Sequence[ErrorDetails]) -> str:
    """What pydantic says about one key, as the end of a sentence that begins with the key."""
    for error in errors:
        if error["type"] in ("value_error", "assertion_error"):  # from a validator, which speaks for itself
            return f"is refused: {error['ctx']['error']}"
    expected = [_expected(error) for error in errors]
    if all(expected):
        return f"is {found(errors[0]['input'])}, expected {' or '.join(dict.fromkeys(expected))}"
    return f"is {found(errors[0]['input'])}, which is refused: {errors[expected.index('')]['msg']}"


_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "dataclass_type"), "a mapping of its keys"),
    "string_type": "text (numbers, true, false and null need quotes to be text)",
    "path_type": "a path",
    "none_required": "null",
    "finite_number": "a finite number",
}


def _expected(error: ErrorDetails) -> str:
    if error["type"] in _EXPECTED:
        return _EXPECTED[error["type"]]
    said = error["msg"].removeprefix("Input should be ")
    bound = error["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of")
    return "" if said == error["msg"] else f"a number {said}" if bound else said


@dataclass
class _Tree:
    """The merged values on their way to a model, and where each came from."""

    model: type[BaseModel]
    path: Path | None
    tagged: tuple[Key, ...]
    values: dict[str, Any] = field(default_factory=dict)
    given: list[Key] = field(default_factory=list)  # keys that overrides have set

    def defaults(self) -> dict[str, Any]:
        """The models' own defaults of tagged blocks, so that a layer can change one field and leave the name."""
        layer: dict[str, Any] = {}
        for key in self.tagged:
            for part in _models_at(self.model, key[:-1]):
                info = part.model_fields.get(key[-1])
                default = None if info is None else info.get_default(call_default_factory=True)
                if isinstance(default, str | Mapping | list):
                    block = layer
                    for name in key[:-1]:
                        block = block.setdefault(name, {})
                    block[key[-1]] = default
        return layer

    def override(self, text: str) -> None:
        """Set one `key.sub=value`."""
        dotted, equals, right = text.partition("=")
        key = tuple(dotted.strip().split("."))
        if not equals or not all(key):
            raise PreftuneError(f"the override {short(text)!r} is not of the form key.sub=value")
        if len(key) > DEEPEST:
            raise PreftuneError(f"the override {short(text)!r} has too many parts: no key has more than {DEEPEST}")
        new, node = value(right, text), self.values
        for depth in range(1, len(key)):
            node = self._enter(node, key[:depth], text)
        if key[-1] == "name" and isinstance(node, dict) and _is_tagged(key[:-1], self.tagged):
            self._rename(node, key[:-1], new)
        self._set(node, key, new, text)
        self.given.append(key)

    def _rename(self, block: dict[str, Any], key: Key, name: Any) -> None:
        """Drop the fields that were meant for another name, but none that an override gave."""
        if block.get("name") != name:
            for old in [old for old in block if (*key, old) not in self.given]:
                del block[old]

    def _enter(self, node: Any, key: Key, text: str) -> Any:
        """The mapping or list under a key; made where there is none."""
        child = node[self._index(node, key, text)] if isinstance(node, list) else node.get(key[-1])
        if isinstance(child, dict | list):
            return child
        if child is not None and not (isinstance(child, str) and _is_tagged(key, self.tagged)):
            raise PreftuneError(f"cannot apply {short(text)!r}: {self.where(key)} is {found(child)}, which has no keys")
        child = {} if child is None else {"name": child}
        self._set(node, key, child, text)
        return child

    def _set(self, node: Any, key: Key, new: Any, text: str) -> None:
        if isinstance(node, list):
            node[self._index(node, key, text)] = new
        elif key[-1].isdecimal() and _is_tagged(key[:-1], self.tagged):
            raise PreftuneError(
                f"cannot apply {short(text)!r}: {self.where(key[:-1])} is one block, not a list of them"
            )
        else:
            node[key[-1]] = new

    def _index(self, node: list[Any], key: Key, text: str) -> int:
        if not key[-1].isdecimal() or int(key[-1]) >= len(node):
            raise PreftuneError(
                f"cannot apply {short(text)!r}: {self.where(key[:-1])} is a list of {len(node)}, "
                f"so {key[-1]} must be an index below {len(node)}"
            )
        return int(key[-1])

    def plain(self, node: Any, key: Key = ()) -> Any:
        """The values as JSON knows them. Refuses what it does not know (from Python callers), and values that are
        nothing but `${a.b}` or `${resolver:...}`, which other tools would replace."""
        if isinstance(node, dict):
            return {name: self.plain(child, (*key, str(name))) for name, child in node.items()}
        if isinstance(node, list):
            return [self.plain(child, (*key, str(index))) for index, child in enumerate(node)]
        if isinstance(node, os.PathLike):
            return os.fspath(node)
        if not isinstance(node, str | int | float | None):
            raise PreftuneError(f"{self.where(key)} is {found(node)}, expected a plain value")
        if isinstance(node, str) and not is_text(node):
            raise PreftuneError(f"{self.where(key)} holds a NUL or half a surrogate pair, expected text")
        if isinstance(node, str) and _INTERPOLATION.fullmatch(node):
            raise PreftuneError(
                f"{self.where(key)} is {node.strip()}, but nothing is interpolated, because secrets would end up in "
                "the run folder; write the value itself"
            )
        if isinstance(node, str) and is_secret(node, key[-1] if key else ""):
            raise PreftuneError(
                f"{self.where(key)} looks like an API key or a password, which would end up in the run folder: leave "
                "it out, and set it as a variable of the environment"
            )
        return node

    def where(self, key: Key) -> str:
        """A key and its source, for messages."""
        if any(key[: len(given)] == given for given in self.given):
            return f"{_dotted(key)} on the command line"
        return _dotted(key) if self.path is None else f"{_dotted(key)} in {self.path}"

    def sources(self, before: str = " ", after: str = "") -> str:
        """Where any key may come from, for messages about what is missing or fits no single key."""
        given = ["in " + str(self.path)] if self.path else []
        given += ["on the command line"] if self.given else []
        return f"{before}{' or '.join(given)}{after}" if given else ""

    def sentence(self, errors: Sequence[ErrorDetails]) -> str:
        """One sentence for the first mistake; unknown keys come first, because they explain missing ones."""
        located = [(self._key(error), error) for error in errors]
        for key, error in located:
            if error["type"] == "extra_forbidden":
                return f"unknown key {self.where(key)}{self._suggest(key)}"
        first = located[0][0]
        for key, _ in located:  # of a union, the branch that got furthest is the one that was meant
            if len(key) > len(first) and key[: len(first)] == first:
                first = key
        same = [error for key, error in located if key == first]
        if not first:
            return f"the config{self.sources()} {complaint(same)}"
        if same[0]["type"] == "missing":
            return f"the key {_dotted(first)} is missing{self.sources()}{self._about(first)}"
        return f"{self.where(first)} {complaint(same)}"

    def _key(self, error: ErrorDetails) -> Key:
        node: Any = self.values
        key: Key = ()
        for part in error["loc"]:  # parts that are not in the tree name a branch of a union or a validator
            inside = part in node if isinstance(node, dict) else isinstance(node, list) and part in range(len(node))
            if inside:
                node, key = node[part], (*key, str(part))
        return (*key, str(error["loc"][-1])) if error["type"] == "missing" else key

    def _suggest(self, key: Key) -> str:
        siblings = [name for part in _models_at(self.model, key[:-1]) for name in part.model_fields]
        close = difflib.get_close_matches(key[-1], siblings, n=1)
        if close:
            return f"; did you mean {'.'.join((*key[:-1], close[0]))}?"
        elsewhere = {dotted.rpartition(".")[2]: dotted for dotted in _keys(self.model)}
        close = difflib.get_close_matches(key[-1], list(elsewhere), n=1, cutoff=0.8)
        return f"; did you mean {elsewhere[close[0]]}?" if close else f"; known keys there: {', '.join(siblings)}"

    def _about(self, key: Key) -> str:
        for part in _models_at(self.model, key[:-1]):
            if key[-1] in part.model_fields and (text := part.model_fields[key[-1]].description):
                return f": {text[0].lower() + text[1:].rstrip('.')}"
        return ""


def _dotted(key: Key) -> str:
    return ".".join(map(short, key))


def _merge(lower: Any, upper: Any, tagged: tuple[Key, ...], key: Key = ()) -> Any:
    """Mappings merge, everything else is replaced; a tagged block of another name is replaced as a whole."""
    if isinstance(upper, list | tuple):
        return [_merge(None, each, tagged, (*key, str(index))) for index, each in enumerate(upper)]
    if not isinstance(upper, Mapping):
        return upper
    if _is_tagged(key, tagged):
        lower = {"name": lower} if isinstance(lower, str) else lower
        if isinstance(lower, Mapping) and upper.get("name", lower.get("name")) != lower.get("name"):
            lower = {}
    merged = dict(lower) if isinstance(lower, Mapping) else {}
    for name, each in upper.items():
        merged[name] = _merge(merged.get(name), each, tagged, (*key, name))
    return merged


def _is_tagged(key: Key, tagged: tuple[Key, ...]) -> bool:
    return key in tagged or (len(key) > 1 and key[-1].isdecimal() and key[:-1] in tagged)


def _models_at(model: type[BaseModel], key: Key) -> list[type[BaseModel]]:
    """The models that a mapping under this key may be read as."""
    here = [model]
    for name in key:
        known = [part for part in here if name in part.model_fields]
        if known:  # else it is an index of a list, or a key of a free mapping
            here = [inner for part in known for inner in models_in(part.model_fields[name].annotation)]
    return here


def _models(model: type[BaseModel], above: tuple[type[BaseModel], ...] = ()) -> Iterator[type[BaseModel]]:
    if model not in above:
        yield model
        for info in model.model_fields.values():
            for inner in models_in(info.annotation):
                yield from _models(inner, (*above, model))


def _keys(model: type[BaseModel], above: tuple[type[BaseModel], ...] = ()) -> Iterator[str]:
    if model not in above:
        for name, info in model.model_fields.items():
            yield name
            for inner in models_in(info.annotation):
                yield from (f"{name}.{key}" for key in _keys(inner, (*above, model)))

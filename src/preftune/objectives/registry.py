"""Objectives by name: a file in this folder is an objective, its stem is the name, and that is all there is to do.

Names and summaries are read from the source (`ast`), so that listing them imports nothing. A user's own objective is
named `package.module:Class`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from preftune.objectives.base import DataKind, Objective

DEFAULT = "dpo"  # of a config that names none
# How rewards are read where no run says it, each at its defaults; demonstrations have none.
BY_KIND: Mapping[DataKind, str] = {"pairs": DEFAULT, "labels": "kto", "rankings": "plackett_luce"}
REWARD_MODEL = "bradley_terry"
RESERVED = ("name", "weight", "modifiers")


@dataclass(frozen=True)
class Term:
    """One objective of a run, and its weight in the sum.

    Attributes:
        name: as in the config: a file stem, or `package.module:Class`.
        objective: with its hyperparameters.
        weight: factor of its mean loss; finite and > 0.
    """

    name: str
    objective: Objective
    weight: float = 1.0

    def __post_init__(self) -> None:
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not (number and 0 < self.weight < math.inf):
            raise PreftuneError(
                f"objective {self.name}: weight must be a finite number > 0, got {self.weight!r}; "
                "leave the objective out to switch it off"
            )


@cache
def _sources() -> dict[str, ast.ClassDef]:
    """The class of every objective of ours, by name, as parsed source: the derived dataclass named like its file."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.ClassDef)
                and node.name.lower() == path.stem.replace("_", "")
                and node.bases
                and any("dataclass" in ast.unparse(each) for each in node.decorator_list)
            ):
                found[path.stem] = node
    return found


def names() -> list[str]:
    """Names of our objectives, in alphabetical order."""
    return list(_sources())


def class_names() -> dict[str, str]:
    """Class of each of our objectives, by objective name."""
    return {name: node.name for name, node in _sources().items()}


def summaries() -> dict[str, str]:
    """First line of each of our objectives' docstrings, by objective name."""
    return {name: (ast.get_docstring(node) or "").partition("\n")[0] for name, node in _sources().items()}


def resolve(name: str) -> type[Objective]:
    """The class that a name stands for.

    Args:
        name: a name from `names()`, or `package.module:Class`.

    Raises:
        PreftuneError: if there is no such module or class, or the class is no complete objective.
    """
    from preftune.objectives.base import Objective
    from preftune.yaml_tree import nearest

    if not isinstance(name, str):
        raise PreftuneError(f"an objective's name must be text, got {name!r}; known: {', '.join(names())}")
    module_name, colon, class_name = name.partition(":")
    if colon:
        module = _import(module_name, name)
    elif name in _sources():
        module, class_name = importlib.import_module(f"preftune.objectives.{name}"), _sources()[name].name
    else:
        raise PreftuneError(f"unknown objective {name!r}{nearest(name, names())} (your own: package.module:Class)")
    known = [key for key, each in vars(module).items() if inspect.isclass(each) and issubclass(each, Objective)]
    found = getattr(module, class_name, None)
    if found is None:
        raise PreftuneError(f"objective {name}: module {module_name} has no {class_name}{nearest(class_name, known)}")
    if not (inspect.isclass(found) and issubclass(found, Objective)):
        raise PreftuneError(f"objective {name}: {class_name} is not a subclass of preftune.objectives.Objective")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise PreftuneError(f"objective {name}: {class_name} is abstract, it has yet to define {missing}")
    if "__dataclass_fields__" not in vars(found):  # inherited fields do not count
        raise PreftuneError(f"objective {name}: {class_name} must be decorated with @dataclass(frozen=True)")
    if taken := [field for field in _fields(found) if field in RESERVED]:
        raise PreftuneError(f"objective {name}: the field {taken[0]} is reserved for the config; rename it")
    return found


def build(name: str, modifiers: Mapping[str, Any] | None = None, **hyperparameters: Any) -> Objective:
    """An objective by name.

    Args:
        name: a name from `names()`, or `package.module:Class`.
        modifiers: fields of `modifiers.Modifiers`; none: the objective as it is.
        **hyperparameters: the fields of the class; defaults for the rest.

    Raises:
        PreftuneError: one sentence, if the name or a field is unknown, or a value has the wrong type or is refused, or
            a modifier makes no sense for the objective.

    Example:
        >>> build("ipo", tau=0.5, average="mean")
        IPO(tau=0.5, average='mean')
        >>> build("dpo", modifiers={"temperature": 2.0}).describe()["modifiers"]["temperature"]
        2.0
    """
    from preftune.objectives.modifiers import Modified, Modifiers

    cls = resolve(name)
    objective: Objective = _made(cls, f"objective {name}", "field", hyperparameters, _fields(Modifiers))
    if modifiers is None:
        return objective
    if not isinstance(modifiers, Mapping):
        raise PreftuneError(
            f"objective {name}: modifiers is {modifiers!r}, expected a mapping such as {{temperature: 2}}"
        )
    given: Modifiers = _made(Modifiers, f"objective {name}: modifiers", "field", modifiers)
    try:
        return Modified(objective, given) if given.given() else objective
    except ValueError as error:  # this objective refuses one of them
        raise PreftuneError(f"objective {name}: {error}") from None


def _made(cls: type[Any], where: str, what: str, values: Mapping[str, Any], elsewhere: Collection[str] = ()) -> Any:
    """A dataclass from plain values, or one sentence that says what is wrong with them."""
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    from preftune.yaml_text import found
    from preftune.yaml_tree import complaint, nearest

    for key, value in values.items():
        if key not in _fields(cls):
            meant = f"; did you mean modifiers.{key}?" if key in elsewhere else nearest(key, _fields(cls))
            raise PreftuneError(f"{where} has no {what} {key}{meant}")
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise PreftuneError(f"{where}: {key} is {found(value)}, expected a plain value") from None
    try:
        # JSON mode: strict about types, yet takes a list for a tuple and a text for an enum
        return TypeAdapter(cls).validate_json(json.dumps(dict(values)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # from __post_init__
            raise PreftuneError(f"{where} is refused: {first.get('ctx', {}).get('error', first['msg'])}") from None
        same = [each for each in error.errors() if each["loc"][:1] == first["loc"][:1]]
        raise PreftuneError(f"{where}: {first['loc'][0]} {complaint(same)}") from None
    except PydanticUserError as error:
        problem = str(error).splitlines()[0]
        raise PreftuneError(f"{where}: a field has a type that no config can hold: {problem}") from None


def terms(spec: Any) -> tuple[Term, ...]:
    """The weighted objectives that a config or a caller names.

    Args:
        spec: a name, an `Objective`, a `Term`, a mapping {name, weight (default 1), fields...}, or a list of those.

    Raises:
        PreftuneError: one sentence, if it is none of these or any part of it is refused.

    Example:
        >>> [(t.name, t.weight) for t in terms(["dpo", {"name": "sft", "weight": 0.1}])]
        [('dpo', 1.0), ('sft', 0.1)]
    """
    if not isinstance(spec, list | tuple):
        return (_term(spec, ""),)
    if not spec:
        raise PreftuneError(f"the list of objectives is empty; known: {', '.join(names())}")
    return tuple(_term(each, f".{index}") for index, each in enumerate(spec))


def spec_of(terms: Iterable[Term]) -> dict[str, Any] | list[dict[str, Any]]:
    """The terms as plain config, with every field resolved; `terms` reads it back."""
    blocks = [{"name": term.name, "weight": term.weight, **term.objective.describe()} for term in terms]
    return blocks[0] if len(blocks) == 1 else blocks


def needs_reference(terms: Iterable[Term]) -> bool:
    """True if any term compares the policy with a reference."""
    return any(term.objective.reference for term in terms)


def needs(terms: Iterable[Term]) -> frozenset[str]:
    """Names of the optional `LogProbs` fields that any term reads."""
    return frozenset[str]().union(*(term.objective.needs for term in terms))


def data_kind(terms: Iterable[Term]) -> DataKind:
    """The kind of data that the terms train on together: pairs, if they differ, because pairs serve every objective.

    Example:
        >>> data_kind(terms("kto")), data_kind(terms(["dpo", "sft"]))
        ('labels', 'pairs')
    """
    kinds = {term.objective.data for term in terms}
    return kinds.pop() if len(kinds) == 1 else "pairs"


def _term(spec: Any, position: str) -> Term:
    from preftune.objectives.base import Objective
    from preftune.objectives.modifiers import Modified

    match spec:
        case Term():
            return spec
        case str():
            return Term(spec, build(spec))
        case Objective():
            return Term(_name_of(type(spec.inner if isinstance(spec, Modified) else spec)), spec)
        case Mapping():
            given = dict(spec)
            if given.get("name") is None:
                raise PreftuneError(f"objective{position} has no name; known: {', '.join(names())}")
            name, weight = given.pop("name"), given.pop("weight", 1.0)
            return Term(name, build(name, **given), weight)
    raise PreftuneError(
        f"objective{position} is {spec!r}, expected a name, a mapping such as {{name: dpo, beta: 0.1}}, "
        "an Objective, or a list of these"
    )


def _name_of(kind: type[Objective]) -> str:
    package, _, stem = kind.__module__.rpartition(".")
    ours = package == "preftune.objectives" and class_names().get(stem) == kind.__name__
    return stem if ours else f"{kind.__module__}:{kind.__qualname__}"


def _fields(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind) if field.init]


def _import(module: str, name: str) -> Any:
    """Import a user's module, or say in one sentence why it cannot be."""
    from preftune.importing import imported

    try:
        return imported(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        where = "in the current folder or the environment"
        if missing == module or module.startswith(missing + "."):
            raise PreftuneError(f"objective {name}: there is no module {missing} {where}") from None
        raise PreftuneError(f"objective {name}: module {module} imports {missing}, which is not installed") from error
    except (Exception, SystemExit) as error:  # whatever a user's module does while it is imported
        problem = " ".join(str(error).split())
        raise PreftuneError(
            f"objective {name}: importing {module} failed with {type(error).__name__}: {problem}"
        ) from error

"""The public names: they are there, they are documented, and importing them does no work."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import preftune
from preftune import objectives


def modules() -> list[str]:
    found = pkgutil.walk_packages(preftune.__path__, "preftune.")
    return [info.name for info in found if not info.name.endswith("__main__")]


def test_every_public_name_is_there_and_documented() -> None:
    for name in preftune.__all__:
        value = getattr(preftune, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(value), name
    assert dir(preftune) == preftune.__all__
    assert sorted(preftune.__all__) == preftune.__all__
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = preftune.no_such_name


@pytest.mark.parametrize("name", [name for name in preftune.__all__ if name != "__version__"])
def test_each_public_name_imports_alone(name: str) -> None:
    """`from preftune import X` in a fresh interpreter, whatever else was imported before in this one."""
    assert getattr(importlib.import_module("preftune"), name) is getattr(preftune, name)


def test_from_preftune_import_star() -> None:
    names: dict[str, object] = {}
    exec("from preftune import *", names)
    assert set(preftune.__all__) <= set(names)


def test_objectives_export_what_they_say() -> None:
    for name in objectives.__all__:
        assert inspect.getdoc(getattr(objectives, name)), name


@pytest.mark.parametrize("name", modules())
def test_every_module_imports_and_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    package_without_words = module.__file__ is not None and module.__file__.endswith("__init__.py")
    assert module.__doc__ or package_without_words
    for exported in getattr(module, "__all__", []):
        assert hasattr(module, exported), f"{name}.{exported}"


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
            yield name, value


@pytest.mark.parametrize("name", modules())
def test_every_public_function_has_annotations(name: str) -> None:
    """The package says that it is typed."""
    for function, value in public(importlib.import_module(name)):
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            untyped = [p for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
            assert not untyped, function
            assert signature.return_annotation is not inspect.Signature.empty, function


def test_the_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert preftune.__version__ == version("preftune")


def test_the_error_is_an_exception_that_says_one_thing() -> None:
    assert issubclass(preftune.PreftuneError, Exception)
    assert str(preftune.PreftuneError("what is wrong")) == "what is wrong"

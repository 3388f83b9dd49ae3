"""Preferences made from verifiable tasks: a right answer is better than a wrong one.

`names()` lists the tasks, `get("gsm8k")` gives one; a user's own is named "package.module:Class". A task is a file of
this folder with a subclass of `Task`; nothing else registers it.
"""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

from preftune.data.builders.base import Question, Task, right_over_wrong
from preftune.errors import PreftuneError
from preftune.importing import imported

__all__ = ["Question", "Task", "get", "names", "right_over_wrong"]


def names() -> dict[str, str]:
    """The built-in tasks: name -> first line of the class's docstring. Reads the files without importing them."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Task" for b in node.bases):
                found[path.stem] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


def get(name: str) -> Task:
    """A task by name, or a user's own by "package.module:Class".

    Raises:
        PreftuneError: if there is no such task.
    """
    module, _, class_name = name.partition(":")
    if not class_name:
        known = names()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "or give your own as package.module:Class"
            raise PreftuneError(f"there is no task {name!r}; known: {', '.join(known)}; {hint}")
        module = f"{__name__}.{name}"
    try:
        found = imported(module)
    except (Exception, SystemExit) as error:  # whatever a user's module does while it is imported
        problem = " ".join(str(error).split())
        raise PreftuneError(f"task {name!r}: cannot import {module} ({type(error).__name__}: {problem})") from error
    classes = [
        value
        for key, value in vars(found).items()
        if isinstance(value, type)
        and issubclass(value, Task)
        and (key == class_name if class_name else value.__module__ == module)
    ]
    if len(classes) != 1:
        raise PreftuneError(f"task {name!r}: {module} has no class {class_name} that derives from preftune's Task")
    return classes[0]()

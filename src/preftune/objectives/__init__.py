"""Objectives: pure functions of log-probabilities, one per file.

Names are looked up when they are used, so importing this package does not import torch.

Example:
    >>> from preftune.objectives import DPO, build
    >>> DPO(beta=0.2) == build("dpo", beta=0.2)
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from preftune.objectives.registry import Term, build, class_names, names, resolve, spec_of, summaries, terms

if TYPE_CHECKING:
    from preftune.objectives.base import Objective, Outcome, PairResult
    from preftune.objectives.batch import LogProbs, Role
    from preftune.objectives.modifiers import Modified, Modifiers
    from preftune.objectives.pairs import PairObjective, Pairs

_CLASSES = {kind: name for name, kind in class_names().items()}

__all__ = [
    "LogProbs",
    "Modified",
    "Modifiers",
    "Objective",
    "Outcome",
    "PairObjective",
    "PairResult",
    "Pairs",
    "Role",
    "Term",
    "build",
    "names",
    "resolve",
    "spec_of",
    "summaries",
    "terms",
]
__all__ += _CLASSES
_CLASSES |= {"Modified": "modifiers", "Modifiers": "modifiers", "LogProbs": "batch", "Role": "batch"}
_CLASSES |= {"PairObjective": "pairs", "Pairs": "pairs"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_CLASSES.get(name, 'base')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

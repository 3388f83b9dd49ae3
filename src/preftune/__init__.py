"""preftune: align any causal language model on preference data, and prove what it did.

import preftune
run = preftune.train("sandbox", "sandbox", "dpo")
run.plot()
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives; loaded on first use, so that importing preftune does no work.
_HOMES = {
    "train": "preftune.api",
    "resume": "preftune.api",
    "sweep": "preftune.sweeping.sweep",
    "evaluate": "preftune.evaluation.evaluate",
    "open_for_evaluation": "preftune.evaluation.opening",
    "score": "preftune.evaluation.scoring",
    "optimize_prompt": "preftune.prompting.using",
    "Run": "preftune.run",
    "RunConfig": "preftune.config",
    "PreftuneError": "preftune.errors",
    "objectives": "preftune.objectives",
}
__all__ = [
    "PreftuneError",
    "Run",
    "RunConfig",
    "__version__",
    "evaluate",
    "objectives",
    "open_for_evaluation",
    "optimize_prompt",
    "resume",
    "score",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return getattr(module, name, module)  # `objectives` is a module itself


def __dir__() -> list[str]:
    return __all__

"""Importing a user's module."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def imported(module: str) -> Any:
    """Import a user's module; the current folder counts, as it does for a Python script."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)

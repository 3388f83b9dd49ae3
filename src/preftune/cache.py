"""Where preftune keeps what it can always make again: tokenised data, stored log-probs of references."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PREFTUNE_CACHE"


def cache_folder(kind: str) -> Path:
    """The folder for one kind of thing; it need not exist, and may be deleted at any time between runs.

    It lies in the folder that the environment variable PREFTUNE_CACHE names, else in the user's cache folder.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser() / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preftune" / kind

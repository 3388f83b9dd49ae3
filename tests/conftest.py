"""Makes `tests/miniatures.py` importable from every room of the tests, and keeps them out of the user's cache."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
# set here and not in a fixture: other fixtures of the whole session, and commands they start, train models too
os.environ["PREFTUNE_CACHE"] = tempfile.mkdtemp(prefix="preftune-tests-")
# The same cases each time, so that what lands is what was tested; `make fuzz` looks further.
settings.register_profile("fixed", derandomize=True)
if os.environ.get("PREFTUNE_FUZZ", "1") == "1":
    settings.load_profile("fixed")

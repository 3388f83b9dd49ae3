"""Makes `tests/miniatures.py` importable from every room of the tests, and keeps them out of the user's cache."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# set here and not in a fixture: other fixtures of the whole session, and commands they start, train models too
os.environ["PREFTUNE_CACHE"] = tempfile.mkdtemp(prefix="preftune-tests-")

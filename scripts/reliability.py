"""Writes the generated part of docs/reliability.md: each bad input of tests/bad_input is made, met, and quoted.

python scripts/reliability.py
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"


def main() -> None:
    """Run every case in a folder of its own, and write the page."""
    sys.path.insert(0, str(ROOT / "tests"))
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PREFTUNE_CACHE"] = str(Path(scratch, "cache"))
        from bad_input import BadInput, Said, carry_out, page

        def outcome(case: BadInput) -> Said:
            return carry_out(case, Path(tempfile.mkdtemp(dir=scratch)))

        PAGE.write_text(page.replaced(PAGE.read_text(encoding="utf-8"), outcome), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()

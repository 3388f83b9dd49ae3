"""Bad input: one list, which the tests run and docs/reliability.md is made from.

Each case makes its input in an empty folder, and names the command that meets it and words of what is said.
"""

from __future__ import annotations

from bad_input.case import BadInput, Said, carry_out, snapshot
from bad_input.configs import CONFIGS
from bad_input.disks import DISKS
from bad_input.files import FILES
from bad_input.models import MODELS
from bad_input.online import ONLINE
from bad_input.prompts import PROMPTS
from bad_input.rows import ROWS
from bad_input.runs import RUNS
from bad_input.settings import SETTINGS

GROUPS: dict[str, tuple[BadInput, ...]] = {
    "Rows": ROWS,
    "Settings": SETTINGS,
    "Files of data": FILES,
    "Config files": CONFIGS,
    "Models": MODELS,
    "Runs": RUNS,
    "Answers of its own": ONLINE,
    "Prompts": PROMPTS,
    "Disks and folders": DISKS,
}
ALL = tuple(case for group in GROUPS.values() for case in group)

__all__ = ["ALL", "GROUPS", "BadInput", "Said", "carry_out", "snapshot"]

"""What kind of thing a run trained, as far as its objective says; nothing is imported to find out."""

from __future__ import annotations

from preftune.objectives.catalogue import Entry, entry
from preftune.objectives.registry import names
from preftune.report.reading import RunData
from preftune.report.values import name_of


def objectives(run: RunData) -> list[str]:
    """Names of the objectives of a run, as its config has them, or else its summary."""
    found = name_of(run.config.get("objective")) or run.summary.get("objective")
    return [name.strip() for name in found.split("+")] if isinstance(found, str) and found else []


def is_reward_model(run: RunData) -> bool:
    """True if it trained a scalar head, which scores responses and has neither log-probs nor a reference."""
    found = _known(run)
    return bool(found) and all(one.family == "Reward models" for one in found)


def has_reference(run: RunData) -> bool:
    """False if no objective of the run compares the policy with a reference. A user's own counts as one that does."""
    found = _known(run)
    return any(one.reference for one in found) or len(found) < len(objectives(run)) or not found


def learns_preferences(run: RunData) -> bool:
    """False if the run only imitates. A user's own objective counts as one that learns preferences."""
    found = _known(run)
    return any(one.data != "demonstrations" for one in found) or len(found) < len(objectives(run)) or not found


def _known(run: RunData) -> list[Entry]:
    """Those that are ours: of a user's own nothing is known without importing it."""
    ours = names()
    return [entry(name) for name in objectives(run) if name in ours]

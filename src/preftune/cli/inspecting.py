"""Commands that look into a run."""

from __future__ import annotations

PANEL = "Evidence"

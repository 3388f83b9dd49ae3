"""Commands that compare answers, and that serve a model."""

from __future__ import annotations

PANEL = "Evidence"

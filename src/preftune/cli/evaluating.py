"""Commands that measure and use a trained model."""

from __future__ import annotations

PANEL = "Evidence"

"""All rules, in the order in which findings are told."""

from __future__ import annotations

from preftune.training.doctor import answers, generalisation, likelihood, movement, settings
from preftune.training.doctor.record import Rule

GROUPS = (settings, movement, likelihood, answers, generalisation)
RULES: tuple[Rule, ...] = tuple(rule for group in GROUPS for rule in group.RULES)

"""From lines of metrics to findings: the state of the doctor is a function of metrics.jsonl alone."""

from __future__ import annotations

import json
from collections.abc import Iterable

from preftune.training.doctor.config import DoctorConfig
from preftune.training.doctor.record import Facts, Finding, Line, Record
from preftune.training.doctor.rules import RULES
from preftune.training.run_folder import to_json

OF_POLICY = ("sample_", "untrained_")  # metrics of a policy itself, and not of the data that it learns from


class Doctor:
    """Judges a run by its record, and says each thing once.

    Args:
        config: which rules, and where they fire.
        facts: what is known of the run before its first step.

    Attributes:
        record: of the run so far.
        said: names of the rules that have fired.
    """

    def __init__(self, config: DoctorConfig, facts: Facts) -> None:
        self.config, self.record = config, Record(facts)
        self.said: dict[str, Line] = {}
        self.rules = [rule for rule in RULES if rule.name not in config.off]
        if facts.online:  # chosen and rejected change from round to round there
            self.rules = [rule for rule in self.rules if all(name.startswith(OF_POLICY) for name in rule.needs)]

    def see(self, line: Line) -> None:
        """Take note of a line of metrics."""
        line = json.loads(to_json(line))  # as it is read again when a run goes on
        if line["kind"] == "doctor":
            self.said[line["rule"]] = line
        else:
            self.record.add(line)

    def read(self, lines: Iterable[str]) -> None:
        """Take note of what metrics.jsonl holds."""
        for line in lines:
            self.see(json.loads(line))

    def judge(self) -> list[Finding]:
        """Rules that fire for the first time; they count as said when their lines are seen."""
        return [found for found in self._found() if found.rule.name not in self.said]

    def standing(self) -> list[Line]:
        """Lines of all rules that fire now, those that have not fired before included; rows are those of the first
        time."""
        lines: list[Line] = []
        for found in self._found():
            first = self.said.get(found.rule.name, {})
            lines.append({**found.line(), **({"rows": first["rows"]} if "rows" in first else {})})
        return lines

    def _found(self) -> list[Finding]:
        signs = [(rule, rule.check(self.record, self.config)) for rule in self.rules]
        return [Finding(rule, sign, self.record.step) for rule, sign in signs if sign is not None]

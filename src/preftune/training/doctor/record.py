"""What rules read, and what they say: the record of a run so far, rules, and findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from preftune.training.doctor.config import DoctorConfig

Line = Mapping[str, Any]
Severity = Literal["information", "warning"]


@dataclass(frozen=True)
class Facts:
    """What is known of a run before its first step.

    Attributes:
        objective: its name.
        reference: True if the objective compares the policy with its own start.
        steps: optimiser steps of the whole run.
        warmup: optimiser steps in which the learning rate still rises.
        reach: difference of log-ratios, in nats, at which nine tenths of the objective's first gradient are gone; None
            where beta or tau do not set it.
        length: tokens of a response, on average.
        frozen: names of parameters that do not train although no adapter or quantised base explains it.
        frozen_share: of all parameters, those.
        online: True if the policy learns from its own answers: nothing is said of data then.
    """

    objective: str = ""
    reference: bool = True
    steps: int = 1
    warmup: int = 0
    reach: float | None = None
    length: float = 1.0
    frozen: tuple[str, ...] = ()
    frozen_share: float = 0.0
    online: bool = False


@dataclass
class Record:
    """A run so far.

    Attributes:
        facts: what was known before its first step.
        train: lines of metrics of kind "train", in order.
        evals: those of kind "eval", the look at the start first.
        probes: what a user's probe measured at the start and at the end, in this order.
    """

    facts: Facts = field(default_factory=Facts)
    train: list[Line] = field(default_factory=list)
    evals: list[Line] = field(default_factory=list)
    probes: list[Line] = field(default_factory=list)

    def add(self, line: Line) -> None:
        """A further line of metrics; those of other kinds are left out."""
        if line["kind"] == "train":
            self.train.append(line)
        elif line["kind"] == "eval":
            self.evals.append(line)

    @property
    def step(self) -> int:
        """Optimiser steps done at the last line."""
        return max((int(lines[-1]["step"]) for lines in (self.train, self.evals) if lines), default=0)

    def start(self, key: str) -> float | None:
        """What a metric was at the look at the start."""
        return number(self.evals[0], key) if self.evals and self.evals[0]["step"] == 0 else None

    def now(self, key: str) -> float | None:
        """What a metric was at the last evaluation; None if that was the look at the start."""
        return number(self.evals[-1], key) if self.evals and self.evals[-1]["step"] > 0 else None

    def recent(self, key: str, count: int = 3) -> float | None:
        """Mean of a metric over the last lines of training; None if there are fewer."""
        return _mean(self.train[-count:], key, count)

    def first(self, key: str, count: int = 3) -> float | None:
        """Mean of a metric over the first lines of training; None if there are fewer."""
        return _mean(self.train[:count], key, count)


@dataclass(frozen=True)
class Sign:
    """What makes a rule fire.

    Attributes:
        value: the number that the rule compares.
        figure: a short phrase with the number.
    """

    value: float
    figure: str


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong.

    Attributes:
        name: in configs, files and reports.
        severity: "warning" if something should be done, "information" if it should be known.
        needs: metrics that it reads, as `training.metrics` defines them; without them it stays silent.
        threshold: when it fires, in words, and why there.
        explanation: two sentences.
        remedy: one sentence.
        check: finds the sign in a record, if it is there.
    """

    name: str
    severity: Severity
    needs: tuple[str, ...]
    threshold: str
    explanation: str
    remedy: str
    check: Callable[[Record, DoctorConfig], Sign | None]

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Finding:
    """A rule that fired.

    Attributes:
        rule: which.
        sign: what made it fire.
        step: optimiser steps done by then.
        rows: of the data, those that it is about most; empty if it is about no single rows.
    """

    rule: Rule
    sign: Sign
    step: int
    rows: Sequence[int] = ()

    def line(self) -> dict[str, Any]:
        """For metrics.jsonl and summary.json."""
        return {
            "kind": "doctor",
            "step": self.step,
            "rule": self.rule.name,
            "severity": self.rule.severity,
            "value": self.sign.value,
            "figure": self.sign.figure,
            "explanation": self.rule.explanation,
            "remedy": self.rule.remedy,
            **({"rows": list(self.rows)} if self.rows else {}),
        }

    def sentence(self) -> str:
        """For a terminal: what was found, and what to do."""
        return f"{self.said}. {self.rule.remedy}"

    def clause(self) -> str:
        """The same as a part of a sentence."""
        return f"{self.said} ({self.rule.remedy[0].lower()}{self.rule.remedy[1:].rstrip('.')})"

    @property
    def said(self) -> str:
        """What was found."""
        named = f" (rows {', '.join(map(str, self.rows))})" if self.rows else ""
        return f"step {self.step}, {self.rule.severity}: {self.rule.title}: {self.sign.figure}{named}"


def number(line: Line, key: str) -> float | None:
    """A metric of a line; None if it is not there, or not a number."""
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else None


def _mean(lines: Sequence[Line], key: str, count: int) -> float | None:
    values = [value for line in lines if (value := number(line, key)) is not None]
    return sum(values) / count if len(values) == count else None

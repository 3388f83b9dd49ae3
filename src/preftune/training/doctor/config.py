"""Which rules are looked at, where they fire, and which of them stop a run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from preftune.training.doctor.rules import RULES
from preftune.yaml_text import short

ANY = "any"
NAMES = tuple(rule.name for rule in RULES)


class DoctorConfig(BaseModel):
    """What is looked for while training runs (docs/training-doctor.md lists the rules), and what stops it."""

    model_config = ConfigDict(extra="forbid")

    off: list[str] = Field(default_factory=list, description="rules that are not looked at")
    stop: list[str] = Field(
        default_factory=list,
        description="rules that stop the run, with a checkpoint, when they fire; any: every warning",
    )
    answers: int = Field(
        32, ge=0, description="answers sampled at each evaluation, for lengths, ends, repetition and KL; 0: none"
    )
    kl_per_token: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="nats per sampled token from the reference that are too many"
    )
    chosen_fall: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="nats per token that chosen responses may lose before it is said"
    )
    length_growth: float = Field(
        1.3, ge=0, allow_inf_nan=False, description="sampled length, against the start's, that is too long"
    )

    @field_validator("off", "stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("off", "stop")
    @classmethod
    def _known(cls, value: list[str], info: Any) -> list[str]:
        known = (*NAMES, ANY) if info.field_name == "stop" else NAMES
        if strange := [name for name in value if name not in known]:
            raise ValueError(f"there is no rule {short(strange[0])}; known: {', '.join(known)}")
        return value

    def stops(self, name: str, severity: str) -> bool:
        """True if a rule that fires stops the run."""
        return name in self.stop or (ANY in self.stop and severity == "warning")

"""The methods that are compared: what each is trained with, and the strengths at which it is run.

A method's strength is what its paper varies to trade reward against KL. All methods have four strengths and three
learning rates: the same budget, spent on the validation prompts with one seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["reference", "best_of_n", "offline", "online"]
Feedback = Literal["none", "pairs", "learned reward", "true reward"]

RATES = (1e-3, 3e-3, 1e-2)  # of AdamW, for models of 0.1M parameters and fewer


@dataclass(frozen=True)
class Method:
    """One way to align.

    Attributes:
        key: its name in cells.
        title: its name for people.
        kind: "reference": no training; "best_of_n": none either, but more samples; "offline": trained on the pairs;
            "online": trained on its own samples.
        feedback: what tells it what is good.
        strength: name of what is varied: a field of the objective, "updates" (a multiple of the updates that others
            have), or "n".
        strengths: its values.
        objective: name and fields of the objective, but for the strength.
        online: the block `online` of its config, but for what the world says (judge, rounds, prompts).
        rates: learning rates to choose from.
    """

    key: str
    title: str
    kind: Kind
    feedback: Feedback
    strength: str
    strengths: tuple[float, ...]
    objective: Mapping[str, Any] = field(default_factory=dict)
    online: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = RATES

    @property
    def trains(self) -> bool:
        """True if it has updates, and so a learning rate."""
        return self.kind in ("offline", "online")

    def spec(self, strength: float) -> dict[str, Any]:
        """The objective at a strength, as a config has it."""
        varied = {} if self.strength == "updates" else {self.strength: strength}
        return {**self.objective, **varied}

    def updates(self, strength: float, standard: int) -> int:
        """Optimiser steps at a strength, where `standard` is what others have."""
        if not self.trains:
            return 0
        return max(1, round(strength * standard)) if self.strength == "updates" else standard


# A value network that begins at zero has far to go (docs/log.md).
VALUES: Mapping[str, Any] = {"value_clip": None, "value_learning_rate": 5e-3}
_BETAS = (0.1, 0.3, 1.0, 3.0)
_N = (2, 4, 16, 64)


def _pairs(key: str, title: str, strength: str = "beta", strengths: tuple[float, ...] = _BETAS, **more: Any) -> Method:
    return Method(key, title, "offline", "pairs", strength, strengths, {"name": key, **more})


def _online(key: str, title: str, feedback: Feedback, objective: str, **online: Any) -> Method:
    # a reward model's rewards are log-odds of labels, three times the true reward's: so are its prices of a nat
    betas = (0.1, 0.3, 1.0, 3.0) if feedback == "learned reward" or objective == "dpo" else (0.03, 0.1, 0.3, 1.0)
    fields = VALUES if objective == "ppo" else {}
    return Method(key, title, "online", feedback, "beta", betas, {"name": objective, **fields}, online)


def _named(key: str, method: Method) -> Method:
    return Method(**{**vars(method), "key": key})


REFERENCE = Method("reference", "SFT (the reference)", "reference", "none", "n", (1,))

METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        REFERENCE,
        Method("best_of_n", "best of n, learned reward", "best_of_n", "learned reward", "n", _N),
        Method("best_of_n_true", "best of n, true reward", "best_of_n", "true reward", "n", _N),
        Method("sft", "SFT on chosen", "offline", "pairs", "updates", (0.25, 0.5, 1.0, 2.0), {"name": "sft"}),
        _pairs("unlikelihood", "unlikelihood", "alpha", (0.05, 0.1, 0.5, 1.0)),
        _pairs("dpo", "DPO"),
        _pairs("ipo", "IPO", "tau", (0.05, 0.1, 0.3, 1.0)),
        _pairs("kto", "KTO"),
        _pairs("simpo", "SimPO", "beta", (1.0, 2.0, 5.0, 10.0)),
        _pairs("orpo", "ORPO", "lam", (0.1, 0.5, 2.0, 8.0)),
        _named("cdpo", _pairs("dpo", "cDPO (label smoothing 0.1)", label_smoothing=0.1)),
        _pairs("rdpo", "rDPO (flip rate 0.1)", label_smoothing=0.1),
        _pairs("robust_dpo", "robust DPO", eta=0.1),
        _pairs("kl_dpo", "KL-DPO", kl_weight=0.01),
        _pairs("dr_dpo", "Dr. DPO", beta_prime=1.0),
        _online("online_dpo", "online DPO, true reward", "true reward", "dpo", samples=2, labels="sampled"),
        _online("ppo_true", "PPO, true reward", "true reward", "ppo", samples=4, epochs=2),
        _online("ppo", "PPO, learned reward", "learned reward", "ppo", samples=4, epochs=2),
        _online("rloo", "RLOO, learned reward", "learned reward", "rloo", samples=4),
    )
}

"""Rules about how far the policy moves: too far, not any more, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preftune.training.doctor.record import Record, Rule, Sign, number

if TYPE_CHECKING:
    from preftune.training.doctor.config import DoctorConfig

VANISHED = 0.05  # of the first gradient
STILL = 1e-4  # nats of a whole response
WAIT = 10  # steps after which a policy has left its reference
LEAST_STILL = 0.01  # of all parameters


def kl_blow_up(record: Record, config: DoctorConfig) -> Sign | None:
    """The policy's own answers are far from the reference."""
    kl = record.now("sample_kl_per_token")
    if kl is None or kl <= config.kl_per_token:
        return None
    whole = record.now("sample_kl") or 0.0
    return Sign(kl, f"KL to the reference is {whole:.1f} nats per answer, {kl:.2f} per token")


def margin_saturation(record: Record, config: DoctorConfig) -> Sign | None:
    """Next to nothing is left of the gradient."""
    first, now = record.first("gradient_norm"), record.recent("gradient_norm")
    if not first or now is None or len(record.train) < 6 or now >= VANISHED * first:
        return None
    return Sign(now / first, f"the gradient is {now / first:.1%} of what it was in the first steps")


def untrained_parameters(record: Record, config: DoctorConfig) -> Sign | None:
    """Parameters that should train stay as they were."""
    looks = [line for line in record.train if number(line, "untrained_share") is not None]
    if not looks or not looks[-1].get("untrained"):
        return None
    share, names = float(looks[-1]["untrained_share"]), looks[-1]["untrained"]
    if share < LEAST_STILL:
        return None
    named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return Sign(share, f"{share:.0%} of what should train is as it was at the start: {named}")


def frozen_parameters(record: Record, config: DoctorConfig) -> Sign | None:
    """Parameters are frozen although there is no adapter."""
    facts = record.facts
    if facts.frozen_share < LEAST_STILL:
        return None
    named = ", ".join(facts.frozen[:3]) + (", ..." if len(facts.frozen) > 3 else "")
    return Sign(facts.frozen_share, f"{facts.frozen_share:.0%} of the parameters do not train: {named}")


def dead_reference(record: Record, config: DoctorConfig) -> Sign | None:
    """Log-ratios against the policy's own start stay at zero while its weights move."""
    facts = record.facts
    if not facts.reference or record.step < min(facts.warmup + WAIT, facts.steps) or len(record.train) < 2:
        return None
    line = record.train[-1]
    sizes = [value for name in ("delta", "delta_sd", "chosen_reward") if (value := number(line, name)) is not None]
    if not sizes or max(map(abs, sizes)) > STILL:
        return None
    return Sign(max(map(abs, sizes)), f"log-ratios are still below {STILL:g} nats after {record.step} steps")


RULES = (
    Rule(
        name="kl_blow_up",
        severity="warning",
        needs=("sample_kl_per_token",),
        threshold=(
            "KL per sampled token above doctor.kl_per_token, 0.5 nats, as if of each two tokens one were a choice that "
            "the reference makes once in three times; healthy runs stay below a third of it"
        ),
        explanation=(
            "The policy's answers have moved far from the reference's. Beyond this the objective and its data say "
            "little about them, and text breaks in ways that accuracy does not show."
        ),
        remedy="Raise beta (or tau), lower optim.learning_rate, or train fewer steps.",
        check=kl_blow_up,
    ),
    Rule(
        name="margin_saturation",
        severity="warning",
        needs=("gradient_norm",),
        threshold=f"mean gradient norm of three lines below {VANISHED:.0%} of the first three's: steps then do little",
        explanation=(
            "Nearly all pairs are told apart so surely that their gradient has vanished. What is still learned comes "
            "from a few rows, or from nothing."
        ),
        remedy=(
            "Stop here, or lower beta so that margins saturate later; a task this easy is often a shortcut in the data "
            "(preftune validate)."
        ),
        check=margin_saturation,
    ),
    Rule(
        name="untrained_parameters",
        severity="warning",
        needs=("untrained_share",),
        threshold=(
            f"three steps after warmup, and at the end, {LEAST_STILL:.0%} or more of the parameters lie in tensors of "
            "whose compared entries at most one in fifty has changed (of an input embedding: none)"
        ),
        explanation=(
            "Parameters that are meant to train have not changed. They get no gradient, or their steps are smaller "
            "than their precision can hold (bf16 weights need steps of 0.4% of their size)."
        ),
        remedy="Train in fp32 weights (model.dtype=fp32), raise optim.learning_rate, or check model.lora.targets.",
        check=untrained_parameters,
    ),
    Rule(
        name="frozen_parameters",
        severity="information",
        needs=(),
        threshold=f"{LEAST_STILL:.0%} or more of the parameters take no gradient, without adapter or quantised base",
        explanation=(
            "A part of the model is frozen. A model given as an object keeps what requires_grad its owner has set."
        ),
        remedy="If that is not meant, call model.requires_grad_(True) before training.",
        check=frozen_parameters,
    ),
    Rule(
        name="dead_reference",
        severity="warning",
        needs=("delta", "delta_sd", "chosen_reward"),
        threshold=f"{WAIT} steps after warmup, delta, its spread and the rewards are below {STILL:g} nats: rounding",
        explanation=(
            "Policy and reference still say the same of every response. Either the policy does not move, or the "
            "reference moves with it because they share weights."
        ),
        remedy="Raise optim.learning_rate, or see to it that a copy of the model has weights of its own.",
        check=dead_reference,
    ),
)

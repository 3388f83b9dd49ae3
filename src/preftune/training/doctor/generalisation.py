"""Rules about what was learned: the training rows by heart, or labels that say nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from preftune.training.doctor.record import Record, Rule, Sign, number

if TYPE_CHECKING:
    from preftune.training.doctor.config import DoctorConfig

GAP = 0.15  # of accuracy
LINES = 5  # of training, over which accuracy is averaged
LOSS_RISEN = 0.05  # of the lowest held-out loss
RANDOM = 0.6  # accuracy
SURE = 0.16  # width of its 95% interval: some 150 pairs
MOVED = 0.25  # nats, spread of delta, times the square root of a response's tokens, as steps of chance would add up


def overfitting(record: Record, config: DoctorConfig) -> Sign | None:
    """Training pairs are told apart far better than held-out ones, whose loss rises."""
    if not record.train or (number(record.train[-1], "epoch") or 0.0) <= 1:
        return None  # until then, training pairs are as new as held-out ones
    name = "policy_accuracy" if record.recent("preference_accuracy", LINES) is None else "preference_accuracy"
    trained, held_out, loss = record.recent(name, LINES), record.now(name), record.now("loss")
    losses = [value for line in record.evals if (value := number(line, "loss")) is not None]
    if trained is None or held_out is None or loss is None or trained - held_out < GAP:
        return None
    if loss < min(losses) + LOSS_RISEN * abs(min(losses)):
        return None
    return Sign(
        trained - held_out,
        f"accuracy is {trained:.2f} on training pairs and {held_out:.2f} on held-out ones, whose loss has risen from "
        f"{min(losses):.3f} to {loss:.3f}",
    )


def noisy_labels(record: Record, config: DoctorConfig) -> Sign | None:
    """The policy has learned much, and held-out labels do not bear it out."""
    accuracy, spread = record.now("preference_accuracy"), record.now("delta_sd")
    interval = record.evals[-1].get("preference_accuracy_ci95") if record.evals else None
    if accuracy is None or spread is None or not interval or record.step < record.facts.steps / 2:
        return None
    if spread < MOVED * math.sqrt(record.facts.length) or interval[1] - interval[0] > SURE:
        return None
    if interval[0] > 0.5 and interval[1] >= RANDOM:
        return None
    return Sign(accuracy, f"held-out accuracy is {accuracy:.2f} although log-ratios differ by {spread:.1f} nats")


RULES = (
    Rule(
        name="overfitting",
        severity="warning",
        needs=("preference_accuracy", "loss"),
        threshold=(
            f"after the first epoch, in which training pairs are as new as held-out ones, accuracy in training {GAP} "
            f"above the held-out one, and the held-out loss {LOSS_RISEN:.0%} above its lowest"
        ),
        explanation=(
            "The policy learns its training pairs by heart. What it gains there it loses on pairs that it has not seen."
        ),
        remedy="Train fewer epochs, keep the best checkpoint (output.keep_best=loss), or take ipo or a larger beta.",
        check=overfitting,
    ),
    Rule(
        name="noisy_labels",
        severity="warning",
        needs=("preference_accuracy", "delta_sd"),
        threshold=(
            f"in the second half of a run, the interval of held-out accuracy holds 0.5 or ends below {RANDOM}, and is "
            f"narrower than {SURE}; and delta is spread by {MOVED} nats times the square root of a response's tokens, "
            "which says that the policy has learned something"
        ),
        explanation=(
            "The policy has moved, but held-out preferences agree with it no more than a coin would. The labels "
            "contradict each other, or depend on what the responses do not show."
        ),
        remedy=(
            "Look for contradictions with preftune validate, let two people label some rows, and use confidences or "
            "label smoothing (robust_dpo) if noise is known."
        ),
        check=noisy_labels,
    ),
)

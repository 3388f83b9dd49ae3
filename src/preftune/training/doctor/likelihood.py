"""Rules about likelihood: chosen responses that become less likely, and where the probability goes instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preftune.training.doctor.record import Record, Rule, Sign, number

if TYPE_CHECKING:
    from preftune.training.doctor.config import DoctorConfig

IMPLAUSIBLE = 0.5  # nats per token by which answers are less plausible to the reference than good responses are
BROKEN = 0.2  # of answers' 4-grams, or of answers, that are repeated or do not end, beyond the start
ACCURACY_LOST = 0.05  # of held-out pairs, since the best evaluation
REWARD = ("true_reward", "reward")  # what a probe may call it


def chosen_falls(record: Record, config: DoctorConfig) -> Sign | None:
    """Chosen responses have become less likely, per token."""
    change = record.now("chosen_logp_per_token_change")
    if change is None or change >= -config.chosen_fall:
        return None
    return Sign(change, f"chosen responses have lost {-change:.2f} nats per token")


def displacement(record: Record, config: DoctorConfig) -> Sign | None:
    """Chosen responses have become less likely, and what came instead is worse."""
    sign, reason = chosen_falls(record, config), None
    if sign is not None:
        reason = _accuracy_lost(record) or _reward_lost(record) or _elsewhere(record, config)
    return None if sign is None or reason is None else Sign(sign.value, f"{sign.figure}, and {reason}")


def _accuracy_lost(record: Record) -> str | None:
    now, interval = record.now("preference_accuracy"), record.evals[-1].get("preference_accuracy_ci95")
    before = [value for line in record.evals[:-1] if (value := number(line, "preference_accuracy")) is not None]
    if now is None or not interval or not before or max(before) < max(now + ACCURACY_LOST, interval[1]):
        return None
    return f"held-out accuracy fell from {max(before):.2f} to {now:.2f}"


def _reward_lost(record: Record) -> str | None:
    if len(record.probes) < 2:
        return None
    before, after = record.probes[0], record.probes[-1]
    for name in REWARD:
        old, new = number(before, name), number(after, name)
        if old is None or new is None:
            continue
        low, high = (before.get(f"{name}_ci95") or (old, old))[0], (after.get(f"{name}_ci95") or (new, new))[1]
        if high < low:
            return f"the reward of its samples fell from {old:.2f} to {new:.2f}"
    return None


def _elsewhere(record: Record, config: DoctorConfig) -> str | None:
    """Both sides of the data have lost, and the policy's own answers are not what anybody preferred: the reference
    finds them less plausible than the data, or, where no reference can be asked, they repeat or do not end."""
    other = record.now("rejected_logp_per_token_change")
    if other is None or other >= -config.chosen_fall:
        return None
    plausible, chosen = record.now("sample_reference_logp_per_token"), record.start("chosen_logp_per_token")
    first = record.start("sample_reference_logp_per_token")
    if plausible is not None and chosen is not None and first is not None:
        below = min(chosen, first) - plausible
        if below < IMPLAUSIBLE:
            return None
        return f"the policy's answers are {below:.2f} nats per token less plausible to the reference than they are"
    for name, said, sense in (("sample_repetition", "repeat themselves", 1), ("sample_end_rate", "do not end", -1)):
        now, then = record.now(name), record.start(name)
        if now is not None and then is not None and sense * (now - then) > BROKEN:
            return f"the policy's answers {said} ({name} {then:.2f} to {now:.2f})"
    return None


RULES = (
    Rule(
        name="likelihood_displacement",
        severity="warning",
        needs=("chosen_logp_per_token_change", "preference_accuracy", "sample_reference_logp_per_token"),
        threshold=(
            f"chosen falls by more than doctor.chosen_fall and one of these: held-out accuracy {ACCURACY_LOST} and its "
            "interval below its best; the probe's reward below its interval at the start; rejected falls as far, and "
            f"the reference gives the policy's answers {IMPLAUSIBLE} nats per token less than good responses and than "
            "its own answers (a healthy policy becomes likelier to the reference, for it sharpens)"
        ),
        explanation=(
            "Chosen responses lose probability, and it does not go to anything that was preferred. Pairs whose two "
            "responses are alike do this: what pushes the rejected one down pushes the chosen one down with it."
        ),
        remedy=(
            "Leave out the rows named (or all pairs that are nearly the same), add an SFT term or take dpop, or lower "
            "optim.learning_rate."
        ),
        check=displacement,
    ),
    Rule(
        name="chosen_likelihood_falls",
        severity="information",
        needs=("chosen_logp_per_token_change",),
        threshold="chosen falls by more than doctor.chosen_fall, 0.1 nats per token: each token a tenth less likely",
        explanation=(
            "Chosen responses have become less likely than they were at the start. Healthy runs do this too, for a "
            "preference only asks that rejected ones fall further; it is no reason to stop by itself."
        ),
        remedy="Look at held-out accuracy and at the samples; if chosen must not fall, add an SFT term or take dpop.",
        check=chosen_falls,
    ),
)

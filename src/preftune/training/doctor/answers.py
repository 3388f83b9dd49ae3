"""Rules about what the policy writes: longer and longer, without an end, the same again, all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preftune.training.doctor.record import Record, Rule, Sign

if TYPE_CHECKING:
    from preftune.training.doctor.config import DoctorConfig

BEYOND_CHOSEN = 1.2  # times the length of a chosen response
EXPLAINED = 0.4  # correlation of delta with the difference of lengths
LOST_ENDS = 0.25  # share of answers, two standard errors of 32
REPEATED = 0.2  # share of 4-grams, beyond the start
DISTINCT = 0.5  # of the share at the start
SHORT = 0.25  # of the length at the start


def length_exploitation(record: Record, config: DoctorConfig) -> Sign | None:
    """Answers have grown beyond what was preferred, and length explains the preferences that were learned."""
    now, start, chosen = record.now("sample_length"), record.start("sample_length"), record.now("chosen_length")
    explained = record.now("delta_length_correlation")
    if now is None or not start or chosen is None or explained is None:
        return None
    growth = now / start
    if growth <= config.length_growth or now <= BEYOND_CHOSEN * chosen or explained < EXPLAINED:
        return None
    return Sign(growth, f"answers grew from {start:.0f} to {now:.0f} tokens, chosen responses have {chosen:.0f}")


def no_stop(record: Record, config: DoctorConfig) -> Sign | None:
    """Fewer answers reach an end."""
    now, start = record.now("sample_end_rate"), record.start("sample_end_rate")
    if now is None or start is None or start - now < LOST_ENDS:
        return None
    return Sign(now, f"{now:.0%} of the answers reach an end, {start:.0%} did")


def repetition(record: Record, config: DoctorConfig) -> Sign | None:
    """Answers say the same again."""
    now, start = record.now("sample_repetition"), record.start("sample_repetition")
    if now is None or start is None or now - start < REPEATED:
        return None
    return Sign(now, f"{now:.0%} of the answers' 4-grams are repeated, {start:.0%} were")


def collapse(record: Record, config: DoctorConfig) -> Sign | None:
    """Different prompts get the same answer, or next to none."""
    now, start = record.now("sample_distinct"), record.start("sample_distinct")
    length, before = record.now("sample_length"), record.start("sample_length")
    if now is not None and start is not None and now < DISTINCT * start:
        return Sign(now, f"{now:.0%} of the answers differ from each other, {start:.0%} did")
    if length is not None and before is not None and length < SHORT * before:
        return Sign(length, f"answers shrank from {before:.1f} to {length:.1f} tokens")
    return None


RULES = (
    Rule(
        name="length_exploitation",
        severity="warning",
        needs=("sample_length", "chosen_length", "delta_length_correlation"),
        threshold=(
            "sampled length above doctor.length_growth (1.3) times the start's and "
            f"{BEYOND_CHOSEN} times a chosen response's, and delta correlates with the difference of lengths by "
            f"{EXPLAINED} or more: beyond what 32 answers scatter, and beyond what anybody preferred"
        ),
        explanation=(
            "Answers become longer than any that was preferred, and length tells most of what the policy has learned. "
            "Summed log-ratios reward length by themselves, and raters who like longer answers add to it."
        ),
        remedy=(
            "Take an objective that divides by length (simpo, or average: mean) or r_dpo, or balance lengths in the "
            "data; preftune validate tells how far length alone tells chosen from rejected."
        ),
        check=length_exploitation,
    ),
    Rule(
        name="no_stop",
        severity="warning",
        needs=("sample_end_rate",),
        threshold=f"the share of answers that end falls by {LOST_ENDS} or more: two standard errors of 32 answers",
        explanation=(
            "The policy stops less and less. Mostly chosen responses were cut before their end token, or it stands "
            "on the rejected side more often."
        ),
        remedy=(
            "Look at the last tokens with preftune preview, drop responses that are cut "
            "(data.rendering.truncate=drop), or raise evaluate.max_new_tokens if answers are meant to be this long."
        ),
        check=no_stop,
    ),
    Rule(
        name="repetition",
        severity="warning",
        needs=("sample_repetition",),
        threshold=f"the share of repeated 4-grams rises by {REPEATED} or more: ordinary text of this length has few",
        explanation=(
            "The policy says the same again within an answer. It has left the text that it was trained on before, or "
            "chosen responses repeat themselves."
        ),
        remedy="Lower optim.learning_rate or raise beta, and look at chosen responses that repeat themselves.",
        check=repetition,
    ),
    Rule(
        name="collapse",
        severity="warning",
        needs=("sample_distinct", "sample_length"),
        threshold=(
            f"fewer than {DISTINCT:.0%} as many different answers as at the start, or answers a quarter as long: "
            "neither happens by chance in 32"
        ),
        explanation=(
            "The policy gives one answer to many prompts, or next to none. A sign that is common to all chosen "
            "responses is easier to learn than what makes each of them good."
        ),
        remedy=(
            "Look at the samples for what they share, lower optim.learning_rate or raise beta, and balance the data "
            "(preftune validate finds such signs)."
        ),
        check=collapse,
    ),
)

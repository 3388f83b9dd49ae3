"""Rules about how a run begins: a beta that does not fit the data, and data that does not fit the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from preftune.training.doctor.record import Record, Rule, Sign

if TYPE_CHECKING:
    from preftune.training.doctor.config import DoctorConfig

NEAR, FAR = 0.5, 8.0  # nats per pair, and nats per token
SHORTEST = 8.0  # tokens that a response counts at least
SURPRISE = 4.0  # nats at the first or the last token of a response
UNLIKELY, FOREIGN = 0.3, 1.0  # nats per token


def mis_set_beta(record: Record, config: DoctorConfig) -> Sign | None:
    """The objective's gradient is gone too soon, or never."""
    reach = record.facts.reach
    if reach is None or math.isinf(reach):
        return None
    each = reach / max(record.facts.length, SHORTEST)
    if reach < NEAR:
        return Sign(reach, f"the gradient is gone once a pair differs by {reach:.2g} nats: beta or tau is too large")
    if each > FAR:
        return Sign(
            reach, f"the objective pulls until a pair differs by {reach:.0f} nats, {each:.0f} for each token: too small"
        )
    return None


def template_mismatch(record: Record, config: DoctorConfig) -> Sign | None:
    """Good responses surprise the model where they begin or end, and are unlikely as a whole."""
    gap = _gap(record)
    places = {place: _surprise(record, place) for place in ("first", "last")}
    place = max(places, key=lambda name: places[name])
    if gap is None or gap < UNLIKELY or places[place] < SURPRISE:
        return None
    return Sign(
        places[place],
        f"the {place} token of chosen responses is {places[place]:.1f} nats less likely than that of the model's own",
    )


def foreign_responses(record: Record, config: DoctorConfig) -> Sign | None:
    """Good responses are unlikely to the model, but not where they begin and end."""
    gap = _gap(record)
    if gap is None or gap < FOREIGN or template_mismatch(record, config) is not None:
        return None
    return Sign(gap, f"chosen responses are {gap:.2f} nats per token less likely than the model's own answers")


def _gap(record: Record) -> float | None:
    own, chosen = record.start("sample_logp_per_token"), record.start("chosen_logp_per_token")
    return None if own is None or chosen is None else own - chosen


def _surprise(record: Record, place: str) -> float:
    own, chosen = record.start(f"sample_{place}_logp"), record.start(f"chosen_{place}_logp")
    return -math.inf if own is None or chosen is None else own - chosen


RULES = (
    Rule(
        name="mis_set_beta",
        severity="warning",
        needs=(),
        threshold=(
            f"the objective's gradient has lost nine tenths before a pair differs by {NEAR} nats, or not before "
            f"{FAR:g} nats for each token of a response: a policy that has moved so little has learned nothing, and "
            "no policy moves so far without breaking"
        ),
        explanation=(
            "Beta (or tau) sets the difference of log-ratios up to which a pair pulls, and here it does not fit the "
            "length of the responses. Too large, training ends where it began; too small, nothing holds it back."
        ),
        remedy="Set beta or tau so that pairs pull for 0.5 to 8 nats per token of a response (dpo: 3 / beta nats).",
        check=mis_set_beta,
    ),
    Rule(
        name="template_mismatch",
        severity="warning",
        needs=("chosen_first_logp", "chosen_last_logp", "sample_first_logp", "sample_last_logp"),
        threshold=(
            f"before training, good responses are {UNLIKELY} nats per token less likely than the model's own answers, "
            f"and {SURPRISE:g} nats less at their first or last token: other models' words are unlikely throughout, a "
            "wrong template is where responses begin and end"
        ),
        explanation=(
            "The model does not expect responses to begin or to end as these do. Mostly they are rendered with another "
            "chat template, or end with another token, than the model was trained on."
        ),
        remedy=(
            "Compare preftune preview with what the model writes by itself, and set data.rendering.chat_template or "
            "model.tokenizer to the model's own."
        ),
        check=template_mismatch,
    ),
    Rule(
        name="foreign_responses",
        severity="information",
        needs=("sample_logp_per_token", "chosen_logp_per_token"),
        threshold=f"before training, good responses are {FOREIGN:g} nat per token less likely than the model's own",
        explanation=(
            "The responses are not such as this model writes: another model or person wrote them. Objectives then "
            "move probabilities that the policy hardly samples, and chosen ones often fall."
        ),
        remedy="Train on the chosen responses first (preftune sft), or sample pairs from the model itself.",
        check=foreign_responses,
    ),
)

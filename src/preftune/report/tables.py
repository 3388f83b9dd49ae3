"""Before and after: the held-out metrics of a run as rows for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from preftune.report.reading import RunData
from preftune.report.trained import is_reward_model
from preftune.report.values import Interval, Unit, interval, mapping, number, show, show_change, show_interval


@dataclass(frozen=True)
class Metric:
    """How a metric is called, counted and explained to a reader who meets it for the first time."""

    label: str
    meaning: str
    unit: Unit = ""


METRICS = {
    "preference_accuracy": Metric(
        "Preference accuracy (implicit)",
        "Share of held-out pairs in which the model favours chosen more than its reference does; ties count one half, "
        "so 50% is chance.",
        "share",
    ),
    "policy_accuracy": Metric(
        "Preference accuracy (own log-probabilities)",
        "Share of held-out pairs in which the model itself finds chosen likelier than rejected.",
        "share",
    ),
    "true_reward": Metric(
        "True reward", "Mean score of sampled responses under the reward that the preferences were made from."
    ),
    "reward": Metric(
        "Score of its answers", "Mean score that the judge gives the model's answers to held-out prompts."
    ),
    "kl": Metric(
        "KL divergence",
        "How far the model's own samples lie from the reference model; 0 means unchanged.",
        "nats per response",
    ),
    "grammatical": Metric(
        "Grammatical", "Share of sampled responses that keep to the grammar of the built-in world.", "share"
    ),
    "sample_length": Metric("Length of answers", "Mean of the model's own answers, end token included.", "tokens"),
    "sample_end_rate": Metric("Answers that end", "Share that end by themselves before they are cut.", "share"),
    "sample_repetition": Metric(
        "Repetition", "Share of an answer's runs of four tokens that stood in it before.", "share"
    ),
    "sample_distinct": Metric("Different answers", "Different answers as a share of all.", "share"),
    "sample_kl": Metric(
        "KL divergence, rough",
        "The same on few answers, as the training doctor measures it while the run goes on: rough, without an "
        "interval, and perhaps off several times over.",
        "nats per response",
    ),
    "loss": Metric("Loss", "What training minimises, on held-out data; lower is better."),
    "margin": Metric("Reward margin", "Chosen reward less rejected reward, mean over held-out pairs."),
    "chosen_reward": Metric("Reward of chosen", "Mean implicit reward of the chosen responses."),
    "rejected_reward": Metric("Reward of rejected", "Mean implicit reward of the rejected responses."),
    "delta": Metric("Delta", "Log-ratio of policy to reference on chosen, less that on rejected.", "nats"),
    "chosen_logp_per_token": Metric(
        "Log-probability of chosen",
        "Mean over the tokens of held-out chosen responses, under the model itself.",
        "nats per token",
    ),
    "rejected_logp_per_token": Metric(
        "Log-probability of rejected",
        "Mean over the tokens of held-out rejected responses, under the model itself.",
        "nats per token",
    ),
}


OF_SCORES = {  # of a reward model, which has no reference
    "preference_accuracy": Metric(
        "Preference accuracy",
        "Share of held-out pairs in which the reward model scores chosen above rejected; ties count one half, so 50% "
        "is chance.",
        "share",
    ),
    "margin": Metric("Margin of scores", "Score of chosen less score of rejected, mean over held-out pairs."),
    "chosen_reward": Metric("Score of chosen", "Mean score of the chosen responses."),
    "rejected_reward": Metric("Score of rejected", "Mean score of the rejected responses."),
}


# Spreads, parts and changes of the metrics above: they have their place in the figures.
DETAILS = ("_sd", "_se", "_q10", "_q50", "_q90", "_change", "_length", "_first_logp", "_last_logp")
# What the training doctor goes by, and says itself where it matters.
OF_THE_DOCTOR = frozenset(
    {
        "sample_logp_per_token",
        "sample_reference_logp_per_token",
        "sample_kl_per_token",
        "delta_length_correlation",
    }
)


@dataclass(frozen=True)
class Change:
    """One metric before and after training; None wherever it was not measured."""

    key: str
    metric: Metric
    before: float | None
    before_interval: Interval | None
    after: float | None
    after_interval: Interval | None
    difference: float | None
    difference_interval: Interval | None

    @property
    def shown(self) -> dict[str, str]:
        """The values and intervals as text."""
        unit = self.metric.unit
        low, high = self.difference_interval or (0.0, 0.0)
        return {
            "before": show(self.before, unit),
            "before_interval": show_interval(self.before_interval, unit),
            "after": show(self.after, unit),
            "after_interval": show_interval(self.after_interval, unit),
            "difference": show_change(self.difference, unit),
            "difference_interval": f"{show_change(low, unit)} to {show_change(high, unit)}" if low != high else "",
        }


def changes(run: RunData) -> dict[str, Change]:
    """Metrics before and after training, known ones first, then whatever else the summary holds.

    summary.json counts; what it leaves out is taken from the evaluation at step 0 and the last one after it.
    """
    evaluations = [row for row in run.history if row.get("kind") == "eval" and number(row.get("step")) is not None]
    starts = [row for row in evaluations if row["step"] == 0]
    ends = [row for row in evaluations if row["step"] > 0]
    before = {**(starts[-1] if starts else {}), **mapping(run.summary.get("before"))}
    after = {**(ends[-1] if ends else {}), **mapping(run.summary.get("after"))}
    difference = mapping(run.summary.get("difference"))
    told = {**mapping(run.summary.get("before")), **mapping(run.summary.get("after"))}
    further = [key for key in told if key not in OF_THE_DOCTOR.union(METRICS) and not key.endswith(DETAILS)]
    metrics = {**METRICS, **OF_SCORES} if is_reward_model(run) else METRICS
    found = {
        key: _change(key, metrics.get(key, Metric(key.replace("_", " ").capitalize(), "")), before, after, difference)
        for key in (*METRICS, *further)
    }
    return {key: change for key, change in found.items() if change.before is not None or change.after is not None}


def _change(
    key: str, metric: Metric, before: dict[str, Any], after: dict[str, Any], difference: dict[str, Any]
) -> Change:
    start, end = number(before.get(key)), number(after.get(key))
    given = number(difference.get(key))
    return Change(
        key=key,
        metric=metric,
        before=start,
        before_interval=interval(before.get(f"{key}_ci95")),
        after=end,
        after_interval=interval(after.get(f"{key}_ci95")),
        difference=end - start if given is None and start is not None and end is not None else given,
        difference_interval=interval(difference.get(f"{key}_ci95")),
    )

"""Rules as functions of a record: where they fire, and where they do not."""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from preftune.errors import PreftuneError
from preftune.training.doctor.config import DoctorConfig
from preftune.training.doctor.judge import Doctor
from preftune.training.doctor.record import Facts, Record
from preftune.training.doctor.rules import RULES

ROOT = Path(__file__).parents[3]
BY_NAME = {rule.name: rule for rule in RULES}
FACTS = Facts(steps=40, warmup=4, reach=10.0, length=16.0)
START = {
    "loss": 0.69,
    "preference_accuracy": 0.5,
    "preference_accuracy_ci95": [0.5, 0.5],
    "chosen_logp_per_token": -1.2,
    "chosen_length": 16.0,
    "sample_length": 16.0,
    "sample_end_rate": 1.0,
    "sample_repetition": 0.0,
    "sample_distinct": 1.0,
    "sample_logp_per_token": -1.2,
    "sample_reference_logp_per_token": -1.2,
    "sample_kl": 0.0,
    "sample_kl_per_token": 0.0,
    "chosen_first_logp": -0.5,
    "chosen_last_logp": -0.5,
    "sample_first_logp": -0.5,
    "sample_last_logp": -0.5,
}
# A healthy end: sharper, a little further, chosen a little less likely.
END = {
    **START,
    "loss": 0.55,
    "preference_accuracy": 0.7,
    "preference_accuracy_ci95": [0.66, 0.74],
    "delta_sd": 2.0,
    "chosen_logp_per_token_change": -0.05,
    "rejected_logp_per_token_change": -0.2,
    "delta_length_correlation": 0.2,
    "sample_reference_logp_per_token": -1.1,
    "sample_kl": 1.5,
    "sample_kl_per_token": 0.1,
}
TRAIN = {
    "gradient_norm": 1.0,
    "preference_accuracy": 0.7,
    "delta": 1.0,
    "delta_sd": 2.0,
    "chosen_reward": 0.2,
    "untrained_share": 0.0,
}
NEITHER = {"chosen_logp_per_token_change": -0.5, "rejected_logp_per_token_change": -0.6}


def reward(mean: float, half: float) -> dict[str, Any]:
    """What a probe measured, with its interval."""
    return {"reward": mean, "reward_ci95": [mean - half, mean + half]}


# What fires a rule, just so; and what, a little less, does not.
EDGES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "mis_set_beta": [
        ({"facts": {"reach": 0.49}}, {"facts": {"reach": 0.51}}),
        ({"facts": {"reach": 130.0}}, {"facts": {"reach": 127.0}}),
        ({"facts": {"reach": 65.0, "length": 2.0}}, {"facts": {"reach": 63.0, "length": 2.0}}),
    ],
    "template_mismatch": [
        (
            {"start": {"chosen_first_logp": -4.6, "chosen_logp_per_token": -1.6}},
            {"start": {"chosen_first_logp": -4.4, "chosen_logp_per_token": -1.6}},
        ),
        (
            {"start": {"chosen_last_logp": -9.0, "chosen_logp_per_token": -1.6}},
            {"start": {"chosen_last_logp": -9.0, "chosen_logp_per_token": -1.4}},
        ),
    ],
    "foreign_responses": [
        ({"start": {"chosen_logp_per_token": -2.3}}, {"start": {"chosen_logp_per_token": -2.1}}),
        (
            {"start": {"chosen_logp_per_token": -9.0}},
            {"start": {"chosen_logp_per_token": -9.0, "chosen_first_logp": -9.0}},
        ),
    ],
    "kl_blow_up": [({"end": {"sample_kl_per_token": 0.51}}, {"end": {"sample_kl_per_token": 0.49}})],
    "margin_saturation": [({"late": {"gradient_norm": 0.04}}, {"late": {"gradient_norm": 0.06}})],
    "untrained_parameters": [
        (
            {"late": {"untrained_share": 0.02, "untrained": ["a"]}},
            {"late": {"untrained_share": 0.009, "untrained": ["a"]}},
        )
    ],
    "frozen_parameters": [
        ({"facts": {"frozen": ("a",), "frozen_share": 0.02}}, {"facts": {"frozen": ("a",), "frozen_share": 0.009}})
    ],
    "dead_reference": [
        (
            {"late": {"delta": 1e-5, "delta_sd": 1e-5, "chosen_reward": 1e-6}},
            {"late": {"delta": 1e-5, "delta_sd": 1e-3, "chosen_reward": 1e-6}},
        ),
        (
            {"late": {"delta": 0.0, "delta_sd": 0.0, "chosen_reward": 0.0}},
            {"late": {"delta": 0.0, "delta_sd": 0.0, "chosen_reward": 0.0}, "facts": {"reference": False}},
        ),
    ],
    "likelihood_displacement": [
        (
            {"end": {**NEITHER, "sample_reference_logp_per_token": -1.8}},
            {"end": {**NEITHER, "sample_reference_logp_per_token": -1.6}},
        ),
        (
            {"end": {**NEITHER, "sample_reference_logp_per_token": -1.8}},
            {"end": {"chosen_logp_per_token_change": -0.05, "sample_reference_logp_per_token": -1.8}},
        ),
        (
            {"end": {**NEITHER, "preference_accuracy": 0.6, "preference_accuracy_ci95": [0.56, 0.64]}},
            {"end": {**NEITHER, "preference_accuracy": 0.64, "preference_accuracy_ci95": [0.58, 0.71]}},
        ),
        (
            {"end": NEITHER, "probes": [{"true_reward": 1.0}, {"true_reward": 0.9}]},
            {"end": NEITHER, "probes": [{"true_reward": 1.0}, {"true_reward": 1.1}]},
        ),
        (
            {"end": NEITHER, "probes": [reward(1.0, 0.1), reward(0.7, 0.1)]},
            {"end": NEITHER, "probes": [reward(1.0, 0.2), reward(0.7, 0.2)]},
        ),
        (
            {"end": {**NEITHER, "sample_reference_logp_per_token": None, "sample_repetition": 0.3}},
            {"end": {**NEITHER, "sample_reference_logp_per_token": None, "sample_repetition": 0.1}},
        ),
    ],
    "chosen_likelihood_falls": [
        ({"end": {"chosen_logp_per_token_change": -0.11}}, {"end": {"chosen_logp_per_token_change": -0.09}})
    ],
    "length_exploitation": [
        (
            {"end": {"sample_length": 22.0, "delta_length_correlation": 0.5}},
            {"end": {"sample_length": 20.0, "delta_length_correlation": 0.5}},
        ),
        (
            {"end": {"sample_length": 22.0, "delta_length_correlation": 0.5}},
            {"end": {"sample_length": 22.0, "delta_length_correlation": 0.3}},
        ),
        (
            {"end": {"sample_length": 22.0, "delta_length_correlation": 0.5}},
            {"end": {"sample_length": 22.0, "delta_length_correlation": 0.5, "chosen_length": 20.0}},
        ),
    ],
    "no_stop": [({"end": {"sample_end_rate": 0.74}}, {"end": {"sample_end_rate": 0.76}})],
    "repetition": [({"end": {"sample_repetition": 0.21}}, {"end": {"sample_repetition": 0.19}})],
    "collapse": [
        ({"end": {"sample_distinct": 0.45}}, {"end": {"sample_distinct": 0.55}}),
        ({"end": {"sample_length": 3.5}}, {"end": {"sample_length": 4.5}}),
    ],
    "overfitting": [
        (
            {"late": {"preference_accuracy": 0.9}, "end": {"loss": 0.62}},
            {"late": {"preference_accuracy": 0.9}, "end": {"loss": 0.57}},
        ),
        (
            {"late": {"preference_accuracy": 0.9}, "end": {"loss": 0.62}},
            {"late": {"preference_accuracy": 0.8}, "end": {"loss": 0.62}},
        ),
        (
            {"late": {"preference_accuracy": 0.9}, "end": {"loss": 0.62}},
            {"late": {"preference_accuracy": 0.9, "epoch": 1.0}, "end": {"loss": 0.62}},
        ),
    ],
    "noisy_labels": [
        (
            {"end": {"preference_accuracy": 0.55, "preference_accuracy_ci95": [0.52, 0.59]}},
            {"end": {"preference_accuracy": 0.57, "preference_accuracy_ci95": [0.53, 0.61]}},
        ),
        (
            {"end": {"preference_accuracy": 0.55, "preference_accuracy_ci95": [0.49, 0.61]}},
            {"end": {"preference_accuracy": 0.55, "preference_accuracy_ci95": [0.4, 0.7]}},
        ),
        (
            {"end": {"preference_accuracy": 0.5, "preference_accuracy_ci95": [0.45, 0.55]}},
            {"end": {"preference_accuracy": 0.5, "preference_accuracy_ci95": [0.45, 0.55], "delta_sd": 0.9}},
        ),
    ],
}


def record(change: dict[str, Any]) -> Record:
    """A healthy run of 40 steps with a change of facts, start, last lines of training, or end."""
    made = Record(replace(FACTS, **change.get("facts", {})), probes=list(change.get("probes", [])))
    made.add({"kind": "eval", "step": 0, **START, **change.get("start", {})})
    for step in range(1, 41):
        late = change.get("late", {}) if step > 35 else {}
        made.add({"kind": "train", "step": step, "epoch": step / 20, **TRAIN, **late})
        if step == 20:
            made.add({"kind": "eval", "step": step, **END})
    made.add({"kind": "eval", "step": 40, **END, **change.get("end", {})})
    return made


def fired(change: dict[str, Any], config: DoctorConfig | None = None) -> set[str]:
    return {rule.name for rule in RULES if rule.check(record(change), config or DoctorConfig()) is not None}


def test_every_rule_has_edges() -> None:
    assert EDGES.keys() == BY_NAME.keys()


@pytest.mark.parametrize(("name", "number"), [(name, i) for name, edges in EDGES.items() for i in range(len(edges))])
def test_a_rule_fires_beyond_its_threshold_and_not_before(name: str, number: int) -> None:
    sick, well = EDGES[name][number]
    assert name in fired(sick)
    assert name not in fired(well)


def test_a_healthy_record_fires_nothing() -> None:
    assert fired({}) == set()


@pytest.mark.parametrize("name", BY_NAME)
def test_without_its_metrics_a_rule_is_silent(name: str) -> None:
    """Whatever is missing or was no number; nothing is taken for granted."""
    rule = BY_NAME[name]
    for sick, _ in EDGES[name]:
        made = record(sick)
        if not rule.needs:
            made = Record(Facts())
        made.train, made.evals = (
            [{**line, **dict.fromkeys(rule.needs)} for line in lines] for lines in (made.train, made.evals)
        )
        assert rule.check(made, DoctorConfig()) is None
    for lines in ([], [{"kind": "eval", "step": 0}], [{"kind": "train", "step": 1}]):
        empty = Record(Facts())
        for line in lines:
            empty.add(line)
        assert rule.check(empty, DoctorConfig()) is None


@pytest.mark.parametrize("name", BY_NAME)
def test_a_rule_is_told_in_two_sentences_and_cured_in_one(name: str) -> None:
    rule = BY_NAME[name]
    assert len(re.findall(r"[.](?: |$)", rule.explanation)) == 2
    assert len(re.findall(r"[.](?: |$)", rule.remedy)) == 1
    assert rule.threshold
    assert rule.check.__doc__


def test_thresholds_are_the_users() -> None:
    assert "kl_blow_up" in fired({}, DoctorConfig(kl_per_token=0.05))
    assert "chosen_likelihood_falls" in fired({}, DoctorConfig(chosen_fall=0.01))
    longer = {"end": {"sample_length": 20.0, "delta_length_correlation": 0.5}}
    assert "length_exploitation" in fired(longer, DoctorConfig(length_growth=1.2))


def test_nothing_is_said_twice_and_what_passed_does_not_stand() -> None:
    doctor = Doctor(DoctorConfig(), FACTS)
    doctor.see({"kind": "eval", "step": 0, **START})
    assert doctor.judge() == []
    doctor.see(
        {"kind": "eval", "step": 10, **END, "sample_kl_per_token": 2.0, "preference_accuracy_ci95": [0.6, math.nan]}
    )
    (found,) = doctor.judge()
    line = found.line()
    assert (line["rule"], line["step"], line["value"]) == ("kl_blow_up", 10, 2.0)
    assert found.sentence().startswith("step 10, warning: kl blow up: KL to the reference is 1.5 nats per answer")
    doctor.see(line)
    assert doctor.judge() == []
    assert [one["rule"] for one in doctor.standing()] == ["kl_blow_up"]
    doctor.see({"kind": "eval", "step": 20, **END})
    assert doctor.judge() == []
    assert doctor.standing() == []
    doctor.see({"kind": "eval", "step": 30, **END, "sample_kl_per_token": 2.0})
    assert doctor.judge() == []
    assert [one["rule"] for one in doctor.standing()] == ["kl_blow_up"]


def test_rules_that_are_off_say_nothing() -> None:
    doctor = Doctor(DoctorConfig(off="kl_blow_up"), FACTS)
    doctor.see({"kind": "eval", "step": 10, **END, "sample_kl_per_token": 2.0})
    assert doctor.judge() == doctor.standing() == []


def test_names_of_rules_are_checked() -> None:
    from preftune import yaml_tree
    from preftune.config import RunConfig

    with pytest.raises(PreftuneError, match=r"doctor\.stop.*there is no rule kl_blowup; known: .*kl_blow_up"):
        yaml_tree.load(RunConfig, None, ["doctor.stop=[kl_blowup]"], tagged=("objective",))
    with pytest.raises(PreftuneError, match=r"doctor\.off.*there is no rule any"):
        yaml_tree.load(RunConfig, None, ["doctor.off=any"], tagged=("objective",))


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_doctor", ROOT / "scripts" / "training_doctor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_rules_as_they_are() -> None:
    text = (ROOT / "docs" / "training-doctor.md").read_text(encoding="utf-8")
    assert text == script().replaced(text), "out of date; run: make docs-training-doctor"
    assert all(f"| `{rule.name}` |" in text for rule in RULES)
    assert re.search(
        r"^docs-training-doctor: .*\n\t.* scripts/training_doctor\.py$", (ROOT / "Makefile").read_text(), re.M
    )

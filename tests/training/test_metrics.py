from __future__ import annotations

import math
from typing import Any

import miniatures
import numpy as np
import pytest
import torch

from preftune.data.examples import Example, Response
from preftune.data.packing import pack, pad
from preftune.objectives.base import Outcome
from preftune.objectives.batch import LogProbs, Role
from preftune.objectives.dpo import DPO
from preftune.training import metrics


def columns(*seen: Any) -> dict[str, torch.Tensor]:
    return metrics.columns(metrics.observe(*seen))


def by_hand() -> dict[str, np.ndarray]:
    """Three pairs: one right, one wrong, one tie."""
    return {
        "chosen_logp": np.array([-2.0, -9.0, -4.0]),
        "rejected_logp": np.array([-5.0, -3.0, -4.0]),
        "chosen_length": np.array([2.0, 4.0, 2.0]),
        "rejected_length": np.array([5.0, 1.0, 4.0]),
        "chosen_reward": np.array([0.1, -0.2, 0.0]),
        "rejected_reward": np.array([-0.1, 0.4, 0.0]),
        "chosen_ratio": np.array([1.0, -2.0, 0.0]),
        "rejected_ratio": np.array([-1.0, 4.0, 0.0]),
    }


def test_a_table_worked_by_hand():
    found = metrics.summarise(by_hand())
    assert found["chosen_logp_per_token"] == -15 / 8
    assert found["rejected_logp_per_token"] == -12 / 10
    assert (found["chosen_length"], found["rejected_length"]) == pytest.approx((8 / 3, 10 / 3))
    assert found["chosen_reward"] == pytest.approx(-0.1 / 3)
    assert found["preference_accuracy"] == found["policy_accuracy"] == 0.5
    assert found["delta"] == pytest.approx((2 - 6 + 0) / 3)
    assert found["delta_sd"] == pytest.approx(np.std([2, -6, 0]))
    assert (found["delta_q10"], found["delta_q50"], found["delta_q90"]) == pytest.approx((-4.8, 0, 1.6))
    assert found["margin"] == pytest.approx((0.2 - 0.6) / 3)


def test_ties_count_one_half():
    differences = np.array([1.0, 2e-5, 1e-5 / 2, 0.0, -1e-5 / 2, -2e-5, -1.0])
    assert metrics.wins(differences).tolist() == [1, 1, 0.5, 0.5, 0.5, 0, 0]


def test_implicit_accuracy_is_one_half_where_the_policy_is_the_reference():
    table = by_hand() | {"chosen_ratio": np.zeros(3), "rejected_ratio": np.zeros(3)}
    found = metrics.held_out(table, table, ["a", "b", "c"])
    assert found["preference_accuracy"] == 0.5
    low, high = found["preference_accuracy_ci95"]  # type: ignore[misc]
    assert low <= 0.5 <= high


def test_changes_are_against_the_start_per_token():
    start = by_hand()
    table = start | {"chosen_logp": start["chosen_logp"] - np.array([1.0, 2.0, 3.0])}
    found = metrics.held_out(table, start, ["a", "b", "c"])
    assert found["chosen_logp_per_token_change"] == -6 / 8
    assert found["rejected_logp_per_token_change"] == 0


def test_without_a_reference_ratios_are_against_the_start():
    start = {name: values for name, values in by_hand().items() if "ratio" not in name and "reward" not in name}
    start |= {f"{name}_reward": np.full(3, math.nan) for name in ("chosen", "rejected")}
    table = start | {"chosen_logp": start["chosen_logp"] + 1}
    assert "delta" not in metrics.summarise(start)
    found = metrics.held_out(table, start, ["a", "b", "c"])
    assert found["delta"] == 1
    assert found["preference_accuracy"] == 1
    assert "margin" not in found
    assert "chosen_reward" not in found
    assert not any(name.endswith("histogram") for name in found)


def test_histograms_count_every_reward_on_shared_edges():
    found: Any = metrics.held_out(by_hand(), by_hand(), ["a", "b", "c"])
    chosen, rejected = found["chosen_reward_histogram"], found["rejected_reward_histogram"]
    assert chosen["edges"] == rejected["edges"]
    assert sum(chosen["counts"]) == sum(rejected["counts"]) == 3
    assert (chosen["edges"][0], chosen["edges"][-1]) == (-0.2, 0.4)


def test_examples_of_one_prompt_are_no_independent_evidence():
    table = {name: np.tile(values, 20) for name, values in by_hand().items()}
    apart = metrics.held_out(table, table, list(range(60)))["preference_accuracy_ci95"]
    together = metrics.held_out(table, table, [i % 3 for i in range(60)])["preference_accuracy_ci95"]
    widths = [high - low for low, high in (apart, together)]  # type: ignore[misc]
    assert widths[1] > widths[0]


@pytest.mark.parametrize("make", [pack, pad])
def test_columns_are_sums_over_each_response(make):
    examples = miniatures.pairs()
    batch = make(examples)
    logps_K = torch.linspace(-3, -1, len(batch.target_K), dtype=torch.float64)
    reference_K = torch.full_like(logps_K, -2)
    outcome = DPO(beta=0.5)(LogProbs(logps_K), LogProbs(reference_K), batch, {})
    found = columns(LogProbs(logps_K), LogProbs(reference_K), outcome, batch)
    at = 0
    for e, example in enumerate(examples):
        for name, response in zip(("chosen", "rejected"), example.responses, strict=True):
            own = logps_K[at : at + response.length]
            at += response.length
            assert found[f"{name}_logp"][e] == pytest.approx(float(own.sum()))
            assert found[f"{name}_length"][e] == response.length
            ratio = float((own + 2).sum())
            assert found[f"{name}_ratio"][e] == pytest.approx(ratio)
            assert found[f"{name}_reward"][e] == pytest.approx(0.5 * ratio)


def test_columns_leave_out_what_not_every_example_has():
    batch = pack(miniatures.forest())
    logps_K = torch.zeros(len(batch.target_K))
    outcome = Outcome(torch.zeros(batch.examples), torch.zeros(len(batch.length_R)), {})
    assert columns(LogProbs(logps_K), None, outcome, batch) == {}


def test_columns_carry_no_gradient_and_are_exact():
    batch = pack(miniatures.pairs())
    logps_K = torch.full((len(batch.target_K),), -1e-3, requires_grad=True)
    outcome = DPO()(LogProbs(logps_K), LogProbs(logps_K.detach()), batch, {})
    found = columns(LogProbs(logps_K), LogProbs(logps_K.detach()), outcome, batch)
    assert all(not column.requires_grad and column.dtype == torch.float64 for column in found.values())
    assert (found["chosen_ratio"] == 0).all()


def test_pieces_of_a_table_join_in_order():
    pieces = [{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0])}]
    assert metrics.table(pieces)["x"].tolist() == [1, 2, 3]


def judged_by_hand() -> dict[str, np.ndarray]:
    """Two good and two bad responses, of different prompts."""
    return {
        "response_logp": np.array([-2.0, -9.0, -4.0, -3.0]),
        "response_length": np.array([2.0, 4.0, 2.0, 2.0]),
        "response_reward": np.array([0.3, -0.1, 0.1, -0.3]),
        "response_ratio": np.array([3.0, -1.0, 1.0, -3.0]),
        "good": np.array([1.0, 0.0, 1.0, 0.0]),
    }


def test_judged_responses_worked_by_hand():
    found = metrics.summarise(judged_by_hand())
    assert found["chosen_logp_per_token"] == -6 / 4
    assert found["rejected_logp_per_token"] == -12 / 6
    assert (found["chosen_reward"], found["rejected_reward"]) == pytest.approx((0.2, -0.2))
    assert (found["delta"], found["margin"]) == pytest.approx((4, 0.4))
    assert found["preference_accuracy"] == 1
    assert found["policy_accuracy"] == 3 / 4  # -2 beats both, -4 beats -9 only
    start = judged_by_hand() | {"response_logp": np.array([-1.0, -9.0, -4.0, -4.0])}
    late: Any = metrics.held_out(judged_by_hand(), start, list("abcd"))
    assert late["chosen_logp_per_token_change"] == -1 / 4
    assert late["rejected_logp_per_token_change"] == 1 / 6
    assert late["preference_accuracy_ci95"] == [1, 1]
    assert sum(late["chosen_reward_histogram"]["counts"]) == 2


def test_a_batch_of_good_responses_alone_has_half_the_metrics():
    table = {name: values[:1] for name, values in judged_by_hand().items()}
    found = metrics.summarise(table)
    assert found["chosen_reward"] == 0.3
    assert not any(name.startswith(("rejected", "delta", "margin", "preference")) for name in found)


def test_rankings_report_best_and_worst_and_the_order_between_all():
    examples = [
        Example(
            miniatures.ids(4, 1),
            tuple(Response(miniatures.ids(2, 10 + i), Role.RANKED, s) for i, s in enumerate(scores)),
        )
        for scores in ((1.0, 3.0, 2.0), (0.5, 0.5, 0.1, 0.9))
    ]
    batch = pack(examples)
    sums_R = torch.tensor([-5.0, -1.0, -7.0, -2.0, -3.0, -4.0, -6.0])
    logps_K = (sums_R / 2).repeat_interleave(2)
    outcome = Outcome(torch.zeros(2), sums_R / 10, {})
    found = columns(LogProbs(logps_K), LogProbs(torch.zeros_like(logps_K)), outcome, batch)
    assert found["chosen_logp"].tolist() == [-1, -6]
    assert found["rejected_logp"].tolist() == [-5, -4]
    assert found["chosen_reward"].tolist() == pytest.approx([-0.1, -0.6])
    # of 3 couples 2 are in order; of 5 (two responses tie in score), those with the lowest score: 2
    assert found["order"].tolist() == pytest.approx([2 / 3, 2 / 5])
    summary = metrics.summarise({name: column.numpy() for name, column in found.items()})
    assert summary["preference_accuracy"] == 0.5
    assert summary["order_accuracy"] == pytest.approx((2 / 3 + 2 / 5) / 2)


def test_a_reward_head_is_judged_by_its_values():
    batch = pack(miniatures.pairs()[:3])
    reward_R = torch.tensor([1.0, 0.0, 0.5, 2.0, 3.0, -1.0])
    outcome = Outcome(torch.zeros(3), reward_R, {})
    policy = LogProbs(torch.zeros(0), reward_R=reward_R)
    found = columns(policy, None, outcome, batch)
    summary = metrics.summarise({name: column.numpy() for name, column in found.items()})
    assert summary["preference_accuracy"] == pytest.approx(2 / 3)
    assert summary["margin"] == pytest.approx((1 - 1.5 + 4) / 3)
    assert "chosen_logp_per_token" not in summary
    assert "delta" not in summary

"""Scores are the numbers that training logged, and those of plain forwards of transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.runs import KINDS, Made
from transformers import AutoModelForCausalLM

from preftune.evaluation.opening import open_for_evaluation
from preftune.evaluation.scoring import score
from preftune.objectives.batch import Role
from preftune.policy.loading import built_in_folder
from preftune.training import metrics


@pytest.mark.parametrize("kind", KINDS)
def test_score_reproduces_what_training_logged(kind: str, made: Made) -> None:
    folder = made(kind)
    opened = open_for_evaluation(folder)
    scores = score(opened)

    found = metrics.held_out(scores.table, scores.start, [example.prompt.tobytes() for example in opened.examples])
    logged = json.loads((folder / "summary.json").read_text())["after"]
    # what an objective tells of itself may depend on a state that ended with the run; the loss is no score
    shared = [name for name, value in logged.items() if name in found and isinstance(value, float)]
    assert {"chosen_length"} < set(shared)
    for name in shared:
        assert found[name] == pytest.approx(logged[name], abs=1e-5), name


def test_log_probs_are_those_of_plain_forwards(made: Made) -> None:
    folder = made("dpo")
    opened = open_for_evaluation(folder)
    scores = score(opened, tokens=True)
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (folder / "model", built_in_folder())]

    assert len(scores) == len(opened.examples) > 20
    for example, one in zip(opened.examples[:4], scores[:4], strict=True):
        assert one.row == example.row
        for response, side in zip(example.responses, one.responses, strict=True):
            ids = np.concatenate([example.prompt, response.ids])
            wanted = []
            for model in models:
                with torch.no_grad():
                    logp_TV = model(torch.from_numpy(ids)[None].long()).logits[0].log_softmax(-1)
                target = torch.from_numpy(response.ids).long()
                wanted.append(logp_TV[len(example.prompt) - 1 : -1].gather(1, target[:, None])[:, 0].double().numpy())
            assert side.tokens == len(response.ids)
            assert side.token_logps == pytest.approx(wanted[0], abs=1e-4)
            assert side.token_reference_logps == pytest.approx(wanted[1], abs=1e-4)
            assert side.logp == pytest.approx(wanted[0].sum(), abs=1e-4)
            assert side.reward == pytest.approx(0.1 * (wanted[0] - wanted[1]).sum(), abs=1e-5)
        assert one.margin == pytest.approx(0.1 * one.delta, abs=1e-6)
        assert (one.chosen.role, one.rejected.role) == (Role.CHOSEN, Role.REJECTED)


def test_what_else_is_scored_changes_nothing(made: Made) -> None:
    opened = open_for_evaluation(made("lora"))
    whole = score(opened)
    some = score(opened, [opened.examples[i] for i in (7, 3, 11)], tokens=True)
    for one, index in zip(some, (7, 3, 11), strict=True):
        assert one.row == whole[index].row
        assert one.chosen.logp == pytest.approx(whole[index].chosen.logp, abs=1e-5)
        assert one.margin == pytest.approx(whole[index].margin, abs=1e-5)
        assert one.chosen.token_logps is not None
        assert one.chosen.token_logps.sum() == pytest.approx(one.chosen.logp, abs=1e-5)
    assert len(score(opened, [])) == 0


def test_baselines_are_no_responses(made: Made) -> None:
    opened = open_for_evaluation(made("kto-pairs"))
    assert all(len(example.responses) == 3 for example in opened.examples)
    for one in score(opened, tokens=True):
        assert [response.role for response in one.responses] == [Role.CHOSEN, Role.REJECTED]


def test_a_reward_model_gives_rewards_alone(made: Made) -> None:
    opened = open_for_evaluation(made("reward"))
    one = score(opened, tokens=True)[0]
    assert opened.reference is None
    assert one.chosen.logp is one.chosen.token_logps is one.delta is None
    assert one.margin is not None
    assert math.isfinite(one.margin)


def test_records_and_rows_are_those_of_the_examples(made: Made, files: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in files["pairs"].read_text().splitlines()]
    opened = open_for_evaluation(made("dpo"))
    rows, records = opened.rows(), list(opened.records())
    assert len(rows) == len(records) == len(opened.examples)
    for example, record, row in zip(opened.examples, records, rows, strict=True):
        assert row == lines[example.row]
        assert record.where.row == example.row
        assert opened.tokenizer.decode(example.prompt) == row["prompt"]


def test_a_model_is_compared_with_what_is_named(made: Made, files: dict[str, Path]) -> None:
    """The same pairs as a run's own: its model against its start, named by hand."""
    run, hand = (
        open_for_evaluation(made("dpo"), data=files["pairs"]),
        open_for_evaluation(made("dpo") / "model", data=files["pairs"], against="sandbox"),
    )
    assert (run.run, hand.run) == (made("dpo"), None)
    assert len(run.examples) == len(hand.examples) == 96
    for one, other in zip(score(run), score(hand), strict=True):
        assert one.margin == pytest.approx(other.margin, abs=1e-6)
    alone = open_for_evaluation("sandbox", data=files["pairs"])
    assert alone.reference is alone.term is None
    assert score(alone)[0].chosen.reward is None
    # two runs against each other: the second's model is the reference
    both = open_for_evaluation(made("lora"), against=made("dpo"))
    assert both.against == str(made("dpo"))
    assert score(both)[0].chosen.reference_logp == pytest.approx(
        score(open_for_evaluation(made("dpo")))[0].chosen.logp, abs=1e-5
    )

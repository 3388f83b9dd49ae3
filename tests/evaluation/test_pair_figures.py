from __future__ import annotations

import numpy as np
import pytest
from evaluation.runs import Made

from preftune.evaluation.evaluate import _sources
from preftune.evaluation.opening import open_for_evaluation
from preftune.evaluation.pair_figures import pair_figures
from preftune.evaluation.scoring import score


def test_figures_are_those_of_the_scores(made: Made) -> None:
    opened = open_for_evaluation(made("dpo"))
    scores, sources = score(opened), _sources(opened, "source")
    found = pair_figures(scores, opened.examples, sources)
    deltas = np.array([one.delta for one in scores], float)
    margins = np.array([one.margin for one in scores], float)
    longer = np.array([np.sign(one.chosen.tokens - one.rejected.tokens) for one in scores])

    pairs = found["pairs"]
    assert pairs["accuracy"] == pytest.approx((deltas > 0).mean())
    assert pairs["margin"] == pytest.approx(margins.mean())
    assert pairs["margin_ci95"][0] < pairs["margin"] < pairs["margin_ci95"][1]
    assert pairs["accuracy_ci95"][0] < pairs["accuracy"] < pairs["accuracy_ci95"][1]
    assert found["baselines"]["longer"]["accuracy"] == pytest.approx((longer.mean() + 1) / 2)
    ahead = [one.chosen.reference_logp > one.rejected.reference_logp for one in scores]
    assert found["baselines"]["reference"]["accuracy"] == pytest.approx(np.mean(ahead))

    by_difference, by_length = found["by_length"][:3], found["by_length"][3:]
    assert [row["pairs"] for row in by_difference] == [(longer == sign).sum() for sign in (-1, 0, 1)]
    assert sum(row["pairs"] for row in by_length) == len(scores)
    weighed = sum(row["pairs"] * row["margin"] for row in by_length) / len(scores)
    assert weighed == pytest.approx(margins.mean())
    for row in found["by_source"]:
        inside = np.array([source == row["source"] for source in sources])
        assert row["pairs"] == inside.sum() > 0
        assert row["accuracy"] == pytest.approx((deltas[inside] > 0).mean())
    assert [row["source"] for row in found["by_source"]] == ["even", "odd"]


@pytest.mark.parametrize(
    ("kind", "there", "missing"),
    [
        ("kto", {"pairs"}, {"calibration", "baselines", "by_length"}),
        ("rankings", {"pairs", "calibration", "baselines", "by_length"}, {"by_source"}),
        ("reward", {"pairs", "calibration", "baselines", "by_source"}, {"demonstrations"}),
        ("sft", {"demonstrations"}, {"pairs", "baselines"}),
    ],
)
def test_each_kind_of_data_has_the_figures_that_it_can_have(
    kind: str, there: set[str], missing: set[str], made: Made
) -> None:
    opened = open_for_evaluation(made(kind))
    found = pair_figures(score(opened), opened.examples, _sources(opened, "source"))
    assert there <= found.keys()
    assert not missing & found.keys()
    if kind == "reward":
        assert "reference" not in found["baselines"]
        assert "policy_accuracy" not in found["pairs"]


def test_without_a_reference_there_is_no_implicit_accuracy(made: Made, files: dict) -> None:
    opened = open_for_evaluation("sandbox", data=files["pairs"])
    found = pair_figures(score(opened), opened.examples, [None] * 96)
    assert set(found["pairs"]) == {"policy_accuracy", "policy_accuracy_ci95"}
    assert "calibration" not in found
    assert "margin" not in found["by_length"][0]
    assert "reference" not in found["baselines"]

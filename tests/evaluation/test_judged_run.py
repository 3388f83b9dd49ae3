from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation.runs import Made

from preftune.errors import PreftuneError
from preftune.evaluation.answers import Sampling, prompts_of
from preftune.evaluation.generating import Generated, generate
from preftune.evaluation.judged_run import judge_run
from preftune.evaluation.opening import Opened, open_for_evaluation
from preftune.sandbox.world import true_reward

Run = tuple[Opened, Generated]


@pytest.fixture(scope="module")
def run(made: Made) -> Run:
    opened = open_for_evaluation(made("dpo"))
    return opened, generate(opened, prompts_of(opened, 6), Sampling(samples_per_prompt=2, max_new_tokens=40))


def test_the_policy_against_the_start_by_true_reward(run: Run, tmp_path: Path) -> None:
    opened, generated = run
    told: list[int] = []
    found = judge_run(opened, generated, "sandbox", tmp_path, progress=lambda done, _: told.append(done))
    assert generated.against is not None
    wins = [
        (true_reward(a.text) > true_reward(b.text)) + (true_reward(a.text) == true_reward(b.text)) / 2
        for ours, theirs in zip(generated.policy, generated.against, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert found.win_rate == pytest.approx(sum(wins) / len(wins))
    assert (found.comparisons, found.prompts) == (12, 6)
    assert told[-1] == 12
    assert found.judge_check is not None
    assert found.judge_check.pairs == len(opened.examples)
    assert found.judge_check.agreement > 0.5
    again = judge_run(opened, generated, "sandbox", tmp_path)
    assert again == found
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert len(lines) <= 12 + found.judge_check.pairs
    assert set(json.loads(json.dumps(found.as_json()))["judge_check"]) >= {"pairs", "agreement", "agreement_ci95"}


def test_rows_reach_the_judge(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows_judge.py").write_text("def f(response, row):\n    return float(response == row['chosen'])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = judge_run(*run, "rows_judge:f", tmp_path)
    assert found.judge_check is not None
    assert found.judge_check.agreement == 1


def test_nothing_to_compare_with_and_no_check(run: Run, tmp_path: Path) -> None:
    opened, generated = run
    alone = Generated(generated.prompts, generated.policy, None, {}, ())
    with pytest.raises(PreftuneError, match="nothing that its answers could be judged against"):
        judge_run(opened, alone, "sandbox", tmp_path)
    assert judge_run(opened, generated, "sandbox", tmp_path, checked=0).judge_check is None
